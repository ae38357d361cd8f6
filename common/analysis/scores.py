"""What a checkpoint's logits say, as plain numbers: the content of analysis.json."""
from collections import defaultdict
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from common.data.splits import Split
from common.files import Json, write_csv
from common.metrics import (calibration, confusion_matrix, most_confused, t_interval,
                            wilson_interval)
from common.plots import MAX_CLASSES

CLASS_COLUMNS = ("class", "precision", "recall", "f1", "support")


def scores(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> Json:
    """Accuracy, confusions and calibration of logits (N, K); fractions, nats and images."""
    preds = logits.argmax(1)
    hits = preds == labels
    right = int(hits.sum())
    confusion = confusion_matrix(preds, labels, len(classes))
    rows = class_rows(confusion, classes)
    recalls = [row["recall"] for row in rows if row["support"]]
    return {
        "images": len(labels),
        "errors": len(labels) - right,
        "top1": right / len(labels),
        "interval_95": wilson_interval(right, len(labels)),
        "balanced_top1": sum(recalls) / len(recalls),
        "nll": F.cross_entropy(logits.double(), labels).item(),
        "per_class": rows,
        "confusion": confusion.tolist(),
        "most_confused": [
            {"true": classes[a], "predicted": classes[b], "images": images}
            for a, b, images in most_confused(confusion)
        ],
        "most_confused_pairs": [
            {"classes": [classes[a], classes[b]], "images": images}
            for a, b, images in most_confused((confusion + confusion.T).triu())
        ],
        "calibration": _calibration(logits, hits),
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


def _calibration(logits: Tensor, hits: Tensor) -> Json:
    """The reliability table: 5 bins for a few images, up to 15 where each holds 40 on average."""
    bins = max(5, min(15, len(hits) // 40))
    confidence = logits.double().softmax(1).amax(1).cpu()
    hits = hits.cpu()
    return {
        **calibration(confidence, hits, bins),
        "bins": bins,
        "mean_confidence": confidence.mean().item(),
        "overconfidence": interval(confidence - hits.double()),
    }


def interval(values: Tensor) -> Json:
    """Mean of (n,) values, their std and 95 % interval, see `t_interval`; and n."""
    return {**t_interval(values)._asdict(), "n": len(values)}


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


def examples(rows: Sequence[Json], order: Sequence[int], confusions: Sequence[Json],
             errors: int) -> dict[str, list[int]]:
    """Positions of the images to show, by figure.

    Args:
        rows: `predictions`; order: all positions, shuffled.
        confusions: the frequent ones, of which the surest error is shown.
        errors: so many errors with the highest loss.
    """
    kind = itemgetter("true", "predicted")
    kinds = defaultdict(list)  # (true, predicted) -> positions
    for i in order:
        kinds[kind(rows[i])].append(i)
    by_loss = sorted(order, key=lambda i: -rows[i]["loss"])
    names = sorted({row["true"] for row in rows})[:MAX_CLASSES]
    return {
        "errors": [i for i in by_loss if rows[i]["true"] != rows[i]["predicted"]][:errors],
        "heat_right": [i for name in names for i in kinds[name, name][:3]],
        "heat_wrong": [
            max(kinds[kind(one)], key=lambda i: rows[i]["confidence"]) for one in confusions
        ],
        "heat_planes": kinds["airplane", "ship"],
        "heat_methods": [i for name in names for i in kinds[name, name][3:4]][:12],
    }


def best_and_worst(rows: Sequence[Json]) -> list[Json]:
    """Classes with images, the highest recall first; of more than 40 the 20 best and 20 worst."""
    seen = [row for row in rows if row["support"]]
    seen.sort(key=lambda row: -row["recall"])
    return seen[:MAX_CLASSES] + seen[MAX_CLASSES:][-MAX_CLASSES:]


def write_tables(folder: Path, result: Json, rows: Sequence[Json]) -> None:
    """predictions.csv, confusion.csv (rows true) and per_class.csv."""
    write_csv(folder / "predictions.csv", rows[0], (row.values() for row in rows))
    per_class = map(itemgetter(*CLASS_COLUMNS), result["per_class"])
    write_csv(folder / "per_class.csv", CLASS_COLUMNS, per_class)
    classes = result["classes"]
    counts = ([name, *row] for name, row in zip(classes, result["confusion"]))
    write_csv(folder / "confusion.csv", ["true", *classes], counts)
