"""What a checkpoint's logits and heat maps say, as plain numbers: the content of analysis.json."""
import csv
import hashlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.config import Recipe, Runtime
from common.data import Split, load_splits
from common.engine import Preprocess
from common.errors import InputError
from common.files import read_json, write_text
from common.gradcam import center_prior, default_layer, deletion_insertion, grad_cam, named_maps, random_maps
from common.metrics import brier, calibration, confusion_matrix, most_confused, nll, per_class, t_interval, top1, wilson_interval

CHUNK = 100  # images a pass of Grad-CAM or of the curves: three kinds of map are alive at once
STEPS = 10  # portions in which the curves change an image


def read_card(path: str, card: Mapping[str, Any]) -> tuple[Recipe, list[str], int]:
    """(recipe, class names, input size in pixels) of a checkpoint's self-description.

    Raises:
        InputError: the description is incomplete or contradicts itself.
    """
    try:
        recipe, size, named = Recipe(**card["recipe"]), card["image_size"] * card["resize"], card["arch"]["name"]
        if len(card["mean"]) == len(card["std"]) == 3 and size == card["probe"]["inputs"].shape[-1] and recipe.model == named:
            return recipe, list(map(str, card["classes"])), size
        reason = "its recipe, its input size and its probe contradict each other"
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        reason = str(error)
    raise InputError(f"{path} does not describe itself ({reason}): use a best.pt that this version wrote")


def open_split(path: str, card: Mapping[str, Any], recipe: Recipe, name: str, limit: int | None, runtime: Runtime,
               generator: torch.Generator) -> tuple[Split, str]:
    """(images to analyse, on the CPU, and where they come from); `limit` of them are drawn with the generator.

    The data is that of --data-dir, or of the training's --data-dir if it is still there, or found as in training.

    Raises:
        InputError: no data, or other classes, another image size or, for val, another split than the checkpoint's.
    """
    trained_on = card.get("data_dir")
    if not runtime.data_dir and trained_on and Path(trained_on).is_dir():
        runtime = replace(runtime, data_dir=trained_on)
    if recipe.synthetic and runtime.data_dir:
        raise InputError(f"--data-dir {runtime.data_dir}: {path} was trained on the drawn set, which needs no data; leave the flag out")
    try:
        splits = load_splits(recipe, runtime)
    except InputError as error:
        if not str(error).startswith("--"):
            raise
        raise InputError(f"the data cannot be split as {path} was trained ({error}): give the data of its training with --data-dir") from None
    if tuple(splits.classes) != tuple(card["classes"]):
        raise InputError(f"{path} knows {_listed(card['classes'])}, but the data has {_listed(splits.classes)}: give data with its classes by --data-dir")
    if splits.image_size != card["image_size"]:
        raise InputError(f"{path} was trained on {card['image_size']}-pixel images, but the data has {splits.image_size}: give data of its size by --data-dir")
    if name == "val" and splits.split_hash != card["split_hash"]:
        raise InputError(f"--split val: the data gives split {splits.split_hash}, {path} held out {card['split_hash']}: give the data of its "
                         "training with --data-dir, or use --split test")
    split: Split = getattr(splits, name)
    if limit is not None and limit < len(split):
        split = split.take(torch.randperm(len(split), generator=generator)[:limit].sort().values.numpy())
    return split, splits.source


def _listed(classes: Sequence[str]) -> str:
    """The number of classes and the first few names."""
    return f"{len(classes)} classes ({', '.join(map(str, classes[:4]))}{', …' if len(classes) > 4 else ''})"


def digest(split: Split) -> str:
    """Hash of a split's images and labels, which tells whether two analyses saw the same."""
    found = hashlib.sha256(split.images.numpy().tobytes())
    found.update(split.labels.numpy().astype("<i8").tobytes())
    return found.hexdigest()[:16]


def open_folder(base: Path, given: str | None, name: str, request: Mapping[str, Any]) -> Path:
    """A folder for this analysis: new, empty, or holding the same analysis, which is then written anew.

    Args:
        given: the name asked for, refused where something else lies there; None: `name`, or `name-2`, `name-3`, …
        request: what makes two analyses the same; analysis.json holds it.

    Raises:
        InputError: the folder asked for holds something else.
    """
    folder, number = base / (given or name), 1
    while folder.exists() and any(folder.iterdir()) and not _holds(folder, request):
        if given:
            raise InputError(f"{folder} holds something else: choose another --name")
        number += 1
        folder = base / f"{name}-{number}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _holds(folder: Path, request: Mapping[str, Any]) -> bool:
    """Whether the folder's analysis.json answers this request."""
    try:
        return read_json(folder / "analysis.json")["request"] == request
    except (InputError, KeyError, TypeError):
        return False


def pick_layer(model: nn.Module, size: int, name: str | None) -> tuple[str, tuple[int, int, int]]:
    """(layer, its map's (C, h, w)) for inputs of `size` pixels: the named one, else `gradcam.default_layer`.

    Raises:
        InputError: no such layer; names those that there are.
    """
    maps = named_maps(model, size)
    if name is not None and name not in maps:
        raise InputError(f"--layer {name}: the model has no such layer; choose from {', '.join(maps)}")
    try:
        layer = name or default_layer(model, size)
    except ValueError as error:
        raise InputError(f"{error}, or choose a layer with --layer: {', '.join(maps)}") from None
    return layer, maps[layer]


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


def heat_maps(model: nn.Module, layer: str, prepare: Preprocess, images: Tensor, targets: Tensor) -> Tensor:
    """Grad-CAM (N, H, W) on the CPU, at the network's input size, for uint8 images and (N,) classes."""
    parts = zip(images.split(CHUNK), targets.split(CHUNK))
    return torch.cat([grad_cam(model, layer, prepare.clean(some), classes).cpu() for some, classes in parts])


def faithfulness(model: nn.Module, layer: str, grid: tuple[int, int], prepare: Preprocess, images: Tensor, targets: Tensor,
                 generator: torch.Generator, groups: Mapping[str, Sequence[bool]], progress: Callable[[int], object]) -> dict[str, Any]:
    """Deletion and insertion curves of Grad-CAM, of random maps and of the centre prior on the same images, with intervals.

    Args:
        grid: (h, w) of the layer's map, on which the random maps are drawn too.
        images: (N, 3, H, W) uint8; targets (N,) are the classes whose probability is followed.
        groups: name -> N flags, parts of the images whose differences are given apart.

    Returns:
        `curves` and `areas` by kind of map, and `differences` Grad-CAM minus control, paired by image, by group.
    """
    parts: dict[str, list] = {"gradcam": [], "random": [], "centre": []}
    for some, classes in zip(images.split(CHUNK), targets.split(CHUNK)):
        inputs = prepare.clean(some)
        shape = len(some), *inputs.shape[-2:]
        maps = grad_cam(model, layer, inputs, classes), random_maps(*shape, generator, grid), center_prior(*shape)
        for kind, heat in zip(parts, maps):
            parts[kind].append(deletion_insertion(model, inputs, classes, heat, STEPS))
            progress(len(some))
    both = ("deletion", "insertion")
    curves = {kind: {name: torch.cat([getattr(part, name) for part in some]).cpu() for name in both} for kind, some in parts.items()}
    areas = {kind: {name: torch.cat([getattr(part, f"{name}_area") for part in some]).cpu() for name in both} for kind, some in parts.items()}
    members = {"all": [True] * len(images), **groups}
    return {
        "images": len(images), "steps": STEPS, "fraction": [i / STEPS for i in range(STEPS + 1)],
        "curves": {kind: {name: _band(curve[name]) for name in both} for kind, curve in curves.items()},
        "areas": {kind: {name: interval(area[name]) for name in both} for kind, area in areas.items()},
        "differences": {group: {control: {name: interval((areas["gradcam"][name] - areas[control][name])[torch.tensor(flags)]) for name in both}
                                for control in ("random", "centre")} for group, flags in members.items()},
    }  # fmt: skip


def _band(curves: Tensor) -> dict[str, list]:
    """Mean, low and high at every point of (N, S + 1) curves."""
    points = [interval(column) for column in curves.T]
    return {key: [point[key] for point in points] for key in ("mean", "low", "high")}


def halves(heat: Callable[[Tensor, Tensor], Tensor], model: nn.Module, prepare: Preprocess, images: Tensor, true: int,
           predicted: int) -> dict[str, Any]:
    """Whether one class is taken for another because of the lower half of the image, over all such errors, (N, 3, H, W) uint8.

    `heat_below` is the share of a map's heat in the lower half, for the predicted and the true class, over errors where both maps have
    any; `drop` is how far the predicted class's probability falls when the lower or the upper half is blanked (set to input 0).
    """
    below, drop = {"predicted": [], "true": []}, {"lower": [], "upper": []}
    for some in images.split(CHUNK) if len(images) else ():
        targets = torch.full((len(some),), true, device=some.device)
        maps = {"true": heat(some, targets), "predicted": heat(some, torch.full_like(targets, predicted))}
        lit = (maps["true"].amax((1, 2)) > 0) & (maps["predicted"].amax((1, 2)) > 0)
        for key, found in maps.items():
            below[key].append((found[:, found.shape[1] // 2 :].sum((1, 2)) / found.sum((1, 2)))[lit])
        inputs = prepare.clean(some)
        rows = torch.arange(inputs.shape[2], device=some.device)[:, None] >= inputs.shape[2] // 2
        with torch.no_grad():
            probs = [model(changed).softmax(1)[:, predicted].cpu() for changed in (inputs, inputs.masked_fill(rows, 0), inputs.masked_fill(~rows, 0))]
        drop["lower"].append(probs[0] - probs[1])
        drop["upper"].append(probs[0] - probs[2])
    return {"images": len(images), "heat_below": _paired(below), "drop": _paired(drop)}


def _paired(parts: Mapping[str, list[Tensor]]) -> dict[str, Any]:
    """Intervals of two paired series and of the first minus the second."""
    series = {key: torch.cat(some) if some else torch.zeros(0) for key, some in parts.items()}
    first, second = series.values()
    return {**{key: interval(values) for key, values in series.items()}, "difference": interval(first - second)}


def describe(path: str, card: Mapping[str, Any]) -> dict[str, Any]:
    """What analysis.json keeps of a checkpoint."""
    return {"file": path, "model": card["arch"]["name"], "trained_on": card.get("source"), "metrics": card.get("metrics"), "recipe": card["recipe"],
            "split_hash": card["split_hash"], "versions": card.get("versions")}


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
