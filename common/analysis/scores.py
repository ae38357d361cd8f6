"""What a checkpoint's logits say, as plain numbers: the content of analysis.json."""
import math
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.data.splits import Split
from common.files import Json, write_csv
from common.metrics import confusion_matrix, wilson_interval

CLASS_COLUMNS = ("class", "precision", "recall", "f1", "support")


def scores(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> Json:
    """Accuracy, confusions and calibration of logits (N, K); fractions, nats and images."""
    logits, labels = logits.double().cpu(), labels.cpu()
    confidence, preds = logits.softmax(1).max(1)
    hits = preds == labels
    right, n = int(hits.sum()), len(hits)
    confusion = confusion_matrix(preds, labels, len(classes))
    rows = class_rows(confusion, classes)
    bins = max(5, min(15, n // 40))  # of 40 images on average, but for few or many
    return {
        "images": n,
        "errors": n - right,
        "top1": right / n,
        "interval_95": wilson_interval(right, n),
        "balanced_top1": fmean(row["recall"] for row in rows if row["support"]),
        "nll": F.cross_entropy(logits, labels).item(),
        "per_class": rows,
        "confusion": confusion.tolist(),
        "most_confused_pairs": [
            {"classes": [classes[a], classes[b]], "images": images}
            for a, b, images in most_confused((confusion + confusion.T).triu())[:10]
        ],
        "calibration": {
            **calibration(confidence, hits, bins),
            "bins": bins,
            "mean_confidence": confidence.mean().item(),
            "overconfidence": t_interval(confidence - hits.double()),
        },
    }


def class_rows(confusion: Tensor, classes: Sequence[str]) -> list[Json]:
    """Scores of every class of a (K, K) confusion matrix; None where 0 would be divided by 0."""
    counts = torch.stack([confusion.diag(), confusion.sum(1), confusion.sum(0)], 1)
    return [
        {
            "class": name,
            "precision": right / predicted if predicted else None,
            "recall": right / support if support else None,
            "f1": 2 * right / (support + predicted) if support else None,
            "support": support,
            "recall_interval_95": wilson_interval(right, support) if support else None,
        }
        for name, (right, support, predicted) in zip(classes, counts.tolist())
    ]


def most_confused(confusion: Tensor) -> list[tuple[int, int, int]]:
    """The cells off the diagonal of a (K, K) matrix as (row, column, count), largest first and none
    with count 0; ties keep the order of the matrix."""
    counts, cells = confusion.clone().fill_diagonal_(0).flatten().sort(descending=True, stable=True)
    ranked = zip(cells.tolist(), counts.tolist())
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


def t_interval(values: Sequence[float] | Tensor) -> Json:
    """Mean, sample standard deviation (n - 1) and the ends of the 95 % Student-t interval of (n,)
    independent repeats, such as one figure per seed, and n; None for what so few cannot tell."""
    array = np.asarray(values, float)
    n = len(array)
    mean = float(array.mean()) if n else None
    std = low = high = None
    if n > 1:
        std = float(array.std(ddof=1))
        half = t_quantile(n - 1) * std / math.sqrt(n)
        low, high = mean - half, mean + half
    return {"mean": mean, "std": std, "low": low, "high": high, "n": n}


def predictions(logits: Tensor, split: Split, classes: Sequence[str]) -> list[Json]:
    """One row an image: file, classes, confidence, loss in nats, the second class and its own."""
    probs, kinds = logits.double().softmax(1).topk(2)
    losses = F.cross_entropy(logits.double(), split.labels, reduction="none")
    columns = map(Tensor.tolist, (split.index, split.labels, losses, probs, kinds))
    return [
        {
            "index": index, "name": name, "true": classes[label], "predicted": classes[first],
            "confidence": sure, "loss": loss, "second": classes[second],
            "second_confidence": less,
        }
        for name, index, label, loss, (sure, less), (first, second) in zip(split.names, *columns)
    ]


def examples(rows: Sequence[Json], order: Sequence[int], errors: int) -> dict[str, list[int]]:
    """Positions of the images to show, by figure.

    Args:
        rows: `predictions`; order: all positions, shuffled.
        errors: so many errors with the highest loss.
    """
    wrong = [i for i in order if rows[i]["true"] != rows[i]["predicted"]]
    right = [i for i in order if rows[i]["true"] == rows[i]["predicted"]]
    planes = [i for i in wrong if (rows[i]["true"], rows[i]["predicted"]) == ("airplane", "ship")]
    return {
        "errors": sorted(wrong, key=lambda i: -rows[i]["loss"])[:errors],
        "heat_right": right[:30],
        "heat_planes": planes,
    }


def by_recall(rows: Sequence[Json]) -> list[Json]:
    """The classes that have images, the one found best first."""
    return sorted((row for row in rows if row["support"]), key=lambda row: -row["recall"])


def write_tables(folder: Path, result: Json, rows: Sequence[Json]) -> None:
    """predictions.csv, confusion.csv (rows true) and per_class.csv."""
    write_csv(folder / "predictions.csv", rows[0], (row.values() for row in rows))
    per_class = map(itemgetter(*CLASS_COLUMNS), result["per_class"])
    write_csv(folder / "per_class.csv", CLASS_COLUMNS, per_class)
    classes = result["classes"]
    counts = ([name, *row] for name, row in zip(classes, result["confusion"]))
    write_csv(folder / "confusion.csv", ["true", *classes], counts)
