"""What an analysis starts from: a checkpoint and its data; and where it is kept.

From Python, too: `open_subject` gives a network that reads pictures, names them and explains them.
"""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from numpy import ndarray
from torch import Tensor
from torch.nn import Module

from common.analysis.gradcam import default_layer, fine_layers, grad_cam, hires_cam
from common.config import Recipe, Runtime
from common.data.augment import Preprocess
from common.data.folders import fit_picture, read_picture
from common.data.sources import load_splits
from common.data.splits import CLASSES, Names, Split, Splits
from common.errors import InputError, reason
from common.files import Json, read_json, write_json
from common.models.build import named_maps
from common.training.loop import eval_batch_size, predict
from common.training.run import load_model

CAMS = {"hirescam": "HiResCAM", "gradcam": "Grad-CAM"}


@dataclass(frozen=True)
class Subject:
    """A network under analysis: its checkpoint, its input, its heat maps."""

    path: Path
    run: str  # name of the training run
    model: Module
    card: Json
    recipe: Recipe
    classes: Names
    prepare: Preprocess
    cam: str  # a key of CAMS: the heat maps that are shown
    layers: Sequence[str]  # of HiResCAM
    layer: str  # of Grad-CAM
    where: str  # in words, which heat maps are shown and where they come from

    def __str__(self) -> str:
        return f"{self.path}: {self.recipe.model} of run {self.run}"

    def describe(self) -> Json:
        """What analysis.json keeps of the checkpoint."""
        return {
            "file": str(self.path), "run": self.run, "model": self.recipe.model,
            "source": self.card["source"], "metrics": self.card.get("metrics"),
        }

    def read(self, picture: str | Path | ndarray) -> Tensor:
        """(1, 3, S, S) uint8: a picture brought to the size that the training had.

        Args:
            picture: a file, or an array (H, W, 3) of uint8, RGB.

        Raises:
            InputError: the file cannot be read.
        """
        size, fit = self.card["image_size"], self.card.get("fit", "pad")
        if isinstance(picture, ndarray):
            image = fit_picture(picture[:, :, ::-1], size, fit)
        else:
            image = read_picture(picture, size, fit)
        return torch.from_numpy(image.copy())[None].to(self.prepare.mean.device)

    def logits(self, images: Tensor, **progress: object) -> Tensor:
        """(N, K) float32 logits of (N, 3, S, S) uint8 images; batches are bounded by pixels."""
        return predict(self.model, images, self.prepare, **progress)

    def probs(self, images: Tensor) -> Tensor:
        """(N, K) probabilities of the classes for (N, 3, S, S) uint8 images."""
        return self.logits(images).softmax(1)

    def heat(self, images: Tensor, targets: Tensor, cam: str | None = None) -> Tensor:
        """(N, H, W) float32 heat maps in [0, 1], on the CPU, at the size of the network's input.

        Args:
            images: (N, 3, S, S) uint8; targets: (N,) int64, the classes to find evidence for.
            cam: a key of CAMS; None: the one that is shown.
        """
        parts = [self.heat_of(*part, cam).cpu() for part in self.portions(images, targets)]
        return torch.cat(parts)

    def heat_of(self, inputs: Tensor, targets: Tensor, cam: str | None = None) -> Tensor:
        """`heat` of prepared inputs (N, 3, H, W) in one pass, on their device."""
        if (cam or self.cam) == "gradcam":
            return grad_cam(self.model, self.layer, inputs, targets)
        return hires_cam(self.model, self.layers, inputs, targets)

    def portions(self, images: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Network inputs and classes, so many at a time that memory is bounded."""
        # In equal parts, none of a single image, since chance is a neighbour's heat map.
        # A pass that is explained takes five times the memory of one that is not.
        parts = max(1, len(images) // max(2, eval_batch_size(images, self.prepare) // 5))
        for some, classes in zip(images.tensor_split(parts), targets.tensor_split(parts)):
            yield self.prepare.clean(some), classes


def open_subject(ckpt: str | Path, device: torch.device | str = "cpu", cam: str = "hirescam",
                 layer: str | None = None) -> Subject:
    """The network of a checkpoint on `device`, with its heat maps.

    Args:
        cam: "hirescam", at the layers that `fine_layers` picks, or "gradcam".
        layer: of Grad-CAM; None is that of `default_layer`.

    Raises:
        InputError: no readable checkpoint, one that contradicts itself, or no such layer.
    """
    path = Path(ckpt)
    device = torch.device(device)
    model, card = load_model(path, device)
    try:
        recipe = Recipe(**card["recipe"])
        size = card["image_size"] * card["resize"]
        found = recipe.model, size, len(card["mean"]), len(card["std"])
        if found != (card["arch"]["name"], card["probe"]["inputs"].shape[-1], 3, 3):
            raise ValueError(found)
    except Exception as error:  # whatever a foreign card holds under these keys
        raise InputError(f"{path} does not describe itself ({reason(error)}): use a best.pt that "
                         "this version wrote") from None
    # As in training: a sixth faster on a CPU.
    model.to(memory_format=torch.channels_last)
    maps = named_maps(model, size)
    layers = fine_layers(model, size)
    if layer and cam != "gradcam":
        raise InputError("--layer is one of Grad-CAM, HiResCAM sums several: add --cam gradcam, or "
                         "leave --layer out")
    layer = layer or default_layer(model, size)
    if layer not in maps:
        raise InputError(f"--layer {layer}: the model has no such layer; choose from "
                         f"{', '.join(maps)}")
    shown = [layer] if cam == "gradcam" else layers
    places = ", ".join("{1}×{2} ({0})".format(name, *maps[name][1:]) for name in shown)
    where = f"{CAMS[cam]} for {size}-pixel inputs, maps of {places}"
    prepare = Preprocess(card["mean"], card["std"], Recipe(resize=card["resize"]), device)
    run = card.get("run", recipe.model)
    classes = tuple(map(str, card["classes"]))
    return Subject(path, run, model, card, recipe, classes, prepare, cam, layers, layer, where)


def open_splits(subject: Subject, runtime: Runtime) -> Splits:
    """The data of --data-dir, else of the training's --data-dir, else as training finds it.

    Raises:
        InputError: no data, or data with other classes.
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
    if splits.classes != subject.classes:
        raise InputError(
            f"{path} knows {', '.join(subject.classes)}, but the data has "
            f"{', '.join(splits.classes)}: give data of its kind by --data-dir")
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
