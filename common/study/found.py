"""Finished runs as their files tell them, and copies of the small files of all of them."""
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from common.config import Recipe
from common.data.sources import CLASSES
from common.files import Json, read_json, write_json
from common.study.rows import STARTS, Row, row_of, start
from common.study.tables import read_csv

RESULT_KEYS = ("source", "test_top1", "val_top1", "train_seconds", "wall_seconds", "diagnosis",
               "versions")
RUN_FILES = ("recipe.json", "result.json", "history.csv", "curves.png")
PLACES = {  # the file that shows a finished piece of work → what is published of its folder
    "*/*/result.json": RUN_FILES,
    "ablation/*/*/result.json": RUN_FILES,
    "ablation/*/ablation.json": ("ablation.json", "ablation.csv", "ablation.md", "ablation.png"),
    "analyze/*/analysis.json": (
        "analysis.json", "confusion.csv", "confusion.png", "per_class.csv", "per_class.png",
        "reliability.png", "faithfulness.png",
    ),
    "bench*.json": (),
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A finished run: its folder, the content of recipe.json and result.json, and its history."""

    folder: Path
    card: Json
    result: Json
    history: list[dict[str, str]]

    @cached_property
    def recipe(self) -> Json:
        """Every field of the recipe, those younger than the run at their defaults."""
        return asdict(Recipe()) | self.card["recipe"]

    @cached_property
    def row(self) -> Row | None:
        """The row of the result table that counts this run; none for other images than
        CIFAR-10's."""
        return row_of(self.recipe) if is_cifar10(self.result) else None

    @property
    def weights(self) -> str:
        """What the run started from, in words; derived from the recipe where the run is
        older than that entry."""
        return self.result.get("weights") or STARTS[start(self.recipe)]

    @property
    def alike(self) -> str:
        """Equal for runs that differ in their seed alone: settings, weights, split, machine
        and versions are the same."""
        versions = self.result["versions"]
        machine = [versions.get(key) for key in ("hardware", "torch", "precision")]
        recipe = self.recipe | {"seed": 0, "weights": self.weights}
        return str((recipe, self.card.get("split_hash"), machine))

    @property
    def rate(self) -> float:
        """Images/s of the fastest epoch that trained the whole network."""
        stage = self.history[-1]["stage"]
        return max(float(row["images_per_s"]) for row in self.history if row["stage"] == stage)


def is_cifar10(result: Json) -> bool:
    """Whether a result is of CIFAR-10; results older than the list of names had ten classes
    only of CIFAR-10."""
    names = result.get("class_names")
    return result["source"] != "synthetic" and tuple(names or CLASSES) == CLASSES


def find(root: Path) -> list[Found]:
    """Every finished run below `root`, arms of ablations included, sorted by folder."""
    paths = [*root.glob("*/*/result.json"), *root.glob("ablation/*/*/result.json")]
    found = []
    for path in sorted(paths):
        folder = path.parent
        card, result = read_json(folder / "recipe.json", ("recipe",)), read_json(path, RESULT_KEYS)
        found.append(Found(folder, card, result, read_csv(folder / "history.csv")))
    return found


def groups(found: Sequence[Found]) -> list[list[Found]]:
    """Runs that differ in their seed alone, together, in the order in which they are found."""
    alike: dict[str, list[Found]] = {}
    for run in found:
        alike.setdefault(run.alike, []).append(run)
    return list(alike.values())


def of_row(found: Sequence[Found], row: Row) -> tuple[list[list[Found]], list[list[Found]]]:
    """Groups of a row's runs: those that stand for it, and all others.

    For a row stand the runs of its own command; where there are none, those on all training
    images that differ least from it.
    """
    mine = groups([run for run in found if run.row is row])
    mine.sort(key=lambda runs: len(row.changes(runs[0].recipe)))
    whole = [runs for runs in mine if not runs[0].recipe["train_limit"]]
    own = [runs for runs in whole if not row.changes(runs[0].recipe)] or whole[:1]
    return own, [runs for runs in mine if runs not in own]


def copy(source: Path, target: Path, figures: bool = True) -> int:
    """Copy the small files of all finished work in `source` but that on drawn images, with its
    figures or without; the number of places."""
    count = 0
    for pattern, names in PLACES.items():
        for marker in sorted(source.glob(pattern)):
            if read_json(marker).get("source") == "synthetic":
                continue
            place = target / marker.parent.relative_to(source)
            place.mkdir(parents=True, exist_ok=True)
            for name in names or [marker.name]:
                wanted = figures or not name.endswith(".png")
                if wanted and (marker.parent / name).is_file():
                    shutil.copyfile(marker.parent / name, place / name)
            if marker.name == "result.json":  # a path of this machine is no result
                card = read_json(place / "recipe.json")
                card["runtime"] = card.get("runtime", {}) | {"data_dir": None}
                write_json(place / "recipe.json", card)
            count += 1
    return count
