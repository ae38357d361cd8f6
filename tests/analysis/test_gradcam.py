"""Heat maps against finite differences, a second formula and another library's values; what they
leave alone; deletion and insertion curves."""
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import cv2
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.analysis.faithfulness import area, center_prior, deletion_insertion
from common.analysis.gradcam import (activations_and_gradients, default_layer, fine_layers,
                                     grad_cam, hires_cam, named_maps)
from common.models.build import build

SIZES = {"simple_cnn": 32, "improved_cnn": 32, "se_resnet18": 32, "efficientnet_b2": 64}


class Toy(nn.Module):
    """Two convolutions, in-place activations, dropout, global average pooling, a linear head."""

    def __init__(self, shared: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.relu1 = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.relu2 = self.relu1 if shared else nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        return self.fc(self.drop(x.mean((2, 3))))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """The model with seeded weights and BatchNorm statistics that are not the identity."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)
    return model


def batch(n: int, size: int, classes: int) -> tuple[Tensor, Tensor]:
    """(n, 3, size, size) images and (n,) targets."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n, 3, size, size, generator=generator)
    return images, torch.randint(classes, (n,), generator=generator)


def normalised(cam: Tensor, height: int, width: int) -> Tensor:
    """ReLU, enlarged by OpenCV and divided by the maximum, or zeros."""
    large = torch.from_numpy(cv2.resize(cam.clamp(min=0).numpy(), (width, height)))
    return large / large.max() if large.max() > 0 else large


def second_formula(model: nn.Module, image: Tensor, target: int,
                   names: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Each layer's output and gradient, (C, h, w), from the natural graph of one image."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable:
        """Hook that keeps the output and passes on a copy for in-place operations."""
        return lambda _module, _inputs, output: kept.setdefault(name, output).clone()

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    logits = model.eval()(image[None].clone().requires_grad_())
    for handle in handles:
        handle.remove()
    gradients = torch.autograd.grad(logits[0, target], [kept[name] for name in names])
    return {name: (kept[name][0].detach(), gradient[0])
            for name, gradient in zip(names, gradients)}


@pytest.mark.parametrize("name", ["conv1", "relu1", "pool", "conv2", "bn2", "relu2"])
def test_finite_differences(name: str) -> None:
    """Shifting a channel by e changes the logit by e * h * w times its weight: no autograd. The
    activations work in place, and the images are oblong."""
    model = seeded(Toy).double().eval()
    images, targets = batch(2, 12, 5)
    images, layer, epsilon = images[:, :, :8].double(), model.get_submodule(name), 1e-6

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

    maps = grad_cam(model, name, images, targets)
    for image, target, image_map in zip(images, targets.tolist(), maps):
        activation = logit(image, target, 0, 0.0)[1]
        cam = torch.zeros_like(activation[0])
        for c, channel in enumerate(activation):
            rise, fall = (logit(image, target, c, shift)[0] for shift in (epsilon, -epsilon))
            cam += (rise - fall) / (2 * epsilon) / channel.numel() * channel
        torch.testing.assert_close(image_map, normalised(cam, 8, 12), atol=1e-6, rtol=0)


@pytest.mark.parametrize("network", SIZES)
def test_second_formula(network: str) -> None:
    """Outputs and gradients of all layers at once, in a batch, are those of each image alone; and
    the heat maps are what the papers make of them. In float64: only formulas differ."""
    size = SIZES[network]
    model = seeded(lambda: build(network)).double()
    names = list(named_maps(model, size))
    images, targets = batch(2, size, 10)
    found = activations_and_gradients(model, names, images.double(), targets)
    layer = default_layer(model, size)
    two = [names[len(names) // 2], layer]
    cams = grad_cam(model, layer, images.double(), targets)
    summed = hires_cam(model, two, images.double(), targets)
    for i, (image, target) in enumerate(zip(images.double(), targets.tolist())):
        expected = second_formula(model, image, target, names)
        for name, (activations, gradients) in zip(names, found):
            torch.testing.assert_close((activations[i], gradients[i]), expected[name], msg=name)
        activation, gradient = expected[layer]
        cam = normalised(torch.einsum("chw,c->hw", activation, gradient.mean((1, 2))), size, size)
        torch.testing.assert_close(cams[i], cam, atol=1e-5, rtol=0)
        maps = [normalised(torch.mul(*expected[name]).sum(0), size, size) for name in two]
        total = sum(one / one.mean().clamp_min(1e-30) for one in maps)
        torch.testing.assert_close(summed[i], total / total.max(), atol=1e-5, rtol=0)
    plain = grad_cam(model.float(), layer, images, targets)
    assert plain.shape == (2, size, size) and plain.dtype == torch.float32
    torch.testing.assert_close(plain.double(), cams, atol=1e-4, rtol=0)


def test_hirescam_of_a_linear_tail_is_what_each_place_contributes() -> None:
    """Zeroing a place of the last map lowers the logit by just what the heat map shows there; the
    places' sum and the bias are the logit. No autograd, and not Grad-CAM's property."""
    model = seeded(Toy).double().eval()
    images, targets = batch(2, 8, 5)
    images, one_by_one = images.double(), torch.arange(2)
    [(activation, gradient)] = activations_and_gradients(model, ["relu2"], images, targets)
    shown = (activation * gradient).sum(1)
    with torch.no_grad():
        logits = model(images)[one_by_one, targets]
        for y, x in torch.cartesian_prod(torch.arange(4), torch.arange(4)).tolist():
            def blank(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
                return output.index_put((torch.tensor([[0], [1]]), torch.arange(8),
                                         torch.tensor(y), torch.tensor(x)),
                                        torch.zeros((), dtype=torch.float64))

            with model.relu2.register_forward_hook(blank):
                without = model(images)[one_by_one, targets]
            torch.testing.assert_close(logits - without, shown[:, y, x])
    torch.testing.assert_close(shown.sum((1, 2)) + model.fc.bias[targets], logits)


class Waves(nn.Module):
    """Two convolutions and a linear layer whose weights are sines: the same on every machine."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 5, 3, stride=2, padding=1)
        self.fc = nn.Linear(80, 3)
        for k, p in enumerate(self.parameters()):
            p.data = torch.sin(torch.arange(p.numel()) * (1.3 + k) + k).view_as(p) / 2

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv2(torch.relu(self.conv1(x)))).flatten(1))


@pytest.mark.parametrize(("method", "expected"), [
    ("grad_cam", [0.0271, 0.015, 0.0007, 0.0061, 0.0093, -0.0031, -0.0025, 0.0088,
                  0.0067, -0.003, -0.003, -0.0008, 0.0081, -0.0017, -0.0075, 0.0023]),
    ("hires_cam", [0.0027, 0.0651, 0.1662, -0.0322, -0.0123, -0.0109, -0.0014, -0.0111,
                   0.1212, -0.0005, -0.015, -0.0617, -0.0624, -0.0181, -0.002, 0.0571]),
])
def test_another_librarys_values(method: str, expected: list[float]) -> None:
    """What pytorch-grad-cam 1.5.7 gives for the first image at conv2, before its ReLU."""
    model = Waves()
    images = torch.cos(torch.arange(2 * 3 * 64) * 0.7).view(2, 3, 8, 8)
    targets = torch.tensor([0, 2])
    wanted = normalised(torch.tensor(expected).view(4, 4), 8, 8)
    if method == "grad_cam":
        found = grad_cam(model, "conv2", images, targets)
    else:
        found = hires_cam(model, ["conv2"], images, targets)
    torch.testing.assert_close(found[0], wanted, atol=5e-3, rtol=0)  # theirs have four decimals


@pytest.mark.parametrize("names", [
    ["conv1", "relu1", "pool", "conv2", "bn2", "relu2"], ["relu2", "conv2", "conv1"]])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("context", [nullcontext, torch.no_grad, torch.inference_mode,
                                     lambda: torch.autocast("cpu", torch.bfloat16)])
def test_several_layers_at_once_give_what_each_gives_alone(
    names: list[str], frozen: bool, context: Callable
) -> None:
    """Though the first to run is the root of the graph, and activations work in place; frozen
    weights and the caller's context change nothing."""
    model = seeded(Toy).requires_grad_(not frozen)
    images, targets = batch(3, 16, 5)
    with context():
        together = activations_and_gradients(model, names, images * 1, targets * 1)
    for name, found in zip(names, together, strict=True):
        [alone] = activations_and_gradients(seeded(Toy), [name], images, targets)
        torch.testing.assert_close(found, alone, msg=name)


class Fork(Toy):
    """A shortcut that runs before the layers beside it, of which it knows nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.shortcut = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        x = self.bn2(self.conv2(self.relu1(self.conv1(x))))
        return self.fc((x + shortcut).mean((2, 3)))


@pytest.mark.parametrize("frozen", [False, True])
def test_layers_of_two_branches_have_both_their_gradients(frozen: bool) -> None:
    model, names = seeded(Fork).requires_grad_(not frozen), ["conv2", "shortcut", "relu1"]
    images, targets = batch(3, 16, 5)
    for name, found in zip(names, activations_and_gradients(model, names, images, targets)):
        [alone] = activations_and_gradients(seeded(Fork), [name], images, targets)
        torch.testing.assert_close(found, alone, msg=name)


def test_maps_without_evidence_stay_zero_and_leave_the_others() -> None:
    """A layer whose map is all zeros is not divided by its mean."""
    model = seeded(Toy)
    with torch.no_grad():
        model.fc.weight[2] = -model.fc.weight[2].abs()  # relu2's activations all speak against it
    images, targets = batch(2, 16, 5)[0], torch.full((2,), 2)
    assert not grad_cam(model, "relu2", images, targets).any()
    assert not hires_cam(model, ["relu2"], images, targets).any()
    torch.testing.assert_close(hires_cam(model, ["conv1", "relu2"], images, targets),
                               hires_cam(model, ["conv1"], images, targets))


def state(model: nn.Module) -> dict:
    """All that Grad-CAM could leave changed, by value."""
    return {
        "tensors": {name: value.clone() for name, value in model.state_dict().items()},
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "rng": torch.get_rng_state(),
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "training": [m.training for m in model.modules()],
        "hooks": [
            [list(hooks) for hooks in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)]
            for m in model.modules()
        ],
        "grad_mode": torch.is_grad_enabled(),
    }


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """A block after which the model is as before."""
    before = state(model)
    yield
    after = state(model)
    for key in ("tensors", "grads", "rng"):
        torch.testing.assert_close(after.pop(key), before.pop(key), rtol=0, atol=0)
    assert after == before


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
    failure = pytest.raises((RuntimeError, ValueError)) if fault else nullcontext()
    with unchanged(mixed), failure:
        hires_cam(mixed, ["conv1", layer], images, targets + 5 if fault == "target" else targets)


@pytest.mark.parametrize("run", [
    lambda model, images, targets: named_maps(model, 16),
    lambda model, images, targets: deletion_insertion(
        model, images, targets, center_prior(3, 16, 16)[None]),
])
@pytest.mark.parametrize("broken", [False, True])
def test_tracing_and_curves_leave_the_model_too(mixed: Toy, run: Callable, broken: bool) -> None:
    if broken:
        mixed.fc.register_forward_pre_hook(break_down)
    failure = pytest.raises(RuntimeError, match="on purpose") if broken else nullcontext()
    with unchanged(mixed), failure:
        run(mixed, *batch(3, 16, 5))


@pytest.mark.parametrize("compile_part", [
    torch.compile, lambda model: model.compile() or model,
    lambda model: model.conv2.compile() or model,
])
def test_a_compiled_model_is_refused(compile_part: Callable) -> None:
    with pytest.raises(ValueError, match="compiled"):
        grad_cam(compile_part(seeded(Toy)), "conv2", *batch(1, 16, 5))


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
    for layers in (["side"], ["conv2", "side"]):
        with pytest.raises(ValueError, match="'side' does not reach the logits"):
            hires_cam(model, layers, *batch(2, 16, 5))


def test_named_maps_and_the_default_layer() -> None:
    model = seeded(Toy)
    assert named_maps(model, 16) == {
        "conv1": (6, 16, 16), "relu1": (6, 16, 16), "pool": (6, 8, 8),
        "conv2": (8, 8, 8), "bn2": (8, 8, 8), "relu2": (8, 8, 8)}
    assert default_layer(model, 16) == default_layer(model, 8) == "relu2"
    assert default_layer(model, 6) == "relu1"
    assert default_layer(model, 3) == "relu2", "the deepest of all where none has 4x4"
    model.pool = nn.Sequential(nn.ZeroPad2d((0, 2, 0, 2)), nn.Identity(), nn.MaxPool2d(2))
    assert [name for name in named_maps(model, 16) if name.startswith("pool")] == ["pool.2", "pool"]


@pytest.mark.parametrize(("network", "size", "arguments", "layer", "layers"), [
    ("simple_cnn", 32, {}, "blocks.2", "blocks.0 blocks.1 blocks.2"),
    ("improved_cnn", 64, {}, "blocks.2", "blocks.0 blocks.1 blocks.2"),
    ("se_resnet18", 32, {}, "layer4", "layer1 layer2 layer3 layer4"),
    ("se_resnet18", 32, {"stem": "imagenet"}, "layer2", "bn1 layer1 layer2"),
    ("efficientnet_b2", 64, {}, "_blocks.15", "_blocks.1 _blocks.4 _blocks.7"),
    ("efficientnet_b2", 32, {}, "_blocks.7", "_blocks.1 _blocks.4 _blocks.7"),
    ("efficientnet_b2", 96, {}, "_blocks.15", "_blocks.1 _blocks.4 _blocks.7"),
])
def test_the_layers_are_whole_blocks(
    network: str, size: int, arguments: dict, layer: str, layers: str
) -> None:
    """B2's last 4x4 map at 64 px lies inside block 16, whose output is 2x2: block 15 is taken; of
    HiResCAM's layers a cell is at most 8 pixels wide."""
    model = build(network, input_size=size, **arguments)
    assert default_layer(model, size) == layer
    assert fine_layers(model, size) == layers.split()


def test_a_network_of_coarse_maps_alone_is_asked_at_its_deepest() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 16, stride=16), nn.Flatten(), nn.Linear(16, 2))
    assert fine_layers(model, 32) == [default_layer(model, 32)] == ["0"]


class Corner(nn.Module):
    """Looks at nothing but the mean of the 4x4 pixels at the top left; two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        evidence = x[:, :, :4, :4].mean((1, 2, 3))
        return torch.stack([4 * evidence, -4 * evidence], 1)


def test_curves_of_a_model_that_looks_at_one_corner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.analysis.faithfulness.SHARES", [i / 16 for i in range(17)])
    images = torch.full((2, 3, 16, 16), -1.0)
    images[:, :, :4, :4] = 1.0
    true_map = (images > 0).float()[:, 0]
    targets = torch.zeros(2, dtype=torch.int64)
    sure = torch.tensor(8.0).sigmoid().item()
    maps = torch.stack([true_map, torch.zeros(2, 16, 16), center_prior(2, 16, 16), -true_map])
    (deletion, insertion), *others = deletion_insertion(Corner(), images, targets, maps)
    # The first sixteenth of the pixels is the corner: all evidence goes, or comes, in one step.
    torch.testing.assert_close(deletion, torch.tensor([sure] + [0.5] * 16).expand(2, 17))
    torch.testing.assert_close(insertion[:, 1:], torch.full((2, 16), sure))
    assert (insertion[:, 0] < sure - 0.05).all()
    fallen, risen = area(deletion), area(insertion)
    torch.testing.assert_close(fallen, torch.full((2,), ((sure + 0.5) / 2 + 15 * 0.5) / 16))
    for falling, rising in others:
        assert (fallen < area(falling)).all() and (risen > area(rising)).all()


def test_pixels_go_in_the_maps_order_and_ties_go_in_smooth_random_order() -> None:
    model, images = Corner(), torch.ones(2, 3, 8, 8)
    maps = torch.stack([torch.arange(64.0).view(8, 8), torch.zeros(8, 8)])
    targets = torch.zeros(2, dtype=torch.int64)
    curves = deletion_insertion(model, images, targets, maps[None])
    # The whole, the blurred and the empty image, which all maps share, and three shares each way.
    assert len(model.seen) == 3 + 6 and curves.shape == (1, 2, 2, 5)
    deleted = [model.seen[i][:, 0] == 0 for i in (3, 4, 5)]
    for (gone, _), pixels in zip(deleted, (6, 19, 38)):
        assert gone.sum() == pixels and gone.flatten()[64 - pixels:].all()
    tied = deleted[2][1]
    assert tied.sum() == 38 and not tied.flatten()[:38].all() and not tied.flatten()[-38:].all()
    # smooth, not a sprinkle: most neighbours share their fate, of which 58 in 112 would by chance
    assert (tied[1:] == tied[:-1]).sum() + (tied[:, 1:] == tied[:, :-1]).sum() > 85


def test_the_centre_is_highest_in_the_middle_and_symmetric() -> None:
    prior = center_prior(2, 8, 12)
    assert prior.shape == (2, 8, 12) and 0 <= prior.min() <= prior.max() <= 1
    assert torch.equal(prior, prior.flip(1)) and torch.equal(prior, prior.flip(2))
    assert prior[0].argmax() == 3 * 12 + 5
