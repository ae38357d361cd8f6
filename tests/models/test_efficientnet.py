"""EfficientNet-B2's own parts against PyTorch's and the package's."""
import pytest
import torch
import torch.nn.functional as F
from efficientnet_pytorch import EfficientNet
from torch import nn

from common.models import efficientnet
from common.models.efficientnet import DepthwiseConv, efficientnet_b2


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_depthwise_gradients_equal_torchs(size, kernel, stride, layout):
    torch.manual_seed(0)
    x = torch.randn(3, 4, size, size, dtype=torch.float64).contiguous(memory_format=layout)
    weight = torch.randn(4, 1, kernel, kernel, dtype=torch.float64)
    found = []
    for convolve in (DepthwiseConv.apply, lambda *a: F.conv2d(*a[:2], None, *a[2:], groups=4)):
        inputs = [tensor.clone().requires_grad_() for tensor in (x, weight)]
        y = convolve(*inputs, stride, kernel // 2)
        # Not y.sum(), under which every tap would have the same gradient.
        gradients = torch.autograd.grad((y * torch.arange(y.numel()).view(y.shape)).sum(), inputs)
        found.append((y, *gradients))
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [32, 64])
def test_gradients_equal_the_packages_where_taps_are_summed(size, monkeypatch):
    """In fp64; the last blocks, whose kernels exceed their maps, through `DepthwiseConv`."""
    torch.manual_seed(0)
    theirs = EfficientNet.from_name("efficientnet-b2", num_classes=10, image_size=260).double()
    ours = efficientnet_b2().double()
    ours.load_state_dict(theirs.state_dict())
    calls = []

    class Counted(DepthwiseConv):
        @staticmethod
        def backward(ctx, grad):
            calls.append(grad.shape)
            return DepthwiseConv.backward(ctx, grad)

    monkeypatch.setattr(efficientnet, "DepthwiseConv", Counted)
    images = torch.rand(6, 3, size, size, dtype=torch.float64)
    target = torch.randn(6, 10, dtype=torch.float64)
    for model in (theirs, ours):
        model._global_params = model._global_params._replace(drop_connect_rate=0)
        model._dropout.p = 0.0
        (model.train()(images) * target).sum().backward()
    assert len(calls) >= 7
    for a, b in zip(theirs.parameters(), ours.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-8)


def test_drop_connect_keeps_the_mean_and_drops_deeper_blocks_more():
    """The masks as blocks get them under bf16: drawn in fp32, one row of chances a block."""
    model = efficientnet_b2().train()
    seen = []

    class Watched(nn.Module):
        def forward(self, x, mask):
            seen.append(mask)
            return x

    blocks = len(model._blocks)
    model._blocks = nn.ModuleList(Watched() for _ in range(blocks))
    model._conv_head = nn.Conv2d(32, 1408, 1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model.extract_features(torch.zeros(4000, 3, 2, 2))
    rate = 0.2  # of a block behind the last
    for i, mask in enumerate(seen):
        assert mask.shape == (4000, 1, 1, 1) and mask.dtype == torch.bfloat16
        dropped, expected = float((mask == 0).float().mean()), rate * i / blocks
        # Five standard deviations; a bf16 draw would err by up to 0.4 % near a kept share of 1.
        assert abs(dropped - expected) <= 5 * (expected * (1 - expected) / 4000) ** 0.5
        assert float(mask.float().mean()) == pytest.approx(1.0, abs=0.05)
    assert not seen[0].eq(0).any() and seen[-1].unique().numel() == 2
    assert not torch.equal(seen[-1] == 0, seen[-2] == 0), "each block draws for itself"


def test_evaluation_drops_nothing():
    torch.manual_seed(0)
    model, images = efficientnet_b2().eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(images), model(images))
