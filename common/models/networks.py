"""The four networks, from three convolutions to EfficientNet-B2."""
import torch
import torch.nn.functional as F
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.model import MBConvBlock
from efficientnet_pytorch.utils import Conv2dStaticSamePadding
from torch import Tensor, nn

from common.models.launches import WithSpatialMean, drop_connect_masks

# B2's own size: "same" padding is fixed for it, whatever the input, as ImageNet's weights know it.
PADDING_IMAGE_SIZE = 260


class SimpleCNN(nn.Module):
    """Three times conv 3×3 → ReLU → max-pool 2, then two linear layers.

    32, 64 and 128 channels; 1,147,466 parameters at 32 px.
    """

    batch_norm = False

    def __init__(self, num_classes: int, input_size: int) -> None:
        super().__init__()
        widths = (3, 32, 64, 128)
        self.blocks = nn.ModuleList()
        for before, after in zip(widths, widths[1:]):
            layers = [nn.Conv2d(before, after, 3, padding=1)]
            if self.batch_norm:
                layers.append(nn.BatchNorm2d(after))
            # ReLU after the pool has a quarter of the work; the result is the same.
            layers += [nn.MaxPool2d(2), nn.ReLU()]
            self.blocks.append(nn.Sequential(*layers))
        last_size = input_size // 8  # three pools, each halves and rounds down
        self.hidden = nn.Linear(widths[-1] * last_size**2, 512)
        self.head = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        x = x.flatten(1)  # (N, 128, 4, 4) → (N, 2048) at 32 px
        return self.head(F.relu(self.hidden(x)))


class ImprovedCNN(SimpleCNN):
    """SimpleCNN with BatchNorm between each convolution and its activation.

    1,147,914 parameters at 32 px.
    """

    batch_norm = True


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate that sees all channels (Hu et al. 2018, arXiv:1709.01507).

    A convolution sees a few pixels; the gate sees the whole image, and turns channels down that
    do not matter in it. It stays cheap: two small layers with C / 16 values between.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, channels // 16)
        self.expand = nn.Linear(channels // 16, channels)

    def forward(self, x: Tensor) -> Tensor:
        # Squeeze: one value a channel, (N, C, H, W) → (N, C).
        x, squeezed = WithSpatialMean.apply(x)
        # Excite: (N, C) → (N, C / 16) → (N, C), each gate in (0, 1).
        hidden = F.relu(self.reduce(squeezed))
        gate = torch.sigmoid(self.expand(hidden))
        return x * gate[:, :, None, None]


class SEBasicBlock(nn.Module):
    """ResNet's basic block (He et al. 2016, arXiv:1512.03385), gated before the sum.

    A block that doubles the channels halves height and width.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        stride = 1 if before == after else 2
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.se = SqueezeExcite(after)
        self.downsample = nn.Identity()
        if before != after:
            # The shortcut needs the branch's shape to be added to it.
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False),
                                            nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.se(self.bn2(self.conv2(x)))
        return F.relu(x + shortcut)


class SEResNet18(nn.Module):
    """ResNet-18 with squeeze-and-excitation in every block.

    `stem="imagenet"` is 7×7 stride 2 + max-pool: 32 px become a 1×1 map.
    `stem="cifar"` is 3×3 stride 1 without a pool: they become 4×4.
    The state-dict keys of the layers that plain ResNet-18 has too are torchvision's.
    """

    def __init__(self, num_classes: int, stem: str, dropout: float) -> None:
        super().__init__()
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(64)
        # At 32 px with the CIFAR stem the maps are 32, 16, 8 and 4 px high.
        self.layer1 = _layer(64, 64)
        self.layer2 = _layer(64, 128)
        self.layer3 = _layer(128, 256)
        self.layer4 = _layer(256, 512)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(512, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.dropout(x.mean((2, 3))))  # (N, 512, h, w) → (N, K)


def _layer(before: int, after: int) -> nn.Sequential:
    """Two blocks; the first may change channels and size."""
    return nn.Sequential(SEBasicBlock(before, after), SEBasicBlock(after, after))


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

    SiLU for the memory-saving swish, gates as matrix products on (N, C), drop-connect from outside.
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

    Symmetric zero-padding (22 of 24 pads at 260) is folded into the convolutions; no key changes.

    Args:
        padding_image_size: for which "same" padding is computed, once; not in the state dict.
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
