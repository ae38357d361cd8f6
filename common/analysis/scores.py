"""What a checkpoint's logits say, as plain numbers: the content of analysis.json."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from common.data.splits import Split
from common.files import Json, write_csv
from common.metrics import (
    brier,
    calibration,
    confusion_matrix,
    most_confused,
    nll,
    t_interval,
    top1,
    wilson_interval,
)
from common.plots import MAX_CLASSES

PLANE_AS_SHIP = ("airplane", "ship")
CLASS_COLUMNS = ("class", "precision", "recall", "f1", "support")


def scores(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> Json:
    """Accuracy, confusions and calibration of logits (N, K); fractions, nats and images."""
    preds = logits.argmax(1)
    hits = preds == labels
    confusion = confusion_matrix(preds, labels, len(classes))
    pairs = most_confused(confusion, ordered=False)
    rows = class_rows(confusion, classes)
    recalls = [row["recall"] for row in rows if row["support"]]
    return {
        "images": len(labels),
        "errors": int((~hits).sum()),
        "top1": top1(logits, labels),
        "interval_95": wilson_interval(int(hits.sum()), len(labels)),
        "balanced_top1": sum(recalls) / len(recalls),
        "nll": nll(logits, labels),
        "brier": brier(logits, labels),
        "per_class": rows,
        "confusion": confusion.tolist(),
        "most_confused": [
            {"true": classes[a], "predicted": classes[b], "images": n}
            for a, b, n in most_confused(confusion)
        ],
        "most_confused_pairs": [
            {"classes": [classes[a], classes[b]], "images": n} for a, b, n in pairs
        ],
        "calibration": _calibration(logits, labels),
    }


def class_rows(confusion: Tensor, classes: Sequence[str]) -> list[Json]:
    """Scores of every class of a (K, K) confusion matrix; None where 0 would be divided by 0."""
    supports = confusion.sum(1).tolist()
    named = confusion.sum(0).tolist()
    hits = confusion.diag().tolist()
    rows = []
    for name, support, predicted, right in zip(classes, supports, named, hits):
        rows.append(
            {
                "class": name,
                "precision": right / predicted if predicted else None,
                "recall": right / support if support else None,
                "f1": 2 * right / (support + predicted) if support else None,
                "support": support,
                "recall_interval_95": wilson_interval(right, support) if support else None,
            }
        )
    return rows


def _calibration(logits: Tensor, labels: Tensor) -> Json:
    """The reliability table: 5 bins for a few images, up to 15 where each holds 40 on average."""
    bins = max(5, min(15, len(labels) // 40))
    table = calibration(logits, labels, bins)
    confidence = logits.double().softmax(1).amax(1)
    hits = (logits.argmax(1) == labels).double()
    right = (table.accuracy * table.count).round().long().tolist()
    counts = table.count.tolist()
    return {
        "ece": table.ece,
        "bins": len(counts),
        "mean_confidence": confidence.mean().item(),
        "overconfidence": interval(confidence - hits),
        "edges": table.edges.tolist(),
        "count": counts,
        "confidence": table.confidence.tolist(),
        "accuracy": table.accuracy.tolist(),
        "accuracy_interval_95": [
            wilson_interval(hit, n) if n else None for hit, n in zip(right, counts)
        ],
    }


def interval(values: Tensor) -> dict[str, float | int | None]:
    """Mean of (n,) values with its 95 % Student-t interval; None where n is too small to tell."""
    n = len(values)
    mean = values.double().mean().item() if n else None
    if n < 2:
        return {"mean": mean, "low": None, "high": None, "n": n}
    found = t_interval(values)
    return {"mean": mean, "low": found.low, "high": found.high, "n": n}


def predictions(
    logits: Tensor, split: Split, classes: Sequence[str]
) -> list[Json]:
    """One row an image: file, classes, confidence, loss in nats, the second class and its own."""
    top = logits.double().softmax(1).topk(2)
    losses = F.cross_entropy(logits.double(), split.labels, reduction="none")
    index = split.index.tolist()
    columns = {
        "index": index,
        "name": split.names or map(str, index),
        "true": [classes[k] for k in split.labels],
        "predicted": [classes[k] for k in top.indices[:, 0]],
        "confidence": top.values[:, 0].tolist(),
        "loss": losses.tolist(),
        "second": [classes[k] for k in top.indices[:, 1]],
        "second_confidence": top.values[:, 1].tolist(),
    }
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


def examples(
    rows: Sequence[Json], order: Sequence[int], confusions: Sequence[Json], errors: int
) -> dict[str, list[int]]:
    """Positions of the images to show, by figure.

    Args:
        rows: `predictions`; order: all positions, shuffled.
        confusions: the frequent ones, of which the surest error is shown.
        errors: so many errors with the highest loss.
    """
    kinds = defaultdict(list)  # (true, predicted) -> positions
    for i in sorted(
        order, key=lambda i: rows[i]["true"]
    ):  # a stable sort: shuffled in a class
        kinds[rows[i]["true"], rows[i]["predicted"]].append(i)
    right = [some[:3] for (true, predicted), some in kinds.items() if true == predicted]
    wrong = [i for i in order if rows[i]["true"] != rows[i]["predicted"]]
    wrong.sort(key=lambda i: -rows[i]["loss"])
    found = [kinds[one["true"], one["predicted"]] for one in confusions]
    return {
        "errors": wrong[:errors],
        "gradcam_right": sum(right[:MAX_CLASSES], []),
        "gradcam_wrong": [max(some, key=lambda i: rows[i]["confidence"]) for some in found],
        "gradcam_planes": kinds[PLANE_AS_SHIP],
    }


def best_and_worst(rows: Sequence[Json]) -> list[Json]:
    """Classes with images, the highest recall first; of more than 40 the 20 best and 20 worst."""
    seen = [row for row in rows if row["support"]]
    seen.sort(key=lambda row: -row["recall"])
    return seen[:MAX_CLASSES] + seen[MAX_CLASSES:][-MAX_CLASSES:]


def write_tables(folder: Path, result: Json, rows: Sequence[Json]) -> None:
    """predictions.csv, confusion.csv (rows true) and per_class.csv."""
    write_csv(folder / "predictions.csv", rows[0], (row.values() for row in rows))
    each = ([row[key] for key in CLASS_COLUMNS] for row in result["per_class"])
    write_csv(folder / "per_class.csv", CLASS_COLUMNS, each)
    classes = result["classes"]
    counts = ([name, *row] for name, row in zip(classes, result["confusion"]))
    write_csv(folder / "confusion.csv", ["true", *classes], counts)
