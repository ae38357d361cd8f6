"""What an analysis starts from: a checkpoint and its data; and where it is kept.

From Python, too: `open_subject` gives a network that reads pictures, names them and explains them.
"""
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
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
from common.files import Json, read_checkpoint, read_json, write_json
from common.models.build import build, named_maps
from common.training.loop import eval_batch_size, predict
from common.training.run import FORMAT

CARD_KEYS = ("format", "arch", "weights", "probe", "classes", "mean", "std", "resize",
             "image_size", "recipe", "source", "split_hash")
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
    # By key of CAMS: heat maps (N, H, W) of prepared inputs (N, 3, H, W) for classes (N,).
    cams: dict[str, Callable[[Tensor, Tensor], Tensor]]
    cam: str  # those that are shown
    where: str  # in words, which these are and where they come from

    def __str__(self) -> str:
        return f"{self.path}: {self.recipe.model} of run {self.run}"

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

    def probs(self, images: Tensor) -> Tensor:
        """(N, K) probabilities of the classes for (N, 3, S, S) uint8 images."""
        return predict(self.model, images, self.prepare).softmax(1)

    def heat(self, images: Tensor, targets: Tensor) -> Tensor:
        """(N, H, W) float32 heat maps in [0, 1], on the CPU, at the size of the network's input.

        Args:
            images: (N, 3, S, S) uint8; targets: (N,) int64, the classes to find evidence for.
        """
        explain = self.cams[self.cam]
        return torch.cat([explain(self.prepare.clean(some), classes).cpu()
                          for some, classes in self.portions(images, targets)])

    def portions(self, images: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Images and classes, so many at a time that memory is bounded."""
        # In equal parts, none of a single image, since chance is a neighbour's heat map.
        # A pass that is explained takes five times the memory of one that is not.
        parts = max(1, len(images) // max(2, eval_batch_size(images, self.prepare) // 5))
        return [*zip(images.tensor_split(parts), targets.tensor_split(parts))]


def load_model(path: str | Path, device: torch.device | str = "cpu") -> tuple[Module, Json]:
    """(model in eval mode, checkpoint) of one of the project's checkpoints, its probe checked.

    Raises:
        InputError: not a readable checkpoint, of another kind, or its network does not give the
            logits it promises.
    """
    path = Path(path)
    checkpoint = read_checkpoint(path, CARD_KEYS)
    if checkpoint["format"] != FORMAT:
        raise InputError(f"{path} has format {checkpoint['format']}, this version reads {FORMAT}: "
                         "train again, or use the version that wrote it")
    try:
        model = build(**checkpoint["arch"]).eval()
        model.load_state_dict(checkpoint["weights"])
        promised = checkpoint["probe"]["logits"]
        with torch.no_grad():
            logits = model(checkpoint["probe"]["inputs"])
        if logits.shape[1] != len(checkpoint["classes"]):
            raise ValueError(f"{logits.shape[1]} outputs, {len(checkpoint['classes'])} classes")
        # Other processors and versions round otherwise; wrong weights are far off.
        off = (logits - promised).abs().max()
        allowed = 1e-3 * max(1, promised.abs().max())
    except Exception as error:  # whatever a foreign card holds under these keys
        raise InputError(f"{path} does not fit its own description ({reason(error)}): "
                         "use another checkpoint") from None
    if not off <= allowed:
        raise InputError(f"{path} does not give its recorded logits (off by {off:.2g}): weights or "
                         "padding were changed")
    return model.to(device), checkpoint


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
    if layer and cam != "gradcam":
        raise InputError("--layer is one of Grad-CAM, HiResCAM sums several: add --cam gradcam, or "
                         "leave --layer out")
    layer = layer or default_layer(model, size)
    if layer not in maps:
        raise InputError(f"--layer {layer}: the model has no such layer; choose from "
                         f"{', '.join(maps)}")
    layers = fine_layers(model, size)
    cams = {"hirescam": partial(hires_cam, model, layers),
            "gradcam": partial(grad_cam, model, layer)}
    places = ", ".join("{1}×{2} ({0})".format(name, *maps[name][1:])
                       for name in ([layer] if cam == "gradcam" else layers))
    where = f"{CAMS[cam]} for {size}-pixel inputs, maps of {places}"
    prepare = Preprocess(card["mean"], card["std"], Recipe(resize=card["resize"]), device)
    run = card.get("run", recipe.model)
    classes = tuple(card["classes"])
    return Subject(path, run, model, card, recipe, classes, prepare, cams, cam, where)


def open_splits(subject: Subject, runtime: Runtime) -> Splits:
    """The data of --data-dir, else of the training's --data-dir, else as training finds it.

    Raises:
        InputError: no data, or data with other classes.
    """
    size = subject.card["image_size"]
    trained_on = subject.card.get("data_dir")
    if trained_on and not (subject.recipe.synthetic or runtime.data_dir):
        # What the checkpoint remembers is no flag of the user's. CIFAR-10 may have moved to where
        # training looks for it; other data is nowhere else.
        if subject.classes != CLASSES or Path(trained_on).is_dir():
            runtime = replace(runtime, data_dir=trained_on)
    splits = load_splits(subject.recipe, runtime)
    if splits.image_size != size:  # brought to the size that the training had
        splits = load_splits(replace(subject.recipe, image_size=size), runtime)
    if splits.classes != subject.classes:
        raise InputError(
            f"{subject.path} knows {', '.join(subject.classes)}, but the data has "
            f"{', '.join(splits.classes)}: give data of its kind by --data-dir")
    return splits


def pick_split(subject: Subject, splits: Splits, name: str, limit: int | None,
               generator: torch.Generator) -> Split:
    """test or val, or `limit` of its images drawn at random; says so where the data has changed.

    Raises:
        InputError: val is asked for and is not what the checkpoint's training held out.
    """
    key = "identity" if "identity" in subject.card else "split_hash"  # of an old checkpoint
    changed = subject.card[key] != getattr(splits, key)
    if changed and name == "val":
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
    while any(folder.glob("*")):
        with suppress(InputError):  # of a folder that another command wrote
            if read_json(folder / "request.json") == request:
                break
        if runtime.run_name:
            raise InputError(f"{folder} holds something else: choose another --name")
        number += 1
        folder = base / f"{name}-{number}"
    write_json(folder / "request.json", request)
    return folder
