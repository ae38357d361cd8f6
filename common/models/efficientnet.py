"""EfficientNet-B2 from efficientnet-pytorch, made lean for small images."""
from typing import Any

import torch
import torch.nn.functional as F
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.model import MBConvBlock
from efficientnet_pytorch.utils import Conv2dStaticSamePadding
from torch import nn

from common.models.se_resnet import SpatialMean

PADDING_IMAGE_SIZE = 260  # B2's own size: the "same" padding is fixed for it, whatever the input, as the ImageNet weights were trained


class DepthwiseConv(torch.autograd.Function):
    """A depthwise convolution whose weight gradient is summed tap by tap; elsewhere as `F.conv2d`.

    On a CPU oneDNN takes 50 to 140 ms for the weight gradient of one layer whose kernel is larger than its map (B2 at 64 px,
    batch 125, one core with AVX2), half of B2's step; the k² products below take 1 to 10 ms.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, stride: int, padding: int) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding = ctx.stride, ctx.padding
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.nn.grad.conv2d_input(x.shape, weight, grad, stride, padding, groups=x.shape[1])
        if ctx.needs_input_grad[1]:
            grad_weight = torch.empty_like(weight)  # (C, 1, k, k)
            images, channels, height, width = x.shape
            padded = x.new_zeros(images, height + 2 * padding, width + 2 * padding, channels)
            padded[:, padding : padding + height, padding : padding + width] = x.permute(0, 2, 3, 1)
            grad = grad.permute(0, 2, 3, 1)  # channels last: every sum below runs along whole vectors of channels
            rows, columns = stride * grad.shape[1], stride * grad.shape[2]
            for i in range(weight.shape[2]):
                for j in range(weight.shape[3]):
                    seen = padded[:, i : i + rows : stride, j : j + columns : stride]  # what this tap saw of the input
                    grad_weight[:, 0, i, j] = (seen * grad).sum((0, 1, 2))
        return grad_x, grad_weight, None, None


class LeanDepthwise(Conv2dStaticSamePadding):
    """The package's depthwise convolution, with `DepthwiseConv` where that is faster."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.static_padding(x)
        stride, padding, kernel = self.stride[0], self.padding[0], self.kernel_size[0]
        map_size = (x.shape[2] + 2 * padding - kernel) // stride + 1
        plain = x.device.type == "cpu" and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        if plain and kernel > map_size:
            return DepthwiseConv.apply(x, self.weight, stride, padding)
        return self._conv_forward(x, self.weight, self.bias)


class LeanMBConv(MBConvBlock):
    """The package's MBConv block, numerically equal, without its cost on small images.

    SiLU for the memory-saving swish, squeeze-and-excitation as matrix products on (N, C), and the drop-connect mask drawn
    in fp32: drawn in bf16 it distorts small drop rates.
    """

    def forward(self, inputs: torch.Tensor, drop_connect_rate: float | None = None) -> torch.Tensor:
        x = inputs
        if self._block_args.expand_ratio != 1:
            x = F.silu(self._bn0(self._expand_conv(x)))
        x = F.silu(self._bn1(self._depthwise_conv(x)))
        if self.has_se:
            squeezed = SpatialMean.apply(x)
            squeezed = F.silu(F.linear(squeezed, self._se_reduce.weight.flatten(1), self._se_reduce.bias))
            gate = torch.sigmoid(F.linear(squeezed, self._se_expand.weight.flatten(1), self._se_expand.bias))
            x = x * gate[:, :, None, None]
        x = self._bn2(self._project_conv(x))
        if self.id_skip and self._block_args.stride == 1 and x.shape[1] == inputs.shape[1]:
            if drop_connect_rate and self.training:
                keep = 1 - drop_connect_rate
                mask = torch.rand(len(x), 1, 1, 1, device=x.device) < keep
                return torch.addcmul(inputs, x, (mask / keep).to(x.dtype))
            return x + inputs
        return x


def efficientnet_b2(num_classes: int = 10, bn_momentum: float = 0.01, padding_image_size: int = PADDING_IMAGE_SIZE,
                    dropout: float = 0.3) -> EfficientNet:
    """EfficientNet-B2 from efficientnet-pytorch, made lean; 7,715,084 parameters for 10 classes.

    Symmetric zero-padding (22 of 24 pads at 260) is folded into the convolutions; the state-dict keys are the package's.

    Args:
        bn_momentum: PyTorch's sense; the package's own is 0.01, which needs hundreds of steps to follow the data.
        padding_image_size: the input size for which "same" padding is computed; fixed at construction, not in the state dict.
    """
    model = EfficientNet.from_name("efficientnet-b2", num_classes=num_classes, image_size=padding_image_size, dropout_rate=dropout)
    model.set_swish(memory_efficient=False)
    for module in model.modules():
        if isinstance(module, MBConvBlock):
            module.__class__ = LeanMBConv  # the package builds its blocks itself; only `forward` differs
            module._depthwise_conv.__class__ = LeanDepthwise
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = bn_momentum
        elif isinstance(module, nn.Conv2d) and isinstance(module.static_padding, nn.ZeroPad2d):
            left, right, top, bottom = module.static_padding.padding
            if left == right and top == bottom:
                module.padding, module.static_padding = (top, left), nn.Identity()
    return model
