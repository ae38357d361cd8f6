"""Grad-CAM against closed forms, finite differences and a second formula; what it leaves alone."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.analysis.faithfulness import area, center_prior, deletion_insertion, random_maps
from common.analysis.gradcam import default_layer, grad_cam, named_maps
from common.models.build import build

SIZES = {"simple_cnn": 32, "improved_cnn": 32, "se_resnet18": 32, "efficientnet_b2": 64}


class Toy(nn.Module):
    """Two convolutions, in-place activations, dropout, global average pooling, a linear head."""

    def __init__(self, inplace: bool = True, shared: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.relu1 = nn.ReLU(inplace)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.relu2 = self.relu1 if shared else nn.ReLU(inplace)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        return self.fc(self.drop(x.mean((2, 3))))


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The model with seeded weights and BatchNorm statistics that are not the identity."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)
    return model


def batch(n: int, size: int, classes: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """(n, 3, size, size) images and (n,) targets."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, size, size, generator=generator), torch.randint(
        classes, (n,), generator=generator
    )


def bilinear_by_hand(small: Tensor, height: int, width: int) -> Tensor:
    """align_corners=False in plain loops."""
    rows, h, w = small.tolist(), *small.shape
    large = torch.zeros(height, width, dtype=small.dtype)
    for i in range(height):
        y = min(max((i + 0.5) * h / height - 0.5, 0), h - 1)
        top, low = int(y), min(int(y) + 1, h - 1)
        for j in range(width):
            x = min(max((j + 0.5) * w / width - 0.5, 0), w - 1)
            left, right = int(x), min(int(x) + 1, w - 1)
            upper = rows[top][left] * (left + 1 - x) + rows[top][right] * (x - left)
            lower = rows[low][left] * (left + 1 - x) + rows[low][right] * (x - left)
            large[i, j] = upper * (top + 1 - y) + lower * (y - top)
    return large


def normalised(cam: Tensor, height: int, width: int) -> Tensor:
    """ReLU, enlarged and divided by the maximum, or zeros."""
    large = bilinear_by_hand(cam.clamp(min=0), height, width)
    return large / large.max() if large.max() > 0 else large


def second_formula(
    model: nn.Module, images: Tensor, targets: Tensor, names: list[str]
) -> dict[str, Tensor]:
    """Maps of every named layer from the natural graph, an image and a channel at a time."""
    maps: dict[str, list[Tensor]] = {name: [] for name in names}
    model.eval()
    for image, target in zip(images, targets.tolist()):
        kept: dict[str, Tensor] = {}

        def keep(name: str) -> Callable:
            """Hook that keeps the output and passes on a copy for in-place operations."""
            return lambda _module, _inputs, output: kept.setdefault(name, output).clone()

        handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
        logits = model(image[None].clone().requires_grad_())
        for handle in handles:
            handle.remove()
        gradients = torch.autograd.grad(logits[0, target], [kept[name] for name in names])
        for name, gradient in zip(names, gradients):
            _, channels, h, w = gradient.shape
            cam = torch.zeros(h, w, dtype=gradient.dtype)
            for c in range(channels):
                cam += gradient[0, c].sum() / (h * w) * kept[name][0, c].detach()
            maps[name].append(normalised(cam, *image.shape[1:]))
    return {name: torch.stack(per_image) for name, per_image in maps.items()}


def test_closed_form_for_pooling_and_a_linear_head() -> None:
    model = seeded(Toy).eval()
    images, targets = batch(4, 16, 5)
    with torch.no_grad():
        features = model.relu2(model.bn2(model.conv2(model.pool(model.relu1(model.conv1(images))))))
    for image_map, activation, target in zip(
        grad_cam(model, "relu2", images, targets), features, targets
    ):
        weighted = sum(
            weight * channel
            for weight, channel in zip(model.fc.weight[target].detach(), activation)
        )
        torch.testing.assert_close(image_map, normalised(weighted, 16, 16))


@pytest.mark.parametrize("name", ["conv1", "relu1", "pool", "conv2", "bn2", "relu2"])
def test_finite_differences(name: str) -> None:
    """Shifting a channel by e changes the logit by e * h * w times its weight: no autograd."""
    model = seeded(Toy).double().eval()
    images, targets = batch(2, 8, 5)
    images, layer, epsilon = images.double(), model.get_submodule(name), 1e-6

    def logit(image: Tensor, target: int, channel: int, shift: float) -> tuple[float, Tensor]:
        """Logit of the target with one channel of the layer shifted, and the layer's own output."""
        kept = []

        def add(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
            kept.append(output[0].clone())
            output = output.clone()
            output[:, channel] += shift
            return output

        with torch.no_grad(), layer.register_forward_hook(add):
            return model(image[None])[0, target].item(), kept[0]

    for image, target, image_map in zip(
        images, targets.tolist(), grad_cam(model, name, images, targets)
    ):
        activation = logit(image, target, 0, 0.0)[1]
        cam = torch.zeros_like(activation[0])
        for c, channel in enumerate(activation):
            slope = (logit(image, target, c, epsilon)[0] - logit(image, target, c, -epsilon)[0]) / (
                2 * epsilon
            )
            cam += slope / channel.numel() * channel
        torch.testing.assert_close(image_map, normalised(cam, 8, 8), atol=1e-6, rtol=0)


@pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("network", SIZES)
def test_second_formula(network: str, many: bool) -> None:
    """At a few layers of each network, or at every sixth; in float64: only formulas differ."""
    size = SIZES[network]
    model = seeded(lambda: build(network)).double()
    names = list(named_maps(model, size))
    few = {names[0], names[len(names) // 2], names[-1], default_layer(model, size)}
    names = names[::6] if many else sorted(few)
    images, targets = batch(2, size, 10)
    images = images.double()
    for name, expected in second_formula(model, images, targets, names).items():
        torch.testing.assert_close(
            grad_cam(model, name, images, targets), expected, atol=1e-5, rtol=0, msg=name
        )


@pytest.mark.parametrize("network", SIZES)
def test_batched_equals_one_at_a_time(network: str) -> None:
    size = SIZES[network]
    model = seeded(lambda: build(network))
    images, targets = batch(3, size, 10)
    layer = default_layer(model, size)
    assert min(named_maps(model, size)[layer][1:]) >= 4
    maps = grad_cam(model, layer, images, targets)
    assert maps.shape == (3, size, size) and maps.dtype == torch.float32 and maps.min() >= 0
    assert all(peak in (0.0, 1.0) for peak in maps.amax((1, 2)).tolist())
    alone = [grad_cam(model, layer, images[i : i + 1], targets[i : i + 1]) for i in range(3)]
    singly = torch.cat(alone)
    torch.testing.assert_close(maps, singly, atol=1e-4, rtol=0)
    exact = grad_cam(model.double(), layer, images.double(), targets)
    torch.testing.assert_close(maps.double(), exact, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["conv1", "relu1", "bn2", "relu2"])
def test_in_place_activations_do_not_corrupt_the_captured_map(name: str) -> None:
    images, targets = batch(3, 16, 5)
    with_copies = grad_cam(seeded(lambda: Toy(inplace=False)), name, images, targets)
    torch.testing.assert_close(grad_cam(seeded(Toy), name, images, targets), with_copies)


@pytest.mark.parametrize(
    "context",
    [
        nullcontext,
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
    ],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_weights_and_the_callers_context_change_nothing(
    frozen: bool, context: Callable
) -> None:
    images, targets = batch(3, 16, 5)
    expected = grad_cam(seeded(Toy), "conv2", images, targets)
    model = seeded(Toy).requires_grad_(not frozen)
    with context():
        torch.testing.assert_close(grad_cam(model, "conv2", images * 1, targets * 1), expected)


def test_maps_of_oblong_images_keep_their_shape() -> None:
    model = seeded(Toy)
    images, targets = torch.randn(
        2, 3, 12, 20, generator=torch.Generator().manual_seed(0)
    ), torch.tensor([1, 3])
    torch.testing.assert_close(
        grad_cam(model, "bn2", images, targets),
        second_formula(model, images, targets, ["bn2"])["bn2"],
    )


def test_a_map_without_evidence_stays_zero() -> None:
    model = seeded(Toy)
    with torch.no_grad():
        model.fc.weight[2] = -model.fc.weight[2].abs()
        model.fc.weight[3] = 0
    images, _ = batch(2, 16, 5)
    for target in (2, 3):
        assert (grad_cam(model, "relu2", images, torch.full((2,), target)) == 0).all()


def state(model: nn.Module) -> dict:
    """All that Grad-CAM could leave changed, by value."""
    return {
        "tensors": {name: value.clone() for name, value in model.state_dict().items()},
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "training": [m.training for m in model.modules()],
        "hooks": [
            [list(hooks) for hooks in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)]
            for m in model.modules()
        ],
        "grad_mode": torch.is_grad_enabled(),
        "rng": torch.get_rng_state(),
    }


@pytest.fixture
def mixed() -> Toy:
    """Train mode with a part in eval, a part frozen, gradients pending and a hook of its own."""
    model = seeded(Toy).train()
    model.bn2.eval()
    model.conv1.requires_grad_(False)
    images, targets = batch(2, 16, 5)
    F.cross_entropy(model(images), targets).backward()
    model.conv2.register_forward_hook(lambda *_: None)
    return model


def break_down(*_: object) -> None:
    raise RuntimeError("broken on purpose")


@pytest.mark.parametrize("fault", [None, "forward", "layer", "unknown", "flat", "target"])
def test_the_model_comes_back_as_it_came(mixed: Toy, fault: str | None) -> None:
    images, targets = batch(3, 16, 5)
    if fault == "forward":
        mixed.fc.register_forward_pre_hook(break_down)
    if fault == "layer":
        mixed.conv2.register_forward_hook(break_down, prepend=True)
    layer = {"unknown": "conv9", "flat": "fc"}.get(fault, "conv2")
    before = state(mixed)
    with pytest.raises((RuntimeError, ValueError)) if fault else nullcontext():
        grad_cam(mixed, layer, images, targets + 5 if fault == "target" else targets)
    after = state(mixed)
    torch.testing.assert_close(after.pop("tensors"), before.pop("tensors"), rtol=0, atol=0)
    torch.testing.assert_close(after.pop("grads"), before.pop("grads"), rtol=0, atol=0)
    assert torch.equal(after.pop("rng"), before.pop("rng")) and after == before


@pytest.mark.parametrize(
    "run",
    [
        lambda model, images, targets: named_maps(model, 16),
        lambda model, images, targets: deletion_insertion(
            model, images, targets, center_prior(3, 16, 16), steps=2
        ),
    ],
)
@pytest.mark.parametrize("broken", [False, True])
def test_tracing_and_curves_leave_the_model_too(mixed: Toy, run: Callable, broken: bool) -> None:
    if broken:
        mixed.fc.register_forward_pre_hook(break_down)
    before = state(mixed)
    with pytest.raises(RuntimeError, match="on purpose") if broken else nullcontext():
        run(mixed, *batch(3, 16, 5))
    after = state(mixed)
    for key in ("tensors", "grads"):
        torch.testing.assert_close(after.pop(key), before.pop(key), rtol=0, atol=0)
    assert torch.equal(after.pop("rng"), before.pop("rng")) and after == before


@pytest.mark.parametrize(
    "compile_part",
    [
        torch.compile,
        lambda model: model.compile() or model,
        lambda model: model.conv2.compile() or model,
    ],
)
def test_a_compiled_model_is_refused(compile_part: Callable) -> None:
    model = compile_part(seeded(Toy))
    with pytest.raises(ValueError, match="compiled"):
        grad_cam(model, "conv2", *batch(1, 16, 5))
    with pytest.raises(ValueError, match="compiled"):
        named_maps(model, 16)


@pytest.mark.parametrize(
    ("layer", "shared"), [("conv3", False), ("fc", False), ("relu1", True), ("spare", False)]
)
def test_a_wrong_layer_is_answered_with_the_legal_ones(layer: str, shared: bool) -> None:
    """Unknown, without a map, run twice, never run."""
    model = seeded(lambda: Toy(shared=shared))
    model.spare = nn.Conv2d(3, 3, 1)
    legal = "conv1, pool, conv2, bn2" if shared else "conv1, relu1, pool, conv2, bn2, relu2"
    with pytest.raises(
        ValueError, match=f"'{layer}' is no layer with one map; choose from {legal}$"
    ):
        grad_cam(model, layer, *batch(2, 16, 5))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_layer_beside_the_road_is_refused(frozen: bool) -> None:
    model = seeded(Toy).requires_grad_(not frozen)
    model.side = nn.Conv2d(3, 3, 1)

    def look_aside(_module: nn.Module, inputs: tuple) -> None:
        model.side(inputs[0])

    model.conv1.register_forward_pre_hook(look_aside)
    with pytest.raises(ValueError, match="'side' does not reach the logits"):
        grad_cam(model, "side", *batch(2, 16, 5))


def test_named_maps_and_the_default_layer() -> None:
    model = seeded(Toy)
    assert named_maps(model, 16) == {
        "conv1": (6, 16, 16),
        "relu1": (6, 16, 16),
        "pool": (6, 8, 8),
        "conv2": (8, 8, 8),
        "bn2": (8, 8, 8),
        "relu2": (8, 8, 8),
    }
    assert "relu1" not in named_maps(seeded(lambda: Toy(shared=True)), 16)
    model.pool = nn.Sequential(nn.ZeroPad2d((0, 2, 0, 2)), nn.Identity(), nn.MaxPool2d(2))
    assert [name for name in named_maps(model, 16) if name.startswith("pool")] == ["pool.2", "pool"]
    model.pool = nn.MaxPool2d(2)
    assert default_layer(model, 16) == default_layer(model, 8) == "relu2"
    assert default_layer(model, 6) == "relu1"
    assert default_layer(model, 3) == "relu2", "the deepest of all where none has 4x4"


@pytest.mark.parametrize(
    ("network", "size", "layer"),
    [
        ("simple_cnn", 32, "blocks.2"),
        ("improved_cnn", 32, "blocks.2"),
        ("se_resnet18", 32, "layer4"),
        ("efficientnet_b2", 64, "_blocks.15"),
        ("efficientnet_b2", 32, "_blocks.7"),
    ],
)
def test_the_default_layer_is_a_whole_block(network: str, size: int, layer: str) -> None:
    """B2's last 4x4 map at 64 px lies inside block 16, whose output is 2x2: block 15 is taken."""
    model = build(network)
    assert default_layer(model, size) == layer and min(named_maps(model, size)[layer][1:]) == 4


def test_the_imagenet_stem_leaves_a_4x4_map_after_layer2() -> None:
    assert default_layer(build("se_resnet18", stem="imagenet"), 32) == "layer2"


class Corner(nn.Module):
    """Looks at nothing but the mean of the 4x4 pixels at the top left; two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        evidence = x[:, :, :4, :4].mean((1, 2, 3))
        return torch.stack([4 * evidence, -4 * evidence], 1)


def test_curves_of_a_model_that_looks_at_one_corner() -> None:
    images = torch.full((2, 3, 16, 16), -1.0)
    images[:, :, :4, :4] = 1.0
    true_map = torch.zeros(2, 16, 16)
    true_map[:, :4, :4] = 1.0
    targets = torch.zeros(2, dtype=torch.int64)
    sure = torch.tensor(8.0).sigmoid().item()

    deletion, insertion = deletion_insertion(Corner(), images, targets, true_map, steps=16)
    # the first sixteenth of the pixels is the corner: all evidence goes, or comes, in one step
    torch.testing.assert_close(deletion, torch.tensor([sure] + [0.5] * 16).expand(2, 17))
    torch.testing.assert_close(insertion[:, 1:], torch.full((2, 16), sure))
    assert (insertion[:, 0] < sure - 0.05).all()
    torch.testing.assert_close(area(deletion), torch.full((2,), ((sure + 0.5) / 2 + 15 * 0.5) / 16))
    torch.testing.assert_close(area(insertion), (insertion[:, 0] + sure) / 32 + 15 / 16 * sure)

    for control in (
        random_maps(2, 16, 16, torch.Generator().manual_seed(3)),
        center_prior(2, 16, 16),
        -true_map,
    ):
        other = deletion_insertion(Corner(), images, targets, control, steps=16)
        assert (area(deletion) < area(other[0])).all()
        assert (area(insertion) > area(other[1])).all()


def test_pixels_go_in_the_maps_order_and_ties_go_in_smooth_random_order() -> None:
    model, images = Corner(), torch.ones(2, 3, 8, 8)
    maps = torch.stack([torch.arange(64.0).view(8, 8), torch.zeros(8, 8)])
    curves = deletion_insertion(model, images, torch.zeros(2, dtype=torch.int64), maps, steps=5)
    assert len(model.seen) == 12 and curves.shape == (2, 2, 6)
    deleted = [model.seen[i][:, 0] == 0 for i in (2, 4, 6, 8, 10)]
    assert [gone[0].sum().item() for gone in deleted] == [13, 26, 38, 51, 64]
    assert all(gone[0].flatten()[64 - int(gone[0].sum()) :].all() for gone in deleted)
    tied = deleted[1][1]
    assert tied.sum() == 26 and not tied.flatten()[:26].all() and not tied.flatten()[-26:].all()
    # smooth, not a sprinkle: most neighbours share their fate, of which 58 in 112 would by chance
    assert (tied[1:] == tied[:-1]).sum() + (tied[:, 1:] == tied[:, :-1]).sum() > 85


def test_controls() -> None:
    drawn = [
        random_maps(3, 16, 24, torch.Generator().manual_seed(0), grid=(2, 3)) for _ in range(2)
    ]
    assert (
        torch.equal(*drawn)
        and drawn[0].shape == (3, 16, 24)
        and 0 <= drawn[0].min() <= drawn[0].max() <= 1
    )
    assert not torch.equal(drawn[0][0], drawn[0][1])
    prior = center_prior(2, 8, 12)
    assert (
        prior.shape == (2, 8, 12)
        and torch.equal(prior, prior.flip(1))
        and torch.equal(prior, prior.flip(2))
    )
    assert prior[0].argmax() == 3 * 12 + 5 and 0 <= prior.min() <= prior.max() <= 1
