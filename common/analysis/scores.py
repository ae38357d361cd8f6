"""What a checkpoint's logits say, as plain numbers: the content of analysis.json."""
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from common.data.splits import Split
from common.files import write_text
from common.metrics import brier, calibration, confusion_matrix, most_confused, nll, per_class, t_interval, top1, wilson_interval


def scores(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Accuracy, confusions and calibration of logits (N, K); fractions, nats and images."""
    probs, hits = logits.double().softmax(1), logits.argmax(1) == labels
    confusion = confusion_matrix(logits.argmax(1), labels, len(classes))
    each, bins = per_class(confusion), calibration(logits, labels)
    rows = zip(classes, *(column.tolist() for column in each), confusion.diag().tolist())
    return {
        "images": len(labels), "errors": int((~hits).sum()), "top1": top1(logits, labels),
        "interval_95": wilson_interval(int(hits.sum()), len(labels)), "nll": nll(logits, labels), "brier": brier(logits, labels),
        "per_class": [{"class": name, "precision": precision, "recall": recall, "f1": f1, "support": support,
                       "recall_interval_95": wilson_interval(right, support) if support else None}
                      for name, precision, recall, f1, support, right in rows],
        "confusion": confusion.tolist(),
        "most_confused": [{"true": classes[a], "predicted": classes[b], "images": n} for a, b, n in most_confused(confusion)],
        "most_confused_pairs": [{"classes": [classes[a], classes[b]], "images": n} for a, b, n in most_confused(confusion, ordered=False)],
        "calibration": {"ece": bins.ece, "mean_confidence": probs.amax(1).mean().item(), "overconfidence": interval(probs.amax(1) - hits.double()),
                        **{key: getattr(bins, key).tolist() for key in ("edges", "count", "confidence", "accuracy")},
                        "accuracy_interval_95": [wilson_interval(round(share * n), n) if n else None
                                                 for share, n in zip(bins.accuracy.tolist(), bins.count.tolist())]},
    }  # fmt: skip


def interval(values: Tensor) -> dict[str, float | int | None]:
    """Mean of (n,) values with its 95 % Student-t interval; None where n is too small to tell."""
    if not len(values):
        return {"mean": None, "low": None, "high": None, "n": 0}
    found = t_interval(values)
    known = len(values) > 1
    return {"mean": found.mean, "low": found.low if known else None, "high": found.high if known else None, "n": len(values)}


def predictions(logits: Tensor, split: Split, classes: Sequence[str]) -> list[dict[str, Any]]:
    """One row an image: index in its source, true and predicted class, confidence, loss in nats, the second class and its probability."""
    top = logits.double().softmax(1).topk(2)
    losses = F.cross_entropy(logits.double(), split.labels, reduction="none")
    columns = (split.index, split.labels, top.indices[:, 0], top.values[:, 0], losses, top.indices[:, 1], top.values[:, 1])
    return [{"index": index, "true": classes[true], "predicted": classes[first], "confidence": p, "loss": loss, "second": classes[second],
             "second_confidence": q} for index, true, first, p, loss, second, q in zip(*(column.tolist() for column in columns))]


def examples(rows: Sequence[Mapping[str, Any]], classes: Sequence[str], confusions: Sequence[Mapping[str, Any]],
             order: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Positions of (up to three right cases of each class, the first in `order`; all errors, the highest loss first; the surest error
    of each of the frequent confusions)."""
    right = [i for i in order if rows[i]["true"] == rows[i]["predicted"]]
    wrong = sorted((i for i, row in enumerate(rows) if row["true"] != row["predicted"]), key=lambda i: -rows[i]["loss"])
    kinds = [(one["true"], one["predicted"]) for one in confusions]
    surest = {(rows[i]["true"], rows[i]["predicted"]): i for i in sorted(wrong, key=lambda i: rows[i]["confidence"])}
    return [i for name in classes for i in [i for i in right if rows[i]["true"] == name][:3]], wrong, [surest[kind] for kind in kinds]


def write_tables(folder: Path, result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """predictions.csv, confusion.csv (rows true) and per_class.csv."""
    columns = ("index", "true", "predicted", "confidence", "loss")
    _write_csv(folder / "predictions.csv", columns, ([row[key] for key in columns] for row in rows))
    _write_csv(folder / "confusion.csv", ["true", *result["classes"]], ([name, *row] for name, row in zip(result["classes"], result["confusion"])))
    columns = ("class", "precision", "recall", "f1", "support")
    _write_csv(folder / "per_class.csv", columns, ([row[key] for key in columns] for row in result["per_class"]))


def _write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """A table as CSV, atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
