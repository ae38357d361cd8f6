"""What an analysis starts from: a checkpoint, its data, a layer, a folder."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn import Module

from common.analysis.gradcam import default_layer
from common.config import Recipe, Runtime
from common.data.augment import Augmentation, Preprocess
from common.data.sources import CLASSES, load_splits
from common.data.splits import Names, Split, Splits
from common.errors import InputError
from common.files import Json, read_json, write_json
from common.models.trace import named_maps
from common.training.run import load_model


@dataclass(frozen=True)
class Subject:
    """A network under analysis: its checkpoint, its input, where Grad-CAM looks."""

    path: Path
    run: str  # name of the training run
    model: Module
    card: Json
    recipe: Recipe
    classes: Names
    input_size: int  # pixels a side, as the network sees images
    prepare: Preprocess
    layer: str
    map: tuple[int, int]  # (h, w) of the layer's output

    where: str  # in words, where the heat maps come from

    def __str__(self) -> str:
        return f"{self.path}: {self.recipe.model} of run {self.run}"

    def describe(self) -> Json:
        """What analysis.json keeps of the checkpoint."""
        return {
            "file": str(self.path), "run": self.run, "model": self.recipe.model,
            "source": self.card["source"], "metrics": self.card.get("metrics"),
        }


def open_subject(ckpt: str, layer: str | None, device: torch.device) -> Subject:
    """The network of a checkpoint on `device`; `layer` None is the deepest with a map of 4x4.

    Raises:
        InputError: no readable checkpoint, one that contradicts itself, or no such layer.
    """
    path = Path(ckpt)
    model, card = load_model(path, device)
    try:
        recipe = Recipe(**card["recipe"])
        size = card["image_size"] * card["resize"]
        found = recipe.model, size, len(card["mean"]), len(card["std"])
        if found != (card["arch"]["name"], card["probe"]["inputs"].shape[-1], 3, 3):
            raise ValueError(found)
    except Exception as error:  # whatever a foreign card holds under these keys
        raise InputError(f"{path} does not describe itself ({error}): use a best.pt that this "
                         "version wrote") from None
    maps = named_maps(model, size)
    layer = layer or default_layer(model, size)
    if layer not in maps:
        raise InputError(f"--layer {layer}: the model has no such layer; choose from "
                         f"{', '.join(maps)}")
    prepare = Preprocess(card["mean"], card["std"], card["resize"], Augmentation(), device)
    run = card.get("run", recipe.name())
    classes = tuple(map(str, card["classes"]))
    _, h, w = maps[layer]
    where = f"Grad-CAM at {layer}: a map of {h}×{w} for {size}-pixel inputs"
    return Subject(path, run, model, card, recipe, classes, size, prepare, layer, (h, w), where)


def open_splits(subject: Subject, runtime: Runtime) -> Splits:
    """The data of --data-dir, else of the training's --data-dir, else as training finds it.

    Raises:
        InputError: no data, or data with other classes or of another image size.
    """
    path = subject.path
    size = subject.card["image_size"]
    trained_on = subject.card.get("data_dir")
    if trained_on and not (subject.recipe.synthetic or runtime.data_dir):
        # What the checkpoint remembers is no flag of the user's. CIFAR-10 may have moved to where
        # training looks for it; other data is nowhere else.
        if subject.classes != CLASSES or Path(trained_on).is_dir():
            runtime = replace(runtime, data_dir=trained_on)
    try:
        splits = load_splits(subject.recipe, runtime)
        if splits.image_size != size:  # brought to the size that the training had
            splits = load_splits(replace(subject.recipe, image_size=size), runtime)
    except InputError as error:
        raise InputError(f"the data that {path} was trained on: {error}") from None
    if (splits.classes, splits.image_size) != (subject.classes, size):
        raise InputError(
            f"{path} knows {', '.join(subject.classes)} at {size} px, but the data has "
            f"{', '.join(splits.classes)} at {splits.image_size} px: give data of its kind by "
            "--data-dir")
    return splits


def pick_split(subject: Subject, splits: Splits, name: str, limit: int | None,
               generator: torch.Generator) -> Split:
    """test or val, or `limit` of its images drawn at random; says so where the data has changed.

    Raises:
        InputError: val is asked for and is not what the checkpoint's training held out.
    """
    # Old checkpoints have no identity.
    changed = subject.card.get("identity", splits.identity) != splits.identity
    if name == "val" and (changed or subject.card["split_hash"] != splits.split_hash):
        raise InputError(f"--split val: this data does not give the val images that {subject.path} "
                         "held out: give the data of its training with --data-dir, or use --split "
                         "test")
    if changed:
        print("this data is not the training's: its images, labels or classes differ")
    split = getattr(splits, name)
    if limit:
        chosen = torch.randperm(len(split), generator=generator)[:limit]
        split = split.take(chosen.sort().values.numpy())
    return split


def open_folder(runtime: Runtime, name: str, request: Json) -> Path:
    """A folder for this analysis: new, empty, or holding the same analysis, which is written anew.

    Args:
        name: used where the user gave no --name; with `-2`, `-3`, … where it is taken.
        request: what makes two analyses the same; it is kept in the folder's request.json.

    Raises:
        InputError: the folder that the user named holds something else.
    """
    base = Path(runtime.out) / "analyze"
    folder = base / (runtime.run_name or name)
    number = 1
    while any(folder.glob("*")) and not _holds(folder, request):
        if runtime.run_name:
            raise InputError(f"{folder} holds something else: choose another --name")
        number += 1
        folder = base / f"{name}-{number}"
    write_json(folder / "request.json", request)
    return folder


def _holds(folder: Path, request: Json) -> bool:
    """Whether a folder's analysis is the one requested."""
    try:
        return read_json(folder / "request.json") == request
    except InputError:
        return False
