"""EfficientNet-B2's own parts against PyTorch's and the package's."""
import pytest
import torch
import torch.nn.functional as F
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import Conv2dStaticSamePadding
from torch import nn

from common.models.networks import PADDING_IMAGE_SIZE, LeanDepthwise, efficientnet_b2
from common.models.launches import WithSpatialMean, cast_weights, drop_connect_masks


def without_chance(model):
    """The model without dropout and drop-connect."""
    model._global_params = model._global_params._replace(drop_connect_rate=0)
    model._dropout.p = 0.0
    return model


def assert_equal_with_gradients(ours, theirs, inputs, **tolerances):
    """Assert that two functions of the same inputs have equal values and equal gradients."""
    found = []
    for function in (ours, theirs):
        y = function(*inputs)
        # Not y.sum(), under which every tap would have the same gradient.
        weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
        found.append((y, *torch.autograd.grad((y * weights).sum(), inputs)))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, **tolerances)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3), (4, 4), (8, 8), (2, 8)])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_cropped_kernel_computes_the_same(size, kernel, stride, layout):
    torch.manual_seed(0)
    x = torch.randn(3, 4, *size, dtype=torch.float64).contiguous(memory_format=layout)
    weight = torch.randn(4, 1, kernel, kernel, dtype=torch.float64)
    conv = nn.Conv2d(4, 4, kernel, stride, kernel // 2, groups=4, bias=False)
    conv.__class__, conv.static_padding = LeanDepthwise, nn.Identity()
    assert_equal_with_gradients(
        lambda x, weight: torch.func.functional_call(conv, {"weight": weight}, x),
        lambda x, weight: F.conv2d(x, weight, None, stride, kernel // 2, groups=4),
        (x.requires_grad_(), weight.requires_grad_()), rtol=1e-12, atol=1e-12)


def test_cropped_kernels_compute_the_same_in_bf16(monkeypatch):
    """Logits and gradients under autocast, on weights that are cast together."""
    torch.manual_seed(0)
    # At 32 px 11 of B2's 23 depthwise kernels reach beyond their map, at 64 px 4.
    model, images, found = efficientnet_b2().eval(), torch.rand(2, 3, 32, 32), []
    for forward in (LeanDepthwise.forward, Conv2dStaticSamePadding.forward):
        monkeypatch.setattr(LeanDepthwise, "forward", forward)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            weights = cast_weights(model, torch.bfloat16)
            logits = torch.func.functional_call(model, weights, images).float()
        gradients = torch.autograd.grad(logits.square().sum(), model.parameters())
        found.append((logits, torch.nn.utils.parameters_to_vector(gradients)))
    for ours, theirs in zip(*found):
        assert 0 < theirs.norm() and (ours - theirs).norm() <= 0.1 * theirs.norm()


@pytest.mark.parametrize("size", [32, 64])
def test_lean_b2_equals_the_package(size):
    """In fp64: outputs in both modes, gradients, BatchNorm's statistics."""
    torch.manual_seed(0)
    theirs = EfficientNet.from_name("efficientnet-b2", num_classes=10,
                                    image_size=PADDING_IMAGE_SIZE).double()
    ours = efficientnet_b2().double()
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(6, 3, size, size, dtype=torch.float64)
    weight = torch.randn(6, 10, dtype=torch.float64)
    for mode in (True, False):
        outputs = [without_chance(model).train(mode)(images) for model in (theirs, ours)]
        torch.testing.assert_close(*outputs, rtol=1e-8, atol=1e-11)
        if mode:
            for output in outputs:
                (output * weight).sum().backward()
    for a, b in zip(theirs.parameters(), ours.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-8)
    for a, b in zip(theirs.buffers(), ours.buffers()):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


def test_b2_padding_depends_on_the_image_size_it_was_built_for():
    """Same state dict, other function: why a checkpoint stores the size."""
    at_260, at_64 = (efficientnet_b2(padding_image_size=size) for size in (260, 64))
    at_64.load_state_dict(at_260.state_dict())
    images = torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        # Batch statistics: fresh running ones would shrink every difference to nothing.
        features = [without_chance(model).train().extract_features(images)
                    for model in (at_260, at_64)]
    difference = (features[0] - features[1]).abs().mean()
    assert difference > 0.05 * features[0].abs().mean()
    pads = [m for m in at_260.modules() if isinstance(m, nn.ZeroPad2d)]
    # The stem and one block; the other 22 are folded.
    assert [m.padding for m in pads] == [(0, 1, 0, 1), (0, 1, 0, 1)]


@pytest.mark.parametrize("size", [1, 3, 4])
def test_a_map_and_its_mean_have_the_gradient_of_both_uses(size):
    torch.manual_seed(0)
    x = torch.randn(2, 3, size, size, dtype=torch.float64, requires_grad=True)

    def gated(x, mean):
        return x * mean.sigmoid()[:, :, None, None]

    assert_equal_with_gradients(
        lambda x: gated(*WithSpatialMean.apply(x)), lambda x: gated(x, x.mean((2, 3))), (x,),
        rtol=1e-12, atol=1e-12)


def test_drop_connect_keeps_the_mean_and_drops_deeper_blocks_more():
    """Masks for bf16 too: drawn in fp32, one row of chances a block."""
    torch.manual_seed(0)
    blocks, images, rate = 23, 4000, 0.2
    masks = drop_connect_masks(torch.zeros(images, 3, 2, 2).bfloat16(), blocks, rate)
    assert masks.shape == (blocks, images, 1, 1, 1) and masks.dtype == torch.bfloat16
    dropped = (masks == 0).float().mean((1, 2, 3, 4))  # of the images, for each block
    expected = rate * torch.arange(blocks) / blocks
    # Five standard deviations; a bf16 draw would err by up to 0.4 % near a kept share of 1.
    assert ((dropped - expected).abs() <= 5 * (expected * (1 - expected) / images).sqrt()).all()
    assert masks.float().mean((1, 2, 3, 4)).tolist() == pytest.approx([1.0] * blocks, abs=0.05)
    assert not torch.equal(masks[-1] == 0, masks[-2] == 0), "each block draws for itself"


def test_only_training_drops_blocks():
    torch.manual_seed(0)
    model, images = efficientnet_b2(), torch.rand(2, 3, 64, 64)
    model._dropout.p = 0.0
    with torch.no_grad():
        assert torch.equal(model.eval()(images), model(images))
        assert not torch.equal(model.train()(images), model(images))
