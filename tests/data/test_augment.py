"""Each batched operation against torchvision's on one image, and what is drawn for every image."""
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from common.config import Recipe
from common.data.augment import (DRAWS, Augmentation, Preprocess, color_jitter, crop_flip, cutmix,
                                 erase, erase_box, warp)
from common.data.splits import make_splits

MEAN, STD = torch.tensor([0.49, 0.48, 0.45]), torch.tensor([0.25, 0.24, 0.26])
PLAIN = torch.zeros(3), torch.ones(3)
BILINEAR = InterpolationMode.BILINEAR
FULL = Augmentation(crop_padding=4, flip=True, rotation=15, jitter=0.2, random_erasing=0.5)
MOVED = Augmentation(crop_padding=4, flip=True)
PARTS = [Augmentation(rotation=15), Augmentation(jitter=0.2), Augmentation(random_erasing=1), MOVED]


def assert_close(result: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Every value within `tolerance` of the expected one."""
    torch.testing.assert_close(result, expected, atol=tolerance, rtol=0)


def augment(images: Tensor, spec: Augmentation, mean: Tensor, std: Tensor, resize: int = 1,
            generator: torch.Generator | None = None) -> Tensor:
    """One batch as training sees it; mean and std (3,)."""
    return Preprocess(mean, std, resize, spec, images.device).augment(images, generator)[0]


def to_input(images: Tensor, mean: Tensor, std: Tensor, resize: int = 1) -> Tensor:
    """One batch as val and test see it; mean and std (3,)."""
    return Preprocess(mean, std, resize, Augmentation(), images.device).clean(images)


def train(images: Tensor, spec: Augmentation, resize: int = 1, seed: int = 0) -> Tensor:
    """`augment` from a generator of its own, normalised."""
    return augment(images, spec, MEAN, STD, resize, seeded(seed))


def copies(image: Tensor, n: int, spec: Augmentation) -> Tensor:
    """`n` augmentations of one (3, S, S) image, not normalised."""
    return augment(image.expand(n, -1, -1, -1), spec, *PLAIN, 1, seeded())


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of one's own."""
    return torch.Generator().manual_seed(seed)


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


@pytest.mark.parametrize("size", [16, 32, 33])
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


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_positive_degrees_turn_counter_clockwise(quarter: int) -> None:
    images, still = noise(3), torch.zeros(3)
    result = warp(images, still, still, still.bool(), torch.full((3,), 90.0 * quarter), 32)
    assert_close(result, torch.rot90(images, quarter, (2, 3)))


@pytest.mark.parametrize(("size", "out"), [(32, 32), (32, 64), (32, 96), (17, 34), (64, 128)])
def test_warp_that_only_resizes_is_interpolate_to_the_edge(size: int, out: int) -> None:
    images, still = noise(4, size), torch.zeros(4)
    expected = F.interpolate(images, size=(out, out), mode="bilinear", align_corners=False)
    assert_close(warp(images, still, still, still.bool(), still, out), expected)


def test_warp_that_only_moves_and_mirrors_is_crop_and_flip() -> None:
    images = noise(81 * 2)
    dy, dx, flip = torch.cartesian_prod(torch.arange(9), torch.arange(9), torch.arange(2)).unbind(1)
    result = warp(images, (dy - 4).float(), (dx - 4).float(), flip.bool(), torch.zeros(162), 32)
    assert_close(result, crop_flip(images, dy, dx, flip.bool(), 4))
    mirrored = warp(images, *torch.zeros(2, 162), torch.ones(162).bool(), torch.zeros(162), 32)
    assert_close(mirrored, images.flip(3))


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


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_warp_resizes_last(scale: int) -> None:
    """Resizing repeats the outermost half pixel, so the frame of the result is left out."""
    params = parameters(32)
    frame = F.pad(torch.ones([32 * scale - 2] * 2, dtype=torch.bool), [1] * 4)
    result = warp(ramps().float().expand(32, -1, -1, -1), *params, 32 * scale).double()
    for got, values in zip(result, per_image(*params)):
        inside = (where_comparable(32, 32 * scale, *values) & frame).expand(3, -1, -1)
        assert inside.float().mean() > 0.5
        expected = one_by_one(ramps(), *values, 32 * scale)
        assert_close(got[inside], expected[inside])


def test_warp_shows_pixels_beyond_the_window_where_steps_would_show_black() -> None:
    """The one difference away from the edge: one sampling still has what the crop cuts off."""
    image, window = torch.ones(1, 3, 32, 32), (0.0, 4.0, False, 30.0)
    result = warp(image, *(torch.tensor([value]) for value in window), 32)[0]
    stepwise = one_by_one(image[0], *window, 32)
    assert (stepwise < 1e-6).sum() > (result == 0).sum() > 0
    assert result.round(decimals=5).unique().tolist() == [0, 1]


@pytest.mark.parametrize(("stage", "reference"), [
    (0, tv.adjust_brightness), (1, tv.adjust_contrast), (2, tv.adjust_saturation)])
def test_each_jitter_stage_is_torchvisions(stage: int, reference: Callable) -> None:
    images, factors = noise(40), torch.linspace(0, 2, 40)
    given = [torch.ones(40)] * 3
    given[stage] = factors
    result = color_jitter(images, *given)
    expected = [reference(image, factor) for image, factor in zip(images, factors.tolist())]
    assert_close(result, torch.stack(expected))
    changed = (result - images).abs().amax((1, 2, 3))
    assert changed[[0, 39]].min() > 0.2, "the factor changed nothing"


def test_jitter_goes_brightness_contrast_saturation() -> None:
    images, factors = noise(40), 0.4 + 1.2 * torch.rand(3, 40, generator=seeded(5))
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


@pytest.mark.parametrize("probability", [0.0, 0.2, 1.0])
def test_the_erased_share_of_images_area_and_shape(probability: float) -> None:
    n, size = 20_000, 2000  # so large that rounding to whole pixels does not blur the bounds
    box = erase_box(torch.rand(5, n, generator=seeded()), probability, size)
    top, left, height, width = (value.double() for value in box)
    hit = height > 0
    tolerance = 5 * math.sqrt(probability * (1 - probability) / n)
    assert hit.double().mean() == pytest.approx(probability, abs=tolerance)
    if not hit.any():
        return
    top, left, height, width = (value[hit] for value in (top, left, height, width))
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
    result = to_input(images, MEAN, STD, resize)
    resized = tv.resize(images.float() / 255, [32 * resize] * 2, BILINEAR, antialias=False)
    assert_close(result, tv.normalize(resized, MEAN.tolist(), STD.tolist()))
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert result.dtype is torch.float32 and torch.equal(images, original)


@pytest.mark.parametrize("resize", [1, 2])
def test_no_augmentation_is_to_input(resize: int) -> None:
    images = noise(5, dtype=torch.uint8)
    state = torch.get_rng_state()
    result = augment(images, Augmentation(), MEAN, STD, resize)
    assert torch.equal(result, to_input(images, MEAN, STD, resize))
    assert torch.equal(torch.get_rng_state(), state), "drew numbers that nothing needs"


@pytest.mark.parametrize("resize", [1, 2, 3])
@pytest.mark.parametrize("name", ["rotation", "jitter", "random_erasing"])
def test_hardly_any_augmentation_is_hardly_different_from_to_input(name: str, resize: int) -> None:
    """The path for training and the one for val meet, edges included."""
    images = noise(5, dtype=torch.uint8)
    result = train(images, Augmentation(**{name: 1e-9}), resize)
    assert_close(result, to_input(images, MEAN, STD, resize), 1e-4)


def test_the_path_with_rotation_crops_and_mirrors_as_the_one_without() -> None:
    images = noise(64, dtype=torch.uint8)
    assert_close(train(images, Augmentation(4, True, 1e-9)), train(images, MOVED), 1e-4)


@pytest.mark.parametrize(("spec", "rows"), [
    (Augmentation(crop_padding=4), {0, 1}), (Augmentation(flip=True), {2}),
    (Augmentation(rotation=15), {3}), (Augmentation(jitter=0.2), {4, 5, 6}),
    (Augmentation(random_erasing=0.5), {7, 8, 9, 10, 11})])
def test_every_augmentation_has_drawn_numbers_of_its_own(
        spec: Augmentation, rows: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each drawn row is redrawn in turn, to see whether the augmentation listens to it."""
    images, drawn = noise(64, dtype=torch.uint8), torch.rand(sum(DRAWS), 64, generator=seeded())
    monkeypatch.setattr(torch, "rand", lambda *shape, generator, device: drawn)
    before = augment(images, spec, *PLAIN, 1)
    listens = set()
    for row in range(sum(DRAWS)):
        drawn[row] = 1 - drawn[row]
        if not torch.equal(augment(images, spec, *PLAIN, 1), before):
            listens.add(row)
        drawn[row] = 1 - drawn[row]
    assert listens == rows


@pytest.mark.parametrize("spec", [FULL, *PARTS], ids=repr)
@pytest.mark.parametrize(("size", "resize"), [(32, 1), (32, 2), (20, 3)])
def test_result_is_float32_channels_last_and_the_input_is_left_alone(
        spec: Augmentation, size: int, resize: int) -> None:
    images = noise(6, size, torch.uint8)
    original = images.clone()
    result = train(images, spec, resize)
    assert result.shape == (6, 3, size * resize, size * resize) and result.dtype is torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last) and result.isfinite().all()
    assert torch.equal(images, original)
    assert (result - to_input(images, MEAN, STD, resize)).abs().max() > 0.1


@pytest.mark.parametrize("spec", [FULL, *PARTS], ids=repr)
def test_a_seeded_generator_decides_everything(spec: Augmentation) -> None:
    images = noise(16, dtype=torch.uint8)
    state = torch.get_rng_state()
    first, again, other = (train(images, spec, 1, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    generator = seeded(1)
    first, second = (augment(images, spec, MEAN, STD, 1, generator) for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("spec", [FULL, *PARTS[:3]], ids=repr)
def test_every_image_has_parameters_of_its_own(spec: Augmentation) -> None:
    results = copies(noise(1, dtype=torch.uint8)[0], 64, spec)
    assert len(results.flatten(1).unique(dim=0)) == 64


def assert_uniform_and_independent(**drawn: tuple[Tensor, float, float]) -> None:
    """Each value's (N,) draws fill [low, high] evenly, and no two values go together."""
    for name, (values, low, high) in drawn.items():
        place, n = (values - low) / (high - low), len(values)
        assert -0.01 <= place.min() < 0.02 and 0.98 < place.max() <= 1.01, name
        assert place.mean().item() == pytest.approx(0.5, abs=5 / math.sqrt(12 * n)), name
        assert place.std().item() == pytest.approx(1 / math.sqrt(12), rel=0.05), name
    together = torch.corrcoef(torch.stack([values.double() for values, *_ in drawn.values()]))
    assert (together - torch.eye(len(drawn))).abs().max() < 5 / math.sqrt(n)


def test_crops_and_flips_are_even_and_independent() -> None:
    """Each image tells where its pixels come from: red is the column, green the row."""
    n, column = 2000, torch.arange(1, 33, dtype=torch.uint8).expand(32, 32)
    image = torch.stack([column, column.T, torch.zeros_like(column)])
    result = (copies(image, n, MOVED) * 255).round().long() - 1
    flipped = result[:, 0, 16, 17] < result[:, 0, 16, 16]
    dx = result[:, 0, 16, 16] - torch.where(flipped, 15, 16) + 4
    dy = result[:, 1, 16, 16] - 16 + 4
    for offsets in (dx, dy):
        counts = torch.bincount(offsets)
        assert len(counts) == 9 and (counts - n / 9).abs().max() < 5 * math.sqrt(n / 9)
    assert flipped.float().mean().item() == pytest.approx(0.5, abs=2.5 / math.sqrt(n))
    together = torch.corrcoef(torch.stack([dx, dy, flipped]).double())
    assert together.triu(1).abs().max() < 5 / math.sqrt(n)


def test_without_flip_nothing_is_mirrored() -> None:
    image = torch.arange(32, dtype=torch.uint8).expand(3, 32, 32)
    result = copies(image, 200, Augmentation(crop_padding=4))
    assert (result[:, 0, 16, 17] > result[:, 0, 16, 16]).all()


def test_rotations_fill_the_range_either_way() -> None:
    image = (ramps() * 200).round().to(torch.uint8)[[0, 1, 0]]
    result = copies(image, 1500, Augmentation(rotation=15))
    down = (result[:, 0, 26] - result[:, 0, 6])[:, 16]
    right = (result[:, 0, :, 26] - result[:, 0, :, 6])[:, 16]
    degrees = torch.rad2deg(torch.atan2(-down, right))
    assert_uniform_and_independent(degrees=(degrees, -15, 15))


def test_jitter_factors_fill_the_range_and_are_independent() -> None:
    """A two-coloured image tells its factors: brightness scales the mean luma, contrast its spread,
    saturation the colour."""
    image = torch.tensor([100, 80, 60], dtype=torch.uint8).view(3, 1, 1).repeat(1, 32, 32)
    image[:, :, 16:] = torch.tensor([60, 50, 40], dtype=torch.uint8).view(3, 1, 1)
    weights = torch.tensor([0.2989, 0.587, 0.114]).view(3, 1)
    before = image[:, 0, [0, 31]] / 255
    after = copies(image, 2000, Augmentation(jitter=0.2))[:, :, 0, [0, 31]]
    luma_before, luma_after = (before * weights).sum(0), (after * weights).sum(1)
    brightness = luma_after.mean(1) / luma_before.mean()
    contrast = luma_after.diff(dim=1)[:, 0] / luma_before.diff() / brightness
    colour = (after[:, 0, 0] - after[:, 1, 0]) / (before[0, 0] - before[1, 0])
    saturation = colour / brightness / contrast
    assert_uniform_and_independent(brightness=(brightness, 0.8, 1.2), contrast=(contrast, 0.8, 1.2),
                                   saturation=(saturation, 0.8, 1.2))


def test_padding_stays_black_under_jitter() -> None:
    grey = torch.full((3, 32, 32), 128, dtype=torch.uint8)
    result = copies(grey, 200, Augmentation(crop_padding=4, jitter=0.5))
    assert ((result == 0) | (result > 0.2)).all() and 0.05 < (result == 0).float().mean() < 0.3


@pytest.mark.parametrize("resize", [1, 2])
def test_erasing_sets_one_rectangle_to_the_mean_colour(resize: int) -> None:
    n, size = 1000, 32 * resize
    images = torch.full((n, 3, 32, 32), 255, dtype=torch.uint8)
    erased = (train(images, Augmentation(random_erasing=0.25), resize) == 0).all(1)
    hit = erased.any((1, 2))
    assert hit.float().mean().item() == pytest.approx(0.25, abs=5 * math.sqrt(0.1875 / n))
    erased = erased[hit]
    area, rows, columns = erased.sum((1, 2)), erased.any(2).sum(1), erased.any(1).sum(1)
    assert torch.equal(area, rows * columns)
    assert 0.01 < area.min() / size**2 < 0.05 and 0.27 < area.max() / size**2 < 0.36


@pytest.mark.parametrize("value", [0.0, 1 - 2**-24])
@pytest.mark.parametrize("spec", [FULL, *PARTS, Augmentation(64, False, 180, 1, 1)], ids=repr)
def test_the_ends_of_the_draw_stay_in_bounds(spec: Augmentation, value: float,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *shape, generator, device: torch.full(shape, value))
    images = noise(2, dtype=torch.uint8)
    assert train(images, spec, 2).isfinite().all()
    if spec == MOVED:
        shift = 0 if value == 0 else 8
        expected = crop_flip(images, *torch.full((2, 2), shift), torch.full((2,), value == 0), 4)
        assert_close(train(images, spec), to_input(expected, MEAN, STD))


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


def test_the_constants_are_prepared_once_and_the_steps_are_the_pure_functions() -> None:
    prepare = Preprocess(tuple(MEAN.tolist()), tuple(STD.tolist()), 2, FULL, torch.device("cpu"))
    images = noise(6, dtype=torch.uint8)
    assert torch.equal(prepare.augment(images, seeded())[0], train(images, FULL, 2))
    assert torch.equal(prepare.clean(images), to_input(images, MEAN, STD, 2))
    assert torch.equal(prepare.scale, (1 / STD).view(3, 1, 1))


@pytest.mark.parametrize("normalization, mean, std", [
    ("data", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), ("half", (0.5,) * 3, (0.5,) * 3),
    ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
def test_the_recipe_says_what_becomes_of_the_images(normalization: str, mean: tuple[float, ...],
                                                    std: tuple[float, ...]) -> None:
    none = np.zeros((20, 3, 8, 8), np.uint8), np.arange(20) % 2
    splits = replace(make_splits(*none, *none, ("a", "b"), ""), mean=(0.1, 0.2, 0.3),
                     std=(0.4, 0.5, 0.6))
    recipe = Recipe(resize=2, normalization=normalization, crop_padding=4, flip=True,
                    rotation=15.0, jitter=0.2, random_erasing=0.5, cutmix=0.5)
    prepare = Preprocess.of(recipe, splits, torch.device("cpu"))
    assert prepare.spec == replace(FULL, cutmix=0.5) and prepare.resize == 2
    assert_close(prepare.mean, torch.tensor(mean))
    assert_close(prepare.std, torch.tensor(std))
    assert Preprocess.of(Recipe(), splits, torch.device("cpu")).spec == Augmentation()


def test_cutmix_comes_last_and_leaves_the_other_draws_as_they_were() -> None:
    images, generator = noise(6, dtype=torch.uint8), seeded()
    prepare = Preprocess(MEAN, STD, 2, replace(FULL, cutmix=1.0), images.device)
    mixed, pasted = prepare.augment(images, seeded())
    before = augment(images, FULL, MEAN, STD, 2, generator)
    expected = cutmix(before, 1.0, generator)
    assert torch.equal(mixed, expected[0]) and torch.equal(pasted, expected[1])
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert Preprocess(MEAN, STD, 2, FULL, images.device).augment(images)[1] is None
