"""Confusions, and the 95 % interval of a fraction."""
import math

import torch
from torch import Tensor

Z = 1.959963984540054  # standard deviations of a normal distribution's central 95 %


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Ends of the 95 % score interval of a fraction `correct / total` (Wilson 1927)."""
    share, extra = correct / total, Z**2 / total
    centre, whole = share + extra / 2, 1 + extra
    half = math.sqrt(extra * (share * (1 - share) + extra / 4))
    return (centre - half) / whole, min(1.0, (centre + half) / whole)


def confusion_matrix(preds: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(K, K) int64 counts on the CPU of (N,) int64 classes; true ones are rows."""
    cells = (labels * num_classes + preds).cpu()
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)
