"""The two small networks of phases 1 and 2."""
import torch.nn.functional as F
from torch import Tensor, nn


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
            # ReLU after the pool: neither changes an order, so the result is the same,
            # and ReLU has a quarter of the work.
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
