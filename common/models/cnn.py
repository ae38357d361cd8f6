"""The two small networks of phases 1 and 2."""


import torch
import torch.nn.functional as F
from torch import nn



class SimpleCNN(nn.Module):
    """Three times conv 3×3 → ReLU → max-pool 2 (32-64-128 channels), then two linear layers; 1,147,466 parameters at 32 px."""

    def __init__(self, num_classes: int = 10, input_size: int = 32, batch_norm: bool = False, bn_momentum: float = 0.1) -> None:
        super().__init__()
        widths = (3, 32, 64, 128)
        self.blocks = nn.ModuleList()
        for before, after in zip(widths, widths[1:]):
            norm = [nn.BatchNorm2d(after, momentum=bn_momentum)] if batch_norm else []
            # ReLU after the pool: both are monotone, so the function is the same, and ReLU has a quarter of the work.
            self.blocks.append(nn.Sequential(nn.Conv2d(before, after, 3, padding=1), *norm, nn.MaxPool2d(2), nn.ReLU()))
        self.hidden = nn.Linear(widths[-1] * (input_size // 8) ** 2, 512)
        self.head = nn.Linear(512, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(F.relu(self.hidden(x.flatten(1))))


class ImprovedCNN(SimpleCNN):
    """SimpleCNN with BatchNorm after each convolution, before the activation; 1,147,914 parameters at 32 px."""

    def __init__(self, num_classes: int = 10, input_size: int = 32, bn_momentum: float = 0.1) -> None:
        super().__init__(num_classes, input_size, batch_norm=True, bn_momentum=bn_momentum)
