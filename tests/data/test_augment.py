"""Each batched operation against torchvision's on one image, and what is drawn for every image."""
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from common.config import Recipe
from common.data.augment import (DRAWS, Preprocess, augmentation, color_jitter, crop_flip,
                                 cutmix, erase, erase_box, warp)

MEAN, STD = torch.tensor([0.49, 0.48, 0.45]), torch.tensor([0.25, 0.24, 0.26])
BILINEAR = InterpolationMode.BILINEAR
FULL = Recipe(crop_padding=4, flip=True, rotation=15, jitter=0.2, random_erasing=0.5)
MOVED = Recipe(crop_padding=4, flip=True)
PARTS = [Recipe(rotation=15), Recipe(jitter=0.2), Recipe(random_erasing=1), MOVED]


def assert_close(result: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Every value within `tolerance` of the expected one."""
    torch.testing.assert_close(result, expected, atol=tolerance, rtol=0)


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of one's own."""
    return torch.Generator().manual_seed(seed)


def prepared(spec: Recipe = Recipe(), resize: int = 1) -> Preprocess:
    """What brings images to the network; its `clean` heeds `resize` alone."""
    return Preprocess(MEAN, STD, replace(spec, resize=resize), MEAN.device)


def train(images: Tensor, spec: Recipe, resize: int = 1, seed: int = 0) -> Tensor:
    """One batch as training sees it, from a generator of its own."""
    return prepared(spec, resize).augment(images, seeded(seed))[0]


def noise(n: int, size: int = 32, dtype: torch.dtype = torch.float32) -> Tensor:
    """(n, 3, size, size) images without any structure, in [0, 1] or 0 to 255."""
    images = torch.randint(0, 256, (n, 3, size, size), generator=seeded(1), dtype=torch.uint8)
    return images if dtype is torch.uint8 else images.to(dtype) / 255


def ramps(size: int = 32) -> Tensor:
    """(3, size, size) float64: x, y and x + 2y, which bilinear sampling reads without error."""
    axis = torch.arange(size, dtype=torch.float64) / size
    x, y = axis.expand(size, size), axis[:, None].expand(size, size)
    return torch.stack([x, y, x + 2 * y])


def parameters(n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dy, dx up to 4 whole pixels either way, flip, degrees up to 40 either way, (n,) each."""
    u = torch.rand(4, n, generator=seeded(2))
    return (u[0] * 9).floor() - 4, (u[1] * 9).floor() - 4, u[2] < 0.5, 80 * u[3] - 40


def one_by_one(image: Tensor, dy: float, dx: float, flip: bool, degrees: float, size: int,
               order: str = "crop flip rotate") -> Tensor:
    """One image padded, cropped, mirrored and rotated by torchvision in order, then resized."""
    for step in order.split():
        if step == "crop":
            image = tv.crop(tv.pad(image, [8] * 4), 8 + int(dy), 8 + int(dx), *image.shape[1:])
        elif step == "flip" and flip:
            image = tv.horizontal_flip(image)
        elif step == "rotate":
            image = tv.rotate(image, degrees, BILINEAR)
    return F.interpolate(image[None], size=(size, size), mode="bilinear", align_corners=False)[0]


def where_comparable(size: int, out: int, *params: float) -> Tensor:
    """(1, out, out) bool: where only pixels of the image itself went into the stepwise result."""
    return one_by_one(torch.ones(1, size, size, dtype=torch.float64), *params, out) > 1 - 1e-9


def per_image(*params: Tensor) -> list[tuple[float, ...]]:
    """One tuple of plain numbers an image."""
    return list(zip(*(p.tolist() for p in params)))


@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_and_flip_are_torchvisions_exactly(padding: int, dtype: torch.dtype) -> None:
    images = noise(64, dtype=dtype)[:, :, :20]  # 20 high, 32 wide
    dy, dx = torch.randint(0, 2 * padding + 1, (2, 64), generator=seeded(3))
    flip = torch.rand(64, generator=seeded(4)) < 0.5
    result = crop_flip(images, dy, dx, flip, padding)
    assert result.dtype is dtype
    for image, got, (y, x, mirrored) in zip(images, result, per_image(dy, dx, flip)):
        expected = tv.crop(F.pad(image, [padding] * 4), y, x, 20, 32)
        assert torch.equal(got, tv.horizontal_flip(expected) if mirrored else expected)


@pytest.mark.parametrize("size", [32, 33])
def test_rotation_is_torchvisions_but_for_the_outermost_half_pixel(size: int) -> None:
    """Torchvision fades to black from half a pixel inside the edge to half a pixel outside; ours
    keeps full brightness up to the edge."""
    images, degrees = noise(24, size), torch.linspace(-180, 180, 24)
    still = torch.zeros(24)
    result = warp(images, still, still, still.bool(), degrees, size)
    for image, got, angle in zip(images, result, degrees.tolist()):
        expected = tv.rotate(image, angle, BILINEAR)
        weight = tv.rotate(torch.ones_like(image), angle, BILINEAR)
        same = (weight > 1 - 1e-6) | (weight == 0) & (got == 0)
        assert same.float().mean() > 0.8
        assert_close(got[same], expected[same])
        kept = ~same & (got > 0)
        assert_close((got * weight)[kept], expected[kept], 1e-4)
        black = weight[~same & (got == 0)]
        assert (black <= 0.5 + 1e-4).all(), "black where the centre of the pixel lies inside"


def test_warp_crops_then_mirrors_then_rotates() -> None:
    """On noise every misplaced pixel shows; without a resize steps interpolate once, as `warp`."""
    images, params = noise(48), parameters(48)
    result = warp(images, *params, 32).double()
    wrong = {"flip crop rotate": 0, "crop rotate flip": 0, "rotate crop flip": 0}
    for image, got, values in zip(images.double(), result, per_image(*params)):
        inside = where_comparable(32, 32, *values).expand(3, -1, -1)
        assert inside.float().mean() > 0.5
        assert_close(got[inside], one_by_one(image, *values, 32)[inside])
        for order in wrong:
            difference = (got - one_by_one(image, *values, 32, order))[inside].abs().max()
            wrong[order] += (difference > 0.1).item()
    assert min(wrong.values()) >= 12, "the test does not tell the orders apart"


def test_warp_resizes_last() -> None:
    """Resizing repeats the outermost half pixel, so the frame of the result is left out."""
    params = parameters(32)
    frame = F.pad(torch.ones([62] * 2, dtype=torch.bool), [1] * 4)
    result = warp(ramps().float().expand(32, -1, -1, -1), *params, 64).double()
    for got, values in zip(result, per_image(*params)):
        inside = (where_comparable(32, 64, *values) & frame).expand(3, -1, -1)
        assert inside.float().mean() > 0.5
        assert_close(got[inside], one_by_one(ramps(), *values, 64)[inside])


def test_jitter_is_torchvisions_brightness_contrast_saturation() -> None:
    images, factors = noise(80), 2 * torch.rand(3, 80, generator=seeded(5))
    original = images.clone()
    result = color_jitter(images, *factors)
    for image, got, (b, c, s) in zip(images, result, per_image(*factors)):
        expected = tv.adjust_contrast(tv.adjust_brightness(image, b), c)
        assert_close(got, tv.adjust_saturation(expected, s))
    assert torch.equal(images, original)


def test_erase_is_torchvisions_exactly() -> None:
    images = noise(50) - 0.5
    height, width = torch.randint(0, 31, (2, 50), generator=seeded(6))
    top = (torch.rand(50, generator=seeded(7)) * (33 - height)).long()
    left = (torch.rand(50, generator=seeded(8)) * (33 - width)).long()
    height[:5] = 0
    box = top, left, height, width
    for image, got, (y, x, h, w) in zip(images, erase(images, *box), per_image(*box)):
        assert torch.equal(got, tv.erase(image, y, x, h, w, torch.zeros(3, 1, 1)) if h else image)


def test_the_erased_share_of_images_area_and_shape() -> None:
    n, size = 20_000, 2000  # so large that rounding to whole pixels does not blur the bounds
    box = erase_box(torch.rand(5, n, generator=seeded()), 0.2, size)
    hit = box[2] > 0
    assert hit.double().mean() == pytest.approx(0.2, abs=0.015)
    top, left, height, width = (value[hit].double() for value in box)
    area, ratio = height * width / size**2, height / width
    assert 0.0199 < area.min() < 0.021 and 0.32 < area.max() < 0.3303
    assert area.mean() == pytest.approx(0.175, abs=0.006), "uniform between 2 and 33 %"
    assert 0.297 < ratio.min() < 0.31 and 3.2 < ratio.max() < 3.33
    assert ratio.log().median() == pytest.approx(0, abs=0.06), "as often upright as lying"
    assert min(top.min(), left.min()) == pytest.approx(0, abs=size / 100)
    assert max((top + height).max(), (left + width).max()) == pytest.approx(size, abs=size / 100)


@pytest.mark.parametrize("size", [2, 8, 32, 64])
def test_the_erased_box_is_never_empty_nor_out_of_bounds(size: int) -> None:
    ends = torch.tensor([0.0, 0.5, 1 - 2**-24])
    corners = torch.cartesian_prod(*[ends] * 5).T
    u = torch.cat([corners, torch.rand(5, 20_000, generator=seeded())], 1)
    top, left, height, width = erase_box(u, 2.0, size)
    assert {value.dtype for value in (top, left, height, width)} == {torch.int64}
    assert min(height.min(), width.min()) >= 1
    assert (top + height).max() == (left + width).max() == size and min(top.min(), left.min()) == 0
    at_the_end = u[3:] == 1 - 2**-24
    assert ((top + height)[at_the_end[0]] == size).all()
    assert ((left + width)[at_the_end[1]] == size).all()


@pytest.mark.parametrize("resize", [1, 2, 3])
def test_val_and_test_are_only_resized_and_normalised(resize: int) -> None:
    images = noise(5, dtype=torch.uint8)
    original = images.clone()
    result = prepared(FULL, resize).clean(images)
    resized = tv.resize(images.float() / 255, [32 * resize] * 2, BILINEAR, antialias=False)
    assert_close(result, tv.normalize(resized, MEAN.tolist(), STD.tolist()))
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert result.dtype is torch.float32 and torch.equal(images, original)


def test_no_augmentation_is_what_val_sees_and_draws_nothing() -> None:
    images, generator = noise(5, dtype=torch.uint8), seeded()
    prepare = prepared(resize=2)
    result, pasted = prepare.augment(images, generator)
    assert torch.equal(result, prepare.clean(images)) and pasted is None
    assert torch.equal(generator.get_state(), seeded().get_state())


@pytest.mark.parametrize("resize", [1, 2, 3])
@pytest.mark.parametrize("name", ["rotation", "jitter", "random_erasing"])
def test_hardly_any_augmentation_is_hardly_different_from_what_val_sees(name: str,
                                                                       resize: int) -> None:
    """Edges included."""
    images = noise(5, dtype=torch.uint8)
    result = train(images, Recipe(**{name: 1e-9}), resize)
    assert_close(result, prepared(resize=resize).clean(images), 1e-4)


@pytest.mark.parametrize("resize", [1, 2])
@pytest.mark.parametrize("spec", [FULL, *PARTS, Recipe(crop_padding=4)])
def test_training_images_come_from_the_operations_and_one_draw(spec: Recipe,
                                                               resize: int) -> None:
    """In the order jitter, crop, mirror, rotation, resize, normalisation, erasing."""
    images, size, u = noise(64, dtype=torch.uint8), 32 * resize, drawn(64)
    x = color_jitter(images / 255, *(1 + spec.jitter * (2 * u[4:7] - 1)))
    shifts, flip = (u[:2] * (2 * spec.crop_padding + 1)).long(), (u[2] < 0.5) & spec.flip
    if spec.rotation:
        offsets, degrees = (shifts - spec.crop_padding).float(), spec.rotation * (2 * u[3] - 1)
        x = warp(x, *offsets, flip, degrees, size)
    else:
        x = crop_flip(x, *shifts, flip, spec.crop_padding)
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    x = tv.normalize(x, MEAN.tolist(), STD.tolist())
    x = erase(x, *erase_box(u[7:], spec.random_erasing, size))
    original = images.clone()
    result = train(images, spec, resize)
    assert_close(result, x)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert result.dtype is torch.float32 and torch.equal(images, original)


def test_the_path_with_rotation_crops_and_mirrors_as_the_one_without() -> None:
    images = noise(64, dtype=torch.uint8)
    assert_close(train(images, replace(MOVED, rotation=1e-9)), train(images, MOVED), 1e-4)


@pytest.mark.parametrize(("spec", "rows"), [
    (Recipe(crop_padding=4), {0, 1}), (Recipe(flip=True), {2}),
    (Recipe(rotation=15), {3}), (Recipe(jitter=0.2), {4, 5, 6}),
    (Recipe(random_erasing=0.5), {7, 8, 9, 10, 11})])
def test_every_augmentation_has_drawn_numbers_of_its_own(
        spec: Recipe, rows: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each drawn row is redrawn in turn, to see whether the augmentation listens to it."""
    images, u = noise(64, dtype=torch.uint8), drawn(64)
    monkeypatch.setattr(torch, "rand", lambda *shape, generator, device: u)
    before, listens = train(images, spec), set()
    for row in range(len(u)):
        u[row] = 1 - u[row]
        if not torch.equal(train(images, spec), before):
            listens.add(row)
        u[row] = 1 - u[row]
    assert listens == rows


def test_a_seeded_generator_decides_everything() -> None:
    images, state = noise(16, dtype=torch.uint8), torch.get_rng_state()
    first, again, other = (train(images, FULL, 1, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"


@pytest.mark.parametrize("value", [0.0, 1 - 2**-24])
@pytest.mark.parametrize("spec", [FULL, MOVED, Recipe(crop_padding=64),
                                  Recipe(crop_padding=64, rotation=180)])
def test_the_ends_of_the_draw_stay_in_bounds(spec: Recipe, value: float,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *shape, generator, device: torch.full(shape, value))
    assert train(noise(2, dtype=torch.uint8), spec, 2).isfinite().all()


def drawn(n: int) -> Tensor:
    """(12, n): what `train` draws for n images with seed 0."""
    return torch.rand(sum(DRAWS), n, generator=seeded())


def numbered(n: int, size: int) -> Tensor:
    """(n, 3, size, size): every pixel of an image is its number."""
    return torch.arange(1.0, n + 1).view(n, 1, 1, 1).expand(n, 3, size, size).clone()


def test_cutmix_pastes_a_square_of_the_image_before() -> None:
    n, size = 400, 16
    images = numbered(n, size)
    mixed, pasted = cutmix(images, 1, seeded())
    foreign = mixed != images  # (n, 3, size, size)
    assert torch.equal(mixed[foreign], images.roll(1, 0)[foreign])
    assert torch.equal(foreign.float().mean((1, 2, 3)), pasted), "labels go by the pixels"
    rows, columns = foreign[:, 0].any(2).sum(1), foreign[:, 0].any(1).sum(1)
    assert torch.equal(rows, columns) and torch.equal(rows * rows, foreign[:, 0].sum((1, 2)))
    # Uniform areas, and squares of every place.
    thirds = torch.histc(pasted, 3, 0, 1) / n
    assert_close(thirds, torch.full((3,), 1 / 3), 0.08)
    small = foreign[pasted < 0.1, 0]
    assert small.any(2).any(0).all() and small.any(1).any(0).all()


def test_how_many_images_cutmix_touches() -> None:
    images = numbered(1000, 8)
    mixed, pasted = cutmix(images, 0, seeded())
    assert torch.equal(mixed, images) and not pasted.any()
    _, pasted = cutmix(images, 0.3, seeded())
    assert 0.24 < (pasted > 0).float().mean() < 0.34


@pytest.mark.parametrize("value", [0.0, 1 - 2**-24])
def test_the_ends_of_cutmixs_draw_stay_in_bounds(value: float,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *shape, generator, device: torch.full(shape, value))
    mixed, pasted = cutmix(numbered(3, 8), 1, seeded())
    expected = numbered(3, 8).roll(1, 0) if value else numbered(3, 8)
    assert torch.equal(mixed, expected) and pasted.tolist() == [float(value > 0)] * 3


@pytest.mark.parametrize("normalization, mean, std", [
    ("data", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), ("half", (0.5,) * 3, (0.5,) * 3),
    ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
def test_the_recipe_says_what_becomes_of_the_images(normalization: str, mean: tuple[float, ...],
                                                    std: tuple[float, ...]) -> None:
    recipe = Recipe(resize=2, normalization=normalization, crop_padding=4, flip=True,
                    rotation=15.0, jitter=0.2, random_erasing=0.5, cutmix=0.5)
    prepare = Preprocess((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), recipe, torch.device("cpu"))
    assert prepare.recipe is recipe
    assert augmentation(recipe) == ("crop ±4 px, flip, rotation ±15°, colour jitter 0.2, "
                                    "random erasing 0.5, CutMix 0.5")
    assert not prepared().augments
    assert_close(prepare.mean, torch.tensor(mean))
    assert_close(prepare.std, torch.tensor(std))


def test_cutmix_comes_last_and_leaves_the_other_draws_as_they_were() -> None:
    images, generator = noise(6, dtype=torch.uint8), seeded()
    mixed, pasted = prepared(replace(FULL, cutmix=1.0), 2).augment(images, seeded())
    before, none = prepared(FULL, 2).augment(images, generator)
    expected = cutmix(before, 1.0, generator)
    assert torch.equal(mixed, expected[0]) and torch.equal(pasted, expected[1]) and none is None
    assert mixed.is_contiguous(memory_format=torch.channels_last)
