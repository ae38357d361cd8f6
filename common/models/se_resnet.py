"""ResNet-18 with squeeze-and-excitation, its stem for ImageNet or for CIFAR."""
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn



class SpatialMean(torch.autograd.Function):
    """Mean over height and width, (N, C, H, W) → (N, C); the gradient is a view, where that of `x.mean` fills a map as large as x."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.shape = x.shape
        return x.mean((2, 3))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return (grad / (ctx.shape[2] * ctx.shape[3]))[:, :, None, None].expand(ctx.shape)


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from the channel means (Hu et al. 2018, arXiv:1709.01507; reduction 16)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, channels // reduction)
        self.expand = nn.Linear(channels // reduction, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.expand(F.relu(self.reduce(SpatialMean.apply(x))))
        return x * torch.sigmoid(gate)[:, :, None, None]


class SEBasicBlock(nn.Module):
    """ResNet's basic block (He et al. 2016, arXiv:1512.03385) with squeeze-and-excitation before the sum."""

    def __init__(self, before: int, after: int, stride: int, bn_momentum: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after, momentum=bn_momentum)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after, momentum=bn_momentum)
        self.se = SqueezeExcite(after)
        self.downsample = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after, momentum=bn_momentum))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.se(self.bn2(self.conv2(x)))
        return F.relu(x + shortcut)


class SEResNet18(nn.Module):
    """ResNet-18 with squeeze-and-excitation in every block; state-dict keys are torchvision's for the shared layers.

    `stem="imagenet"` is 7×7 stride 2 + max-pool: 32 px become a 1×1 map. `stem="cifar"` is 3×3 stride 1, no pool: 4×4.
    """

    def __init__(self, num_classes: int = 10, stem: str = "cifar", dropout: float = 0.5, bn_momentum: float = 0.1) -> None:
        super().__init__()
        kernel, stride, padding = (7, 2, 3) if stem == "imagenet" else (3, 1, 1)
        self.conv1 = nn.Conv2d(3, 64, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(64, momentum=bn_momentum)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if stem == "imagenet" else nn.Identity()
        widths = (64, 64, 128, 256, 512)
        for i, (before, after) in enumerate(zip(widths, widths[1:]), 1):
            blocks = SEBasicBlock(before, after, 1 if i == 1 else 2, bn_momentum), SEBasicBlock(after, after, 1, bn_momentum)
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(512, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.fc(self.dropout(x.mean((2, 3))))
