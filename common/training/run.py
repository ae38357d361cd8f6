"""A run's folder, its history, its checkpoints, and going on where it stopped."""
import copy
import csv
import io
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.config import Recipe, Runtime, difference
from common.data.splits import Splits
from common.errors import InputError, reason
from common.files import read_checkpoint, read_json, write_checkpoint, write_json, write_text
from common.models.build import build

FORMAT = 1
SAVE_EVERY_S = 10.0  # on a GPU an epoch lasts a second and last.pt 90 MB: write it when this much work would be lost
FIELDS = ("stage", "epoch", "train_loss", "train_top1", "val_loss", "val_top1", "lr", "seconds", "images_per_s")


class Run:
    """One run: `runs/<script>/<name>/` with recipe.json, history.csv, result.json, figures, best.pt and last.pt.

    `history` is the only state; best epoch, finished epochs of a stage and patience are all derived from it.
    """

    def __init__(self, folder: Path, recipe: Recipe, card: dict[str, Any]) -> None:
        self.folder, self.recipe, self.card = folder, recipe, card
        self.history: list[dict[str, Any]] = []
        self.best_weights: dict[str, torch.Tensor] | None = None
        self.optimizer_state: dict[str, Any] | None = None
        self._kept: dict[str, Any] | None = None
        self._saved_at = float("-inf")

    @property
    def best(self) -> dict[str, Any] | None:
        """The history row with the highest val top-1, the first of equals; None before the first epoch."""
        return max(self.history, key=lambda row: row["val_top1"], default=None)

    def epochs_done(self, stage: str) -> int:
        """Whole epochs of `stage` in the history."""
        return sum(row["stage"] == stage for row in self.history)

    def stalled(self, stage: str) -> int:
        """Epochs of `stage` since its best val top-1."""
        values = [row["val_top1"] for row in self.history if row["stage"] == stage]
        return len(values) - 1 - values.index(max(values)) if values else 0

    def keep(self, model: nn.Module, optimizer: torch.optim.Optimizer, stage: str) -> None:
        """Copy the state after a whole epoch, on its device, so that it can be written whenever the run stops."""
        self._kept = {"weights": _copy(model.state_dict()), "stage": stage, "optimizer": copy.deepcopy(optimizer.state_dict()),
                      "history": list(self.history)}
        if self.history and self.best is self.history[-1]:
            self.best_weights = self._kept["weights"]

    def save(self, force: bool = False) -> None:
        """Write best.pt, last.pt and history.csv as of the last whole epoch, if `force` or if SAVE_EVERY_S have passed."""
        if self._kept is None or not force and time.monotonic() - self._saved_at < SAVE_EVERY_S:
            return
        if self.best is not None:
            write_checkpoint(self.folder / "best.pt", {**self.card, "metrics": dict(self.best), "weights": self.best_weights,
                                                       "probe": self._probe()})
        weights = self._kept["weights"]
        write_checkpoint(self.folder / "last.pt", {**self.card, "weights": weights, "training": {**self._kept, "weights": None}})
        write_history(self.folder / "history.csv", self._kept["history"])
        self._saved_at = time.monotonic()

    def _probe(self) -> dict[str, torch.Tensor]:
        """The card's probe inputs with the logits that the best weights give in fp32 on the CPU."""
        with torch.random.fork_rng(devices=[]):
            twin = build(**self.card["arch"])
        twin.load_state_dict(self.best_weights)
        with torch.no_grad():
            return {"inputs": self.card["probe_inputs"], "logits": twin.eval()(self.card["probe_inputs"])}

    def restore(self, model: nn.Module) -> None:
        """Load last.pt into the model and the history; the optimiser's state waits for the stage it belongs to."""
        last = read_checkpoint(self.folder / "last.pt")
        model.load_state_dict(last["weights"])
        self.history, self.optimizer_state = last["training"]["history"], last["training"]["optimizer"]
        if self.history:
            self.best_weights = read_checkpoint(self.folder / "best.pt")["weights"]

    @property
    def resumed_stage(self) -> str | None:
        """The stage of the last epoch in the history."""
        return self.history[-1]["stage"] if self.history else None


def card(arch: dict[str, Any], splits: Splits, recipe: Recipe, mean: Iterable[float], std: Iterable[float],
         probe_inputs: torch.Tensor, versions: dict[str, Any]) -> dict[str, Any]:
    """The self-description that every checkpoint of a run carries.

    Args:
        arch: arguments of `build`, padding included.
        probe_inputs: (n, 3, H, W) float32, network inputs.
    """
    return {"format": FORMAT, "arch": arch, "resize": recipe.resize, "image_size": splits.image_size, "mean": tuple(mean), "std": tuple(std),
            "classes": splits.classes, "recipe": asdict(recipe), "source": splits.source, "split_hash": splits.split_hash,
            "probe_inputs": probe_inputs.contiguous(), "versions": versions}


def open_folder(script: str, recipe: Recipe, runtime: Runtime, splits_hash: str, versions: dict[str, Any]) -> tuple[Path, bool]:
    """(folder, whether the run in it is finished); a new folder gets its recipe.json, an old one is refused unless resumed.

    Raises:
        InputError: the folder holds a run and --resume is absent, or --resume finds another recipe or nothing.
    """
    base = Path(runtime.out) / script
    name = runtime.run_name or ("smoke-" if runtime.smoke else "") + recipe.name()
    folder = base / name
    if runtime.smoke and not runtime.run_name and not runtime.resume:
        number = 1
        while folder.exists() and any(folder.iterdir()):  # a trial run never stands in the way of the next one
            number += 1
            folder = base / f"{name}-{number}"
    used = folder.exists() and any(folder.iterdir())
    if used and not runtime.resume:
        raise InputError(f"{folder} holds a run already: go on with --resume, or choose a new --name")
    if runtime.resume:
        if not (folder / "recipe.json").is_file():
            raise InputError(f"--resume: {folder} holds no run; leave --resume out, or name the run with --name")
        stored = read_json(folder / "recipe.json")
        changes = difference(stored["recipe"], {**asdict(recipe)}) + difference({"data": stored["split_hash"]}, {"data": splits_hash})
        if changes:
            raise InputError(f"--resume: the recipe differs from that of {folder} ({'; '.join(changes)}): restore it, or choose a new --name")
        return folder, (folder / "result.json").is_file()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "recipe.json", {"script": script, "recipe": asdict(recipe), "runtime": asdict(runtime), "split_hash": splits_hash,
                                        "versions": versions})
    return folder, False


def _copy(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict's own copy on the same device."""
    return {key: value.detach().clone() for key, value in state.items()}


def write_history(path: Path, history: list[dict[str, Any]]) -> None:
    """The history as CSV, one row an epoch; top-1 as a fraction, seconds of training and evaluation."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(path, text.getvalue())


def load_model(path: Path, device: torch.device | str = "cpu") -> tuple[nn.Module, dict[str, Any]]:
    """(model in eval mode, checkpoint) of one of the project's checkpoints, its probe checked.

    Raises:
        InputError: not a readable checkpoint, of another kind, or its network does not give the logits it promises.
    """
    checkpoint = read_checkpoint(path)
    if missing := [key for key in ("format", "arch", "weights", "probe", "classes", "mean", "std", "resize", "split_hash") if key not in checkpoint]:
        raise InputError(f"{path} is not a best.pt of this project ({missing[0]} is missing): use one that a training script wrote")
    if checkpoint["format"] != FORMAT:
        raise InputError(f"{path} has format {checkpoint['format']}, this version reads {FORMAT}: train again, or use the version that wrote it")
    try:
        model = build(**checkpoint["arch"])
        model.load_state_dict(checkpoint["weights"])
        with torch.no_grad():
            logits = model.eval()(checkpoint["probe"]["inputs"])
        expected, classes = checkpoint["probe"]["logits"], len(checkpoint["classes"])
        fits = logits.shape == expected.shape and classes == logits.shape[1]
        off = float((logits - expected).abs().max()) if fits else 0.0
        allowed = 1e-3 * max(1.0, float(expected.abs().max()))
    except (RuntimeError, TypeError, KeyError, AttributeError, ValueError) as error:
        raise InputError(f"{path} does not fit its own description ({reason(error)}): use another checkpoint") from None
    if not fits:
        raise InputError(f"{path} does not fit its own description ({logits.shape[1]} outputs, {classes} classes): use another checkpoint")
    if not off <= allowed:
        raise InputError(f"{path} does not give its recorded logits (off by {off:.2g}): weights or padding were changed")
    return model.to(device), checkpoint


def publish(best: Path, target: Path = Path("best.pt")) -> str:
    """Put a run's best.pt at `target`, keeping a file there that exists nowhere else; returns one line saying so."""
    note = ""
    if target.exists() and target.stat().st_nlink == 1:
        number = 1
        while (aside := target.with_name(f"{target.stem}.{number}{target.suffix}")).exists():
            number += 1
        os.replace(target, aside)
        note = f" (the file that was there is now {aside})"
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        os.link(best, temporary)
    except OSError:  # another file system
        shutil.copyfile(best, temporary)
    os.replace(temporary, target)
    return f"{best} -> {target}{note}"
