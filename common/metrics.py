"""Counts of confusions, and 95 % intervals of fractions and of means over repeats."""
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Z = 1.959963984540054  # standard deviations of a normal distribution's central 95 %


class Interval(NamedTuple):
    """Mean, sample standard deviation (n - 1) and the ends of a confidence interval of the mean;
    None for what so few values cannot tell."""

    mean: float | None = None
    std: float | None = None
    low: float | None = None
    high: float | None = None


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Ends of the 95 % score interval of a fraction `correct / total` (Wilson 1927)."""
    share, extra = correct / total, Z**2 / total
    centre, whole = share + extra / 2, 1 + extra
    half = math.sqrt(extra * (share * (1 - share) + extra / 4))
    return (centre - half) / whole, min(1.0, (centre + half) / whole)


def confusion_matrix(preds: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(K, K) int64 counts on the CPU of (N,) int64 classes in [0, K): true ones are rows, predicted
    ones columns."""
    cells = (labels * num_classes + preds).cpu()
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def t_quantile(df: int) -> float:
    """Half-width t with P(|T| <= t) = 0.95 for Student's t with `df` degrees of freedom.

    In the angle atan(t / sqrt(df)) the density is cos^(df - 1), summed here over trapezoids.
    """
    angle = np.linspace(0, math.pi / 2, 200_001)
    density = np.cos(angle) ** (df - 1)
    inside = density.cumsum() - (density + 1) / 2
    return math.sqrt(df) * math.tan(np.interp(0.95 * inside[-1], inside, angle))


def t_interval(values: Sequence[float] | Tensor) -> Interval:
    """Mean and 95 % Student-t interval of independent repeats, such as one figure per seed.

    One value has no spread, none has no mean either.
    """
    array = np.asarray(values, float)
    n = len(array)
    if n < 2:
        return Interval(*array.tolist())
    mean, std = float(array.mean()), float(array.std(ddof=1))
    half = t_quantile(n - 1) * std / math.sqrt(n)
    return Interval(mean, std, mean - half, mean + half)
