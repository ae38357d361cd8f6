"""One run: its history, the weights worth keeping, saving them, and going on from there."""
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from common.config import Recipe, Runtime
from common.data.augment import Preprocess
from common.data.splits import Splits
from common.errors import InputError, reason
from common.files import Json, read_checkpoint, write_checkpoint, write_csv
from common.models.build import build

FORMAT = 1
SAVE_EVERY_S = 10.0  # seconds of work that may be lost when the machine fails
SAVING_SHARE = 20  # the next save comes no sooner than this many times the last one's duration


@dataclass(eq=False)
class Run:
    """A network in training and the folder that tells of it.

    Fields:
        script: what trains it, in whose folder its own lies.
        folder: holds recipe.json, history.csv, result.json, figures, best.pt and last.pt.
        splits, model: on one device.
        prepare: how uint8 images become network input.
        card: what every checkpoint of the run says of itself.
        amp: dtype of autocast, None: fp32.
        compiles: whether torch.compile works on the model's calls.
        history: a row an epoch; best epoch, finished epochs of a stage and patience follow from it.
        best_weights: state dict of the best epoch.
        optimizer_state: of the run that is resumed.
    """

    script: str
    folder: Path
    recipe: Recipe
    runtime: Runtime
    splits: Splits
    model: Module
    prepare: Preprocess
    card: Json
    amp: torch.dtype | None = None
    compiles: bool = False
    history: list[Json] = field(default_factory=list)
    best_weights: Json = field(default_factory=dict)
    optimizer_state: Json = field(default_factory=dict)
    _state: Json = field(default_factory=dict)  # of model and optimiser after the last whole epoch
    _best_on_disk: Json | None = None
    _next_save: float = 0.0

    @property
    def finished(self) -> bool:
        """Whether all its stages are done and test was read."""
        return (self.folder / "result.json").is_file()

    @property
    def best(self) -> Json | None:
        """The history's best row; None before any."""
        return best_row(self.history)

    def val_top1(self, stage: str) -> list[float]:
        """Val top-1 after each whole epoch of `stage`."""
        return [row["val_top1"] for row in self.history if row["stage"] == stage]

    def keep(self, optimizer: Optimizer, row: Json | None = None) -> None:
        """Copy the state after a whole epoch, on its device; `row` is its line of the history."""
        # References to living tensors, which the next step changes: hence the copy. copy.deepcopy
        # does the same, at several times the cost of a copy on a GPU.
        living = {"weights": self.model.state_dict(), "optimizer": optimizer.state_dict()}
        self._state = tree_map_only(Tensor, torch.clone, living)
        if row:
            self.history.append(row)
            if self.best is row:
                self.best_weights = self._state["weights"]

    def save(self, force: bool = False) -> None:
        """Write best.pt, last.pt and history.csv of the last whole epoch, if `force` or due."""
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
        # A twin: the model keeps its device, mode and dtype, and the run its random numbers.
        inputs = self.card["probe_inputs"]
        with torch.random.fork_rng(devices=[]):
            twin = build(**self.card["arch"])
        twin.load_state_dict(self.best_weights)
        with torch.no_grad():
            return {"inputs": inputs, "logits": twin.eval()(inputs)}

    def restore(self) -> None:
        """Load last.pt into the model and the history; the optimiser's state waits for `fit`."""
        path = self.folder / "last.pt"
        last = read_checkpoint(path, ("weights", "training"))
        try:
            self.model.load_state_dict(last["weights"])
            training = last["training"]
            self.history, self.optimizer_state = training["history"], training["optimizer"]
            self.card["weights_origin"] = last.get("weights_origin")
            if self.history:
                best = read_checkpoint(self.folder / "best.pt", ("weights", "metrics"))
                self.best_weights = best["weights"]
                self._best_on_disk = best["metrics"]
        except Exception as error:  # whatever a foreign file holds under these keys
            raise InputError(f"--resume: {path} is not what this run wrote ({reason(error)}): "
                             "restore it, or choose a new --name") from None


def best_row(history: Iterable[Json]) -> Json | None:
    """The row of highest val top-1, among equals of lowest val loss; None without any."""
    return max(history, key=lambda row: (row["val_top1"], -row["val_loss"]), default=None)
