"""What a classifier's logits are worth: accuracy, confusions, calibration and intervals.

Functions take torch tensors and return Python floats or CPU tensors; sums run in float64.
Shapes: `logits` (N, K) floating, `labels` and `preds` (N,) int64 in [0, K).
"""
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.files import Json

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
    """(K, K) int64 counts on the CPU: rows are true classes, columns predicted ones."""
    cells = (labels * num_classes + preds).cpu()
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def most_confused(confusion: Tensor, top: int = 10) -> list[tuple[int, int, int]]:
    """The `top` largest cells off the diagonal of a (K, K) matrix as (row, column, count), largest
    first and none with count 0; ties keep the order of the matrix."""
    counts, cells = confusion.clone().fill_diagonal_(0).flatten().sort(descending=True, stable=True)
    ranked = zip(cells[:top].tolist(), counts[:top].tolist())
    return [(*divmod(cell, len(confusion)), count) for cell, count in ranked if count]


def calibration(confidence: Tensor, hits: Tensor, bins: int = 15) -> Json:
    """ECE over `bins` equal-width bins of the top probability, with the bin table (Guo et al. 2017,
    arXiv:1706.04599).

    Bins are closed on the left; the last is closed on both sides, so that a confidence of exactly 1
    counts.

    Args:
        confidence: (N,) float64, the predicted class's probability.
        hits: (N,) bool, whether it is the label.

    Returns:
        `ece`; for each bin `count`, and `confidence` and `accuracy`, means, 0 in an empty bin.
    """
    index = (confidence * bins).long().clamp(max=bins - 1)
    count = torch.bincount(index, minlength=bins)
    sure, right = (torch.bincount(index, values.double(), minlength=bins)
                   for values in (confidence, hits))
    ece = (sure - right).abs().sum().item() / len(hits)
    filled = count.clamp(min=1)
    return {"ece": ece, "count": count.tolist(), "confidence": (sure / filled).tolist(),
            "accuracy": (right / filled).tolist()}


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
