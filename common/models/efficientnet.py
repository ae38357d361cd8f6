"""EfficientNet-B2 from efficientnet-pytorch, made lean for small images."""
import torch
import torch.nn.functional as F
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.model import MBConvBlock
from efficientnet_pytorch.utils import Conv2dStaticSamePadding
from torch import Tensor, nn

from common.models.launches import WithSpatialMean, drop_connect_masks

# B2's own size: "same" padding is fixed for it, whatever the input, as ImageNet's weights know it.
PADDING_IMAGE_SIZE = 260


class LeanDepthwise(Conv2dStaticSamePadding):
    """The package's depthwise convolution, without the taps that meet nothing but padding.

    B2's maps end at 2×2 where images have 64 px: of a 5×5 kernel 16 taps then read zeros only. They
    add nothing and have no gradient, but every library computes with them.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = self.static_padding(x)
        weight, padding, size = self.weight, self.padding[0], max(x.shape[2:])
        # From a pixel to the farthest other one it is size - 1 steps; what lies beyond is padding.
        beyond = padding - (size - 1)
        if beyond > 0:
            weight, padding = F.pad(weight, [-beyond] * 4), padding - beyond
        if x.device.type == "cpu" and weight.shape[2] > size:
            # oneDNN is slow at the weight gradient of a kernel larger than its map, by up to seven
            # times: a pixel of the padding goes into the map, then 3×3 fits 2×2, and 5×5 fits 4×4.
            x, padding = F.pad(x, [1] * 4), padding - 1
        return F.conv2d(x, weight, self.bias, self.stride, padding, groups=self.groups)


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
        x, squeezed = WithSpatialMean.apply(x)  # (N, C, H', W'), (N, C)
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
