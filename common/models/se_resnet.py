"""ResNet-18 with squeeze-and-excitation, its stem for ImageNet or for CIFAR."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.models.launches import WithSpatialMean


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
