"""What a checkpoint's logits say, as plain numbers: the content of analysis.json."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from common.data.splits import Split
from common.files import Json, write_csv
from common.metrics import (calibration, confusion_matrix, most_confused, nll, t_interval, top1,
                            wilson_interval)
from common.plots import MAX_CLASSES

PLANE_AS_SHIP = ("airplane", "ship")
CLASS_COLUMNS = ("class", "precision", "recall", "f1", "support")


def scores(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> Json:
    """Accuracy, confusions and calibration of logits (N, K); fractions, nats and images."""
    hits = logits.argmax(1) == labels
    confusion = confusion_matrix(logits.argmax(1), labels, len(classes))
    rows = class_rows(confusion, classes)
    recalls = [row["recall"] for row in rows if row["support"]]
    confused, pairs = [], []
    for a, b, images in most_confused(confusion):
        confused.append({"true": classes[a], "predicted": classes[b], "images": images})
    for a, b, images in most_confused(confusion, ordered=False):
        pairs.append({"classes": [classes[a], classes[b]], "images": images})
    return {
        "images": len(labels),
        "errors": int((~hits).sum()),
        "top1": top1(logits, labels),
        "interval_95": wilson_interval(int(hits.sum()), len(labels)),
        "balanced_top1": sum(recalls) / len(recalls),
        "nll": nll(logits, labels),
        "per_class": rows,
        "confusion": confusion.tolist(),
        "most_confused": confused,
        "most_confused_pairs": pairs,
        "calibration": _calibration(logits, hits),
    }


def class_rows(confusion: Tensor, classes: Sequence[str]) -> list[Json]:
    """Scores of every class of a (K, K) confusion matrix; None where 0 would be divided by 0."""
    rows = []
    for k, name in enumerate(classes):
        right, support, predicted = (
            int(cells.sum()) for cells in (confusion[k, k], confusion[k], confusion[:, k]))
        rows.append({
            "class": name,
            "precision": right / predicted if predicted else None,
            "recall": right / support if support else None,
            "f1": 2 * right / (support + predicted) if support else None,
            "support": support,
            "recall_interval_95": wilson_interval(right, support) if support else None,
        })
    return rows


def _calibration(logits: Tensor, hits: Tensor) -> Json:
    """The reliability table: 5 bins for a few images, up to 15 where each holds 40 on average."""
    bins = max(5, min(15, len(hits) // 40))
    confidence, hits = logits.double().softmax(1).amax(1).cpu(), hits.cpu()
    ece, *columns = calibration(confidence, hits, bins)
    edges, counts, confidences, accuracies = (column.tolist() for column in columns)
    ends = [wilson_interval(round(share * n), n) if n else None
            for share, n in zip(accuracies, counts)]
    return {
        "ece": ece,
        "bins": bins,
        "mean_confidence": confidence.mean().item(),
        "overconfidence": interval(confidence - hits.double()),
        "edges": edges,
        "count": counts,
        "confidence": confidences,
        "accuracy": accuracies,
        "accuracy_interval_95": ends,
    }


def interval(values: Tensor) -> dict[str, float | int | None]:
    """Mean of (n,) values with its 95 % Student-t interval; None where n is too small to tell."""
    n = len(values)
    mean = values.double().mean().item() if n else None
    if n < 2:
        return {"mean": mean, "low": None, "high": None, "n": n}
    found = t_interval(values)
    return {"mean": mean, "low": found.low, "high": found.high, "n": n}


def predictions(logits: Tensor, split: Split, classes: Sequence[str]) -> list[Json]:
    """One row an image: file, classes, confidence, loss in nats, the second class and its own."""
    top = logits.double().softmax(1).topk(2)
    losses = F.cross_entropy(logits.double(), split.labels, reduction="none")
    numbers = (split.index, split.labels, losses, top.values, top.indices)
    lists = [column.tolist() for column in numbers]
    rows = []
    for name, index, label, loss, (sure, less), (first, second) in zip(split.names, *lists):
        rows.append({
            "index": index, "name": name, "true": classes[label], "predicted": classes[first],
            "confidence": sure, "loss": loss, "second": classes[second],
            "second_confidence": less,
        })
    return rows


def examples(rows: Sequence[Json], order: Sequence[int], confusions: Sequence[Json],
             errors: int) -> dict[str, list[int]]:
    """Positions of the images to show, by figure.

    Args:
        rows: `predictions`; order: all positions, shuffled.
        confusions: the frequent ones, of which the surest error is shown.
        errors: so many errors with the highest loss.
    """
    kinds = defaultdict(list)  # (true, predicted) -> positions
    wrong = []
    for i in order:
        true, predicted = rows[i]["true"], rows[i]["predicted"]
        kinds[true, predicted].append(i)
        if true != predicted:
            wrong.append(i)
    wrong.sort(key=lambda i: -rows[i]["loss"])
    names = sorted({true for true, _ in kinds})
    right = [kinds[name, name][:3] for name in names]
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
