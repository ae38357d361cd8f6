"""What a classifier's logits are worth: accuracy, confusions, calibration and intervals.

Every function takes torch tensors on any one device and returns Python floats or CPU tensors. Sums run in float64.
Shapes: `logits` (N, K) floating, `labels` and `preds` (N,) int64 in [0, K).
"""
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class PerClass(NamedTuple):
    """Scores of each class: `precision`, `recall`, `f1` (K,) float64 in [0, 1] and `support` (K,) int64 images."""

    precision: Tensor
    recall: Tensor
    f1: Tensor
    support: Tensor


class Calibration(NamedTuple):
    """Expected calibration error and the table of a reliability diagram.

    `edges` (bins + 1,); `count` (bins,) int64; `confidence` and `accuracy` (bins,) float64, means, 0 in an empty bin.
    """

    ece: float
    edges: Tensor
    count: Tensor
    confidence: Tensor
    accuracy: Tensor


class Interval(NamedTuple):
    """Mean, sample standard deviation (n - 1) and the two ends of a confidence interval of the mean."""

    mean: float
    std: float
    low: float
    high: float


def top1(logits: Tensor, labels: Tensor) -> float:
    """Fraction of images whose largest logit is the label's."""
    _check(logits, labels)
    return (logits.argmax(1) == labels).double().mean().item()


def wilson_interval(correct: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Ends of the score interval of a fraction `correct / total`, 95 % for the default `z` (Wilson 1927).

    Raises ValueError unless 0 <= correct <= total and total > 0.
    """
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"correct={correct} of total={total}: need 0 <= correct <= total and total > 0")
    share, shrink = correct / total, 1 + z * z / total
    centre = (share + z * z / (2 * total)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def confusion_matrix(preds: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(K, K) int64 counts on the CPU: rows are true classes, columns predicted ones.

    Raises ValueError where the shapes differ or a class lies outside 0..K-1.
    """
    if preds.shape != labels.shape or preds.ndim != 1:
        raise ValueError(f"preds {tuple(preds.shape)} and labels {tuple(labels.shape)} must both be (N,)")
    for name, classes in (("preds", preds), ("labels", labels)):
        if classes.numel() and not 0 <= classes.min() <= classes.max() < num_classes:
            raise ValueError(f"{name} reach from {classes.min()} to {classes.max()}, outside 0..{num_classes - 1}")
    cells = torch.bincount((labels * num_classes + preds).cpu(), minlength=num_classes**2)
    return cells.view(num_classes, num_classes)


def per_class(confusion: Tensor) -> PerClass:
    """Precision, recall, F1 and support from a (K, K) confusion matrix; 0 / 0 is 0, as in scikit-learn."""
    hits, support, predicted = confusion.diag().double(), confusion.sum(1), confusion.sum(0)
    return PerClass(
        precision=hits / predicted.clamp(min=1),
        recall=hits / support.clamp(min=1),
        f1=2 * hits / (support + predicted).clamp(min=1),
        support=support,
    )


def most_confused(confusion: Tensor, top: int = 10, ordered: bool = True) -> list[tuple[int, int, int]]:
    """The `top` most frequent confusions as (class, class, count), most frequent first and none with count 0.

    `ordered`: (true, predicted, images). Otherwise both directions are added up and the smaller class comes first.
    Ties keep the order of the matrix.
    """
    errors = confusion - confusion.diag().diag()
    if not ordered:
        errors = (errors + errors.T).triu()
    counts, cells = errors.flatten().sort(descending=True, stable=True)
    ranked = zip(cells[:top].tolist(), counts[:top].tolist())
    return [(*divmod(cell, len(confusion)), count) for cell, count in ranked if count]


def calibration(logits: Tensor, labels: Tensor, bins: int = 15) -> Calibration:
    """ECE over `bins` equal-width bins of the top probability, with the bin table (Guo et al. 2017, arXiv:1706.04599).

    Bins are closed on the left; the last is closed on both sides, so that a confidence of exactly 1 counts.
    """
    _check(logits, labels)
    confidence, preds = logits.detach().double().softmax(1).cpu().max(1)
    hits = (preds == labels.cpu()).double()
    edges = torch.arange(bins + 1, dtype=torch.float64) / bins
    index = torch.bucketize(confidence, edges[1:-1], right=True)
    count = torch.bincount(index, minlength=bins)
    mean_confidence = torch.bincount(index, confidence, minlength=bins) / count.clamp(min=1)
    mean_accuracy = torch.bincount(index, hits, minlength=bins) / count.clamp(min=1)
    ece = (count * (mean_accuracy - mean_confidence).abs()).sum().item() / len(labels)
    return Calibration(ece, edges, count, mean_confidence, mean_accuracy)


def nll(logits: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood of the labels, in nats."""
    _check(logits, labels)
    return F.cross_entropy(logits.detach().double(), labels).item()


def brier(logits: Tensor, labels: Tensor) -> float:
    """Mean over images of the squared error summed over classes, in [0, 2] (Brier 1950)."""
    _check(logits, labels)
    probs = logits.detach().double().softmax(1)
    return (probs - F.one_hot(labels, logits.shape[1])).square().sum(1).mean().item()


def t_quantile(level: float, df: int) -> float:
    """Half-width t with P(|T| <= t) = `level` for Student's t with `df` degrees of freedom: t_quantile(0.95, 2) = 4.303.

    Bisection on the closed forms for integer df (Abramowitz & Stegun 26.7.3-4), in the angle atan(t / sqrt(df)).
    """
    if df < 1 or not 0 < level < 1:
        raise ValueError(f"df={df}, level={level}: need df >= 1 and 0 < level < 1")
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        angle = (low + high) / 2
        cosine, odd = math.cos(angle), df % 2
        term, total = (cosine if odd else 1.0), 0.0
        for k in range(1 + odd, df, 2):
            total, term = total + term, term * cosine * cosine * k / (k + 1)
        inside = math.sin(angle) * total
        if odd:
            inside = (angle + inside) * 2 / math.pi
        low, high = (angle, high) if inside < level else (low, angle)
    return math.sqrt(df) * math.tan((low + high) / 2)


def t_interval(values: Sequence[float] | Tensor, level: float = 0.95) -> Interval:
    """Mean and Student-t interval of independent repeats, such as one figure per seed.

    One value has no spread: its `std` is nan and its interval is unbounded.
    """
    values = torch.as_tensor(values, dtype=torch.float64).flatten().cpu()
    if not len(values):
        raise ValueError("an interval needs at least one value")
    mean = values.mean().item()
    if len(values) == 1:
        return Interval(mean, math.nan, -math.inf, math.inf)
    std = values.std().item()
    half = t_quantile(level, len(values) - 1) * std / math.sqrt(len(values))
    return Interval(mean, std, mean - half, mean + half)


def _check(logits: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless the shapes are (N, K) and (N,) with N > 0."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} must be (N, K) and (N,), N > 0")
