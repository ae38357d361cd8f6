"""EfficientNet-B2 from efficientnet-pytorch, made lean for small images."""
import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.model import MBConvBlock
from efficientnet_pytorch.utils import Conv2dStaticSamePadding
from torch import Tensor, nn

from common.models.launches import SpatialMean, drop_connect_masks

# B2's own size: "same" padding is fixed for it, whatever the input, as ImageNet's weights know it.
PADDING_IMAGE_SIZE = 260


class DepthwiseConv(torch.autograd.Function):
    """A depthwise convolution whose weight gradient is summed tap by tap; elsewhere as `F.conv2d`.

    On a CPU oneDNN takes 130 to 330 ms for the weight gradient of one layer whose kernel is larger
    than its map (B2 at 64 px, batch 125, one core with AVX2), half of B2's step; the products below
    take 1 to 35 ms, since most taps of such a kernel meet few pixels and much padding.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, padding
        return F.conv2d(x, weight, None, stride, padding, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors  # (N, C, H, W), (C, 1, k, k)
        stride, padding = ctx.geometry
        grad_x = torch.nn.grad.conv2d_input(x.shape, weight, grad, stride, padding,
                                            groups=x.shape[1])
        # Channels last: every sum below runs along whole vectors of channels.
        x, grad = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)  # (N, H, W, C), (N, h, w, C)
        # Maps are square: rows and columns meet alike.
        meets = [meeting(tap - padding, stride, x.shape[1], grad.shape[1])
                 for tap in range(weight.shape[2])]
        sums = []
        for (seen_rows, rows), (seen_columns, columns) in itertools.product(meets, repeat=2):
            products = x[:, seen_rows, seen_columns] * grad[:, rows, columns]
            sums.append(products.sum((0, 1, 2)))
        return grad_x, torch.stack(sums, 1).view_as(weight), None, None


def meeting(shift: int, stride: int, inputs: int, outputs: int) -> tuple[slice, slice]:
    """Which inputs and outputs of one axis meet at a tap: output o reads input o · stride + shift.

    The padding, which no input is, is left out: where all of it is padding, both are empty.

    Args:
        inputs, outputs: how many there are.
    """
    first = max(0, math.ceil(-shift / stride))
    stop = max(first, min(outputs, math.ceil((inputs - shift) / stride)))
    return slice(first * stride + shift, stop * stride + shift, stride), slice(first, stop)


class LeanDepthwise(Conv2dStaticSamePadding):
    """The package's depthwise convolution, with `DepthwiseConv` where that is faster."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.static_padding(x)
        stride, padding, kernel = self.stride[0], self.padding[0], self.kernel_size[0]
        trains_on_cpu = x.device.type == "cpu" and torch.is_grad_enabled()
        larger_than_map = kernel > x.shape[2] // stride
        if trains_on_cpu and larger_than_map and not torch.is_autocast_enabled("cpu"):
            return DepthwiseConv.apply(x, self.weight, stride, padding)
        return self._conv_forward(x, self.weight, self.bias)


class LeanMBConv(MBConvBlock):
    """The package's MBConv block, numerically equal, without its cost on small images.

    SiLU for the memory-saving swish, squeeze-and-excitation as matrix products on (N, C), and the
    drop-connect mask from outside.
    """

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, C, H, W) → (N, C', H', W'); `mask` (N, 1, 1, 1) scales what the block adds."""
        x = inputs
        if self._block_args.expand_ratio != 1:
            x = F.silu(self._bn0(self._expand_conv(x)))
        x = F.silu(self._bn1(self._depthwise_conv(x)))
        reduce, expand = self._se_reduce, self._se_expand  # 1×1 convolutions in the state dict
        squeezed = SpatialMean.apply(x)  # (N, C)
        squeezed = F.silu(F.linear(squeezed, reduce.weight.flatten(1), reduce.bias))
        gate = torch.sigmoid(F.linear(squeezed, expand.weight.flatten(1), expand.bias))
        x = self._bn2(self._project_conv(x * gate[:, :, None, None]))
        if x.shape != inputs.shape:
            return x
        return x + inputs if mask is None else torch.addcmul(inputs, x, mask)


class LeanEfficientNet(EfficientNet):
    """The package's network with the drop-connect masks of all blocks drawn at once."""

    def extract_features(self, inputs: Tensor) -> Tensor:
        """(N, 3, H, W) → (N, 1408, h, w)."""
        x = self._swish(self._bn0(self._conv_stem(inputs)))
        blocks = len(self._blocks)
        masks = [None] * blocks
        if self.training:
            masks = drop_connect_masks(x, blocks, self._global_params.drop_connect_rate)
        for block, mask in zip(self._blocks, masks):
            x = block(x, mask)
        return self._swish(self._bn1(self._conv_head(x)))


def efficientnet_b2(num_classes: int = 10, padding_image_size: int = PADDING_IMAGE_SIZE,
                    dropout: float = 0.3) -> EfficientNet:
    """EfficientNet-B2 from efficientnet-pytorch, made lean; 7,715,084 parameters for 10 classes.

    Symmetric zero-padding (22 of 24 pads at 260) is folded into the convolutions; the state-dict
    keys are the package's.

    Args:
        padding_image_size: the input size for which "same" padding is computed; fixed at
            construction, not in the state dict.
    """
    model = EfficientNet.from_name("efficientnet-b2", num_classes=num_classes,
                                   image_size=padding_image_size, dropout_rate=dropout)
    # The package builds its parts itself; only their `forward` differs.
    model.__class__ = LeanEfficientNet
    for module in model.modules():
        if isinstance(module, MBConvBlock):
            module.__class__ = LeanMBConv
            module._depthwise_conv.__class__ = LeanDepthwise
        elif isinstance(module, nn.Conv2d) and isinstance(module.static_padding, nn.ZeroPad2d):
            before, after, *_ = module.static_padding.padding  # maps are square
            if before == after:
                module.padding, module.static_padding = (before, before), nn.Identity()
    return model
