"""A run's folder, its history, its checkpoints, and going on where it stopped."""
import filecmp
import itertools
import os
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from common.config import Recipe, Runtime, difference
from common.data.splits import Splits
from common.errors import InputError, reason
from common.files import (Json, atomic, read_checkpoint, read_json, write_checkpoint,
                          write_csv, write_json)
from common.models.build import build

try:
    import fcntl
except ImportError:  # Windows has none, and no lock then
    fcntl = None

FORMAT = 1
SAVE_EVERY_S = 10.0  # seconds of work that may be lost when the machine fails
SAVING_SHARE = 20  # the next save comes no sooner than this many times the last one's duration
# What a run that died before the end of its first epoch leaves behind.
LEFTOVERS = {"recipe.json", "last.pt", "cifar10_sample_images.png", "augmented_batch.png"}
_locked: set[Path] = set()  # run folders that are this process's
CARD_KEYS = ("format", "arch", "weights", "probe", "classes", "mean", "std", "resize",
             "image_size", "recipe", "source", "split_hash")


class Run:
    """One run: `runs/<script>/<name>/` with recipe.json, history.csv, result.json, figures,
    best.pt and last.pt.

    `history` is the only state; best epoch, finished epochs of a stage and patience are all
    derived from it.
    """

    def __init__(self, folder: Path, card: Json) -> None:
        self.folder, self.card = folder, card
        self.history: list[Json] = []
        self.best_weights: Json = {}
        self.optimizer_state: Json = {}  # of the run that is resumed
        self._state: Json = {}  # of model and optimiser after the last whole epoch
        self._best_on_disk: Json | None = None
        self._next_save = 0.0

    @property
    def best(self) -> Json | None:
        """The history's best row; None before any."""
        return best_row(self.history)

    def val_top1(self, stage: str) -> list[float]:
        """Val top-1 after each whole epoch of `stage`."""
        return [row["val_top1"] for row in self.history if row["stage"] == stage]

    def keep(self, model: Module, optimizer: Optimizer, row: Json | None = None) -> None:
        """Copy the state after a whole epoch, on its device, to be written whenever the run stops;
        `row` is the epoch's line of the history."""
        # References to living tensors, which the next step changes: hence the copy. copy.deepcopy
        # does the same, at several times the cost of a copy on a GPU.
        living = {"weights": model.state_dict(), "optimizer": optimizer.state_dict()}
        self._state = tree_map_only(Tensor, torch.clone, living)
        if row:
            self.history.append(row)
            if self.best is row:
                self.best_weights = self._state["weights"]

    def save(self, force: bool = False) -> None:
        """Write best.pt, last.pt and history.csv as of the last whole epoch, if `force` or if
        enough has been done since the last time."""
        start, best, state = time.monotonic(), self.best, self._state
        if not state or not force and start < self._next_save:
            return
        # best.pt before last.pt: a resumed run must find the best epoch of its history on the disk.
        if best != self._best_on_disk:
            write_checkpoint(self.folder / "best.pt", {
                **self.card, "metrics": best, "weights": self.best_weights,
                "probe": self._probe(),
            })
            self._best_on_disk = best
        write_checkpoint(self.folder / "last.pt", {
            **self.card, "weights": state["weights"],
            "training": {"history": self.history, "optimizer": state["optimizer"]},
        })
        if self.history:  # this file tells that an epoch was finished
            rows = map(dict.values, self.history)
            write_csv(self.folder / "history.csv", self.history[0], rows)
        end = time.monotonic()
        self._next_save = end + max(SAVE_EVERY_S, SAVING_SHARE * (end - start))

    def _probe(self) -> dict[str, Tensor]:
        """The probe inputs, and the logits of the best weights in fp32 on the CPU."""
        # A twin, so that the model keeps its device, mode and dtype; its random start is not drawn
        # from the run's generator.
        inputs = self.card["probe_inputs"]
        with torch.random.fork_rng(devices=[]):
            twin = build(**self.card["arch"])
        twin.load_state_dict(self.best_weights)
        with torch.no_grad():
            return {"inputs": inputs, "logits": twin.eval()(inputs)}

    def restore(self, model: Module) -> None:
        """Load last.pt into the model and the history; the optimiser's state waits for `fit`."""
        path = self.folder / "last.pt"
        last = read_checkpoint(path, ("weights", "training"))
        try:
            model.load_state_dict(last["weights"])
            training = last["training"]
            self.history, self.optimizer_state = training["history"], training["optimizer"]
            if self.history:
                best = read_checkpoint(self.folder / "best.pt", ("weights", "metrics"))
                self.best_weights = best["weights"]
                self._best_on_disk = best["metrics"]
        except Exception as error:  # whatever a foreign file holds under these keys
            raise InputError(f"--resume: {path} is not what this run wrote ({reason(error)}): "
                             "restore it, or choose a new --name") from None


def best_row(history: Iterable[Json]) -> Json | None:
    """The row with the highest val top-1, None without any; among equals, which small sets have
    many of, the one with the lowest val loss."""
    return max(history, key=lambda row: (row["val_top1"], -row["val_loss"]), default=None)


def card(arch: Json, splits: Splits, recipe: Recipe, mean: tuple[float, ...],
         std: tuple[float, ...], probe_inputs: Tensor, versions: Json) -> Json:
    """The self-description that every checkpoint of a run carries.

    Args:
        arch: arguments of `build`, padding included.
        probe_inputs: (n, 3, H, W) float32, network inputs.
    """
    return {
        "format": FORMAT, "arch": arch, "resize": recipe.resize, "image_size": splits.image_size,
        "fit": recipe.fit, "mean": mean, "std": std, "classes": splits.classes,
        "recipe": asdict(recipe), "source": splits.source, "split_hash": splits.split_hash,
        "identity": splits.identity, "probe_inputs": probe_inputs.contiguous(),
        "versions": versions,
    }


def open_folder(script: str, recipe: Recipe, runtime: Runtime, data: dict[str, str],
                versions: Json) -> Path:
    """The run's folder, which is this process's alone until its end.

    A new folder gets its recipe.json, with --resume too; one that holds a run is refused unless it
    is resumed.

    Args:
        data: split_hash and identity of the data.

    Raises:
        InputError: the folder holds a run and --resume is absent, --resume finds another recipe or
            other data, or another process trains there.
    """
    first = folder = Path(runtime.out, script, runtime.run_name or recipe.name())
    if runtime.smoke and not (runtime.name_given or runtime.resume):
        # A trial run never stands in the way of the next one.
        numbers = itertools.count(2)
        while _holds_run(folder):
            folder = first.with_name(f"{first.name}-{next(numbers)}")
    folder.mkdir(parents=True, exist_ok=True)
    _lock(folder)
    if runtime.resume and (folder / "recipe.json").is_file():
        _check_same(folder, asdict(recipe), data)
        return folder
    if _holds_run(folder):
        raise InputError(f"{folder} holds a run already: go on with --resume, or choose a new "
                         "--name")
    write_json(folder / "recipe.json", {"script": script, "recipe": asdict(recipe),
                                        "runtime": asdict(runtime), **data, "versions": versions})
    # Of a run that ended before its first epoch did.
    (folder / "last.pt").unlink(missing_ok=True)
    return folder


def _holds_run(folder: Path) -> bool:
    """Whether there is more than what a run leaves that ends within its first epoch."""
    # A process that is killed while it writes leaves its temporary file.
    return any(file.name not in LEFTOVERS and file.suffix != ".tmp" for file in folder.glob("*"))


def _lock(folder: Path) -> None:
    """Keep other processes out of a run's folder until this one ends, however it ends."""
    # Of the folder itself, not of a file in it, which a kill would leave behind.
    place = folder.resolve()
    if fcntl is None or place in _locked:
        return
    handle = os.open(place, os.O_RDONLY)  # closed with the process
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{folder} is being trained by another process: wait for it, or choose a "
                         "new --name") from None
    except OSError:  # a file system without locks
        pass
    _locked.add(place)


def _check_same(folder: Path, recipe: Json, data: dict[str, str]) -> None:
    """Raise InputError if the run in `folder` has another recipe or other data."""
    file = folder / "recipe.json"
    stored = read_json(file, ("recipe", "split_hash"))
    if not isinstance(stored["recipe"], dict):
        raise InputError(f"{file} holds no recipe: restore it, or choose a new --name")
    # Fields and hashes younger than the run are as they were by default.
    before = asdict(Recipe()) | stored["recipe"]
    changes = difference(before, recipe)
    if any(stored.get(key, value) != value for key, value in data.items()):
        changes.append("the images are not those it was trained on")
    if changes:
        raise InputError(f"--resume: the recipe or the data differs from that of {folder} "
                         f"({'; '.join(changes)}): restore it, or choose a new --name")


def load_model(path: Path, device: torch.device | str = "cpu") -> tuple[Module, Json]:
    """(model in eval mode, checkpoint) of one of the project's checkpoints, its probe checked.

    Raises:
        InputError: not a readable checkpoint, of another kind, or its network does not give the
            logits it promises.
    """
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


def publish(best: Path, runs: Path, target: Path = Path("best.pt")) -> Path:
    """Copy a run's best.pt to `target`, say so in one line, and return where it can be named.

    A file that is there already, and of which no run has a copy, takes another name. Where nothing
    can be written, the line says that, and `best` is returned.

    Args:
        runs: the folder of all run folders.
    """
    note = ""
    try:
        with atomic(target) as file:
            file.write(best.read_bytes())
            file.flush()  # a full disk shows here, before anything of the user's is moved
            same = (filecmp.cmp(target, copy, shallow=False) for copy in runs.rglob("best.pt"))
            if target.exists() and not any(same):
                aside, numbers = target, itertools.count(1)
                while aside.exists():
                    aside = target.with_suffix(f".{next(numbers)}.pt")
                os.replace(target, aside)
                note = f" (the file that was there is now {aside})"
    except OSError as error:
        print(f"{best} is not copied to {target} ({error.strerror}): name it by its own path")
        return best
    print(f"{best} -> {target}{note}")
    return target
