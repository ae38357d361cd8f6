"""What an analysis starts from: a checkpoint, its data, a layer, a folder."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from common.analysis.gradcam import default_layer, named_maps
from common.config import Recipe, Runtime
from common.data.augment import Augmentation, Preprocess
from common.data.sources import CLASSES, load_splits
from common.data.splits import Split, Splits
from common.errors import InputError
from common.files import Json, read_json, write_json
from common.training.run import load_model


@dataclass(frozen=True)
class Subject:
    """A network under analysis: its checkpoint, its input, where Grad-CAM looks."""

    path: Path
    run: str  # name of the training run
    model: nn.Module
    card: Json
    recipe: Recipe
    classes: tuple[str, ...]
    input_size: int  # pixels a side, as the network sees images
    prepare: Preprocess
    layer: str
    map: tuple[int, int, int]  # (C, h, w) of the layer's output

    def __str__(self) -> str:
        return f"{self.path}: {self.recipe.model} of run {self.run}"

    def describe(self) -> Json:
        """What analysis.json keeps of the checkpoint."""
        kept = {key: self.card.get(key) for key in ("source", "metrics", "recipe")}
        return {"file": str(self.path), "run": self.run, "model": self.recipe.model, **kept}

    @property
    def where(self) -> str:
        """Where the heat maps come from."""
        _, h, w = self.map
        return f"Grad-CAM at {self.layer}: a map of {h}×{w} for {self.input_size}-pixel inputs"


def open_subject(ckpt: str, layer: str | None, device: torch.device) -> Subject:
    """The network of a checkpoint on `device`; `layer` None is the deepest with a map of 4x4.

    Raises:
        InputError: no readable checkpoint, one that contradicts itself, or no such layer.
    """
    path = Path(ckpt).expanduser()
    model, card = load_model(path, device)
    try:
        recipe = Recipe(**card["recipe"])
        size, inputs = card["image_size"] * card["resize"], card["probe"]["inputs"]
        channels = len(card["mean"]), len(card["std"])
        found = (recipe.model, size, channels)
        agree = found == (card["arch"]["name"], inputs.shape[-1], (3, 3))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        agree, found = False, error
    if not agree:
        raise InputError(f"{path} does not describe itself ({found}): use a best.pt that this "
                         "version wrote")
    prepare = Preprocess(card["mean"], card["std"], card["resize"], Augmentation(), device)
    chosen, shape = _pick_layer(model, size, layer)
    folder = path.resolve().parent
    in_run = (folder / "recipe.json").is_file()
    run = card.get("run") or (folder.name if in_run else recipe.name())
    classes = tuple(map(str, card["classes"]))
    return Subject(path, run, model, card, recipe, classes, size, prepare, chosen, shape)


def _pick_layer(model: nn.Module, size: int,
                name: str | None) -> tuple[str, tuple[int, int, int]]:
    """(layer, its map's (C, h, w)) for inputs of `size` pixels: the named one or the default."""
    maps = named_maps(model, size)
    layer = name or default_layer(model, size)
    if layer not in maps:
        legal = ", ".join(maps)
        raise InputError(f"--layer {layer}: the model has no such layer; choose from {legal}")
    return layer, maps[layer]


def open_splits(subject: Subject, runtime: Runtime) -> Splits:
    """The data of --data-dir, else of the training's --data-dir, else as training finds it.

    Raises:
        InputError: no data, or data with other classes or of another image size.
    """
    path, size = subject.path, subject.card["image_size"]
    if not subject.recipe.synthetic and not runtime.data_dir:
        # What the checkpoint remembers is no flag of the user's. CIFAR-10 may have moved to where
        # training looks for it; other data is nowhere else.
        trained_on = subject.card.get("data_dir")
        if trained_on and (Path(trained_on).is_dir() or subject.classes != CLASSES):
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
    card = subject.card
    # Old checkpoints have no identity.
    changed = card.get("identity", splits.identity) != splits.identity
    if name == "val" and (changed or card["split_hash"] != splits.split_hash):
        raise InputError(f"--split val: this data does not give the val images that {subject.path} "
                         "held out: give the data of its training with --data-dir, or use --split "
                         "test")
    if changed:
        print("this data is not the training's: its images, labels or classes differ")
    split: Split = getattr(splits, name)
    if limit is not None and limit < len(split):
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
    base, number = Path(runtime.out).expanduser() / "analyze", 1
    folder = base / (runtime.run_name or name)
    while folder.exists() and any(folder.iterdir()) and not _holds(folder, request):
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
