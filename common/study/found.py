"""Finished runs as their files tell them, and copies of the small files of all of them."""
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from common.config import Recipe
from common.data.sources import CLASSES
from common.files import Json, read_json, write_json
from common.study.rows import STARTS, Row, row_of, start
from common.study.tables import read_csv

RESULT_KEYS = ("source", "test_top1", "val_top1", "train_seconds", "wall_seconds", "diagnosis",
               "versions")
RUN_FILES = ("recipe.json", "history.csv", "curves.png")
PLACES = {  # the file that shows a finished piece of work → what is published beside it
    "*/*/result.json": RUN_FILES,
    # With what the table is made of: ablation.py --collect can make it anew from what is published.
    "ablation/*/*/result.json": (*RUN_FILES, "cost.json", "test_predictions.csv"),
    "ablation/*/ablation.json": ("ablation.csv", "ablation.md", "ablation.png"),
    "analyze/*/analysis.json": (
        "confusion.csv", "confusion.png", "per_class.csv", "per_class.png", "reliability.png",
        "faithfulness.png",
    ),
    "bench*.json": (),
}  # fmt: skip


class Found(NamedTuple):
    """A finished run as its files tell it.

    `recipe` has every field, those younger than the run at their defaults; `row` is the row of the
    result table that counts the run, none for other images than CIFAR-10's; `weights` is what it
    started from, `machine` hardware, torch and precision, both in words; `alike` is equal for runs
    that differ in their seed alone; `rate` is images/s of the fastest epoch that trained the whole
    network.
    """

    folder: Path
    recipe: Json
    result: Json
    row: Row | None
    weights: str
    machine: str
    alike: str
    epochs: int
    rate: float


Runs = Sequence[Found]
Groups = list[Runs]


def _read(folder: Path) -> Found:
    """One run."""
    card = read_json(folder / "recipe.json", ("recipe",))
    result = read_json(folder / "result.json", RESULT_KEYS)
    history = read_csv(folder / "history.csv")
    recipe = asdict(Recipe()) | card["recipe"]
    # Results older than the list of names had ten classes only of CIFAR-10.
    classes = tuple(result.get("class_names", CLASSES))
    is_cifar10 = result["source"] != "synthetic" and classes == CLASSES
    weights = result.get("weights") or STARTS[start(recipe)]
    versions = result["versions"]
    machine = "{hardware}, torch {torch}".format(**versions)
    if "precision" in versions:
        machine += f", {versions['precision']}"
    settings = recipe | {"seed": 0, "weights": weights}
    alike = str((settings, card.get("split_hash"), machine))
    stage = history[-1]["stage"]
    rate = max(float(epoch["images_per_s"]) for epoch in history if epoch["stage"] == stage)
    row = row_of(recipe) if is_cifar10 else None
    return Found(folder, recipe, result, row, weights, machine, alike, len(history), rate)


def find(root: Path) -> list[Found]:
    """Every finished run below `root`, arms of ablations included, sorted by folder."""
    files = [*root.glob("*/*/result.json"), *root.glob("ablation/*/*/result.json")]
    return [_read(file.parent) for file in sorted(files)]


def groups(found: Runs) -> Groups:
    """Runs that differ in their seed alone, together, in the order in which they are found."""
    alike = {}
    for run in found:
        alike.setdefault(run.alike, []).append(run)
    return list(alike.values())


def of_row(found: Runs, row: Row) -> tuple[Groups, Groups]:
    """Groups of a row's runs: those that stand for it, and all others.

    For a row stand the runs of its own command; where there are none, those on all training
    images that differ least from it.
    """
    mine = groups([run for run in found if run.row is row])
    mine.sort(key=lambda runs: len(row.changes(runs[0].recipe)))
    own = [runs for runs in mine if not row.changes(runs[0].recipe)]
    own = own or [runs for runs in mine if not runs[0].recipe["train_limit"]][:1]
    return own, [runs for runs in mine if runs not in own]


def copy(source: Path, target: Path, figures: bool = True) -> int:
    """Copy the small files of all finished work in `source` but that on drawn images, with its
    figures or without; the number of places."""
    count = 0
    for pattern, names in PLACES.items():
        for marker in source.glob(pattern):
            if read_json(marker).get("source") == "synthetic":
                continue
            count += 1
            place = target / marker.parent.relative_to(source)
            place.mkdir(parents=True, exist_ok=True)
            for name in (marker.name, *names):
                file = marker.with_name(name)
                if file.is_file() and (figures or file.suffix != ".png"):
                    shutil.copy(file, place)
            if marker.name == "result.json":  # a path of this machine is no result
                card = read_json(place / "recipe.json")
                card["runtime"]["data_dir"] = None
                write_json(place / "recipe.json", card)
    return count
