"""What an analysis starts from: a checkpoint, its data, a folder, a layer."""
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.analysis.gradcam import default_layer, named_maps
from common.config import Recipe, Runtime
from common.data.sources import load_splits
from common.data.splits import Split
from common.errors import InputError
from common.files import read_json


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
    """(layer, its map's (C, h, w)) for inputs of `size` pixels: the named one, else `default_layer`.

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


def describe(path: str, card: Mapping[str, Any]) -> dict[str, Any]:
    """What analysis.json keeps of a checkpoint."""
    return {"file": path, "model": card["arch"]["name"], "trained_on": card.get("source"), "metrics": card.get("metrics"), "recipe": card["recipe"],
            "split_hash": card["split_hash"], "versions": card.get("versions")}
