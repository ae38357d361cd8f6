"""One table of all finished runs below a folder, as Markdown.

    python -m common.study.results                        # of ./runs
    python -m common.study.results docs/results --links   # for a page there: figures are links

Runs that differ in their seed alone share a row: mean ± standard deviation (n = seeds). *what* is
the network and what departs from its usual recipe here, the one that most of its runs with all
training images have. Test and val are top-1 in percent at the epoch that was best on val; time is
that of all epochs.
"""
import re
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, mode, stdev
from typing import NamedTuple
from urllib.parse import quote_from_bytes

from common.config import Parser, Recipe, a_path, difference
from common.errors import InputError, run_script
from common.files import Json, read_json
from common.words import duration, number

NUMBERS = ("test_top1", "val_top1", "epochs", "train_seconds")
HEADS = ("run", "what", "weights", "on", "test %", "val %", "epochs", "time")
# Fields that have a column of their own.
APART = dict.fromkeys(("model", "pretrained", "weights", "epochs", "seed"))


class Run(NamedTuple):
    """A finished run as its files tell it. `recipe` has every field, those younger than the run at
    their defaults, and `data`, what it was trained on; `machine` is in words."""

    folder: Path
    recipe: Json
    result: Json
    machine: str


def read_run(folder: Path) -> Run:
    """The finished run in a folder.

    Raises:
        InputError: recipe.json or result.json is unreadable or not this project's.
    """
    card = read_json(folder / "recipe.json", ("recipe", "runtime"))
    result = read_json(folder / "result.json", ("source", "versions", *NUMBERS))
    try:
        home = card["runtime"].get("data_dir")
        data = f"{result['source']}, {Path(home).name}" if home else result["source"]
        recipe = asdict(Recipe()) | card["recipe"] | {"data": data}
        words = "{hardware}, torch {torch}, {precision}"
        machine = words.format(**{"precision": "precision unknown"} | result["versions"])
        sum(result[key] for key in NUMBERS), {*recipe.values()}  # can be added up, and counted
    except (AttributeError, LookupError, TypeError, ValueError):
        raise InputError(f"{folder}: result.json or recipe.json holds other values than this "
                         "project writes; restore them, or move the folder away") from None
    return Run(folder, recipe, result, machine)


def find(root: Path) -> list[Run]:
    """Every finished run below `root` by its path; says which cannot be read."""
    runs = []
    for path in sorted(root.rglob("result.json")):
        try:
            runs.append(read_run(path.parent))
        except InputError as error:
            print(f"left out: {error}", file=sys.stderr)
    return runs


def by_seed(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs side by side in one folder that differ in their seed alone, together."""
    groups = {}
    for run in runs:
        key = str((run.folder.parent, run.recipe | {"seed": None}, run.machine))
        while run.recipe["seed"] in groups.get(key, ()):
            key += "again"  # the same seed once more is no other one
        groups.setdefault(key, {})[run.recipe["seed"]] = run
    return [list(group.values()) for group in groups.values()]


def usual(model: str, runs: Sequence[Run]) -> Json:
    """Each field's most frequent value in a network's runs, in those on all training images where
    there are some."""
    recipes = [run.recipe for run in runs if run.recipe["model"] == model]
    whole = [recipe for recipe in recipes if not recipe["train_limit"]] or recipes
    return {key: mode(recipe.get(key) for recipe in whole) for key in recipes[0]}


def mean(values: Sequence[float]) -> str:
    """Mean of fractions in percent, of several with their standard deviation."""
    spread = f" ± {number(100 * stdev(values))}" if len(values) > 1 else ""
    return number(100 * fmean(values)) + spread


def table(runs: Sequence[Run], root: Path, links: bool = False) -> list[tuple[str, ...]]:
    """Header and rows as cells.

    Args:
        links: make of each run's test figure a link to its file, for a page in `root`.
    """
    grid = [HEADS]
    for group in by_seed(runs):
        folder, recipe, _, machine = group[0]
        base = usual(recipe["model"], runs)
        start = str(recipe["weights"] or "ImageNet") if recipe["pretrained"] else "random"
        what = [recipe["model"], *difference(base | APART, recipe | APART)]
        tests, vals, epochs, seconds = zip(*([run.result[key] for key in NUMBERS] for run in group))
        each = [mean([value]) for value in tests]
        if links:
            places = (quote_from_bytes(bytes(run.folder.relative_to(root))) for run in group)
            each = [f"[{shown}]({place}/result.json)" for shown, place in zip(each, places)]
        name, test = folder.relative_to(root).as_posix(), each[0]
        if len(group) > 1:
            name = re.sub(r"-?seed\d+$", "", name)
            test = f"{mean(tests)} (n = {len(group)}: {', '.join(each)})"
        grid.append((name, "; ".join(what), start, machine, test, mean(vals),
                     " to ".join(map(str, sorted({*epochs}))), duration(fmean(seconds))))
    return grid


def markdown(grid: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Header and rows of cells as an aligned Markdown table, numbers to the right.

    Args:
        texts: columns at the left that are no numbers.
    """
    head, *rows = grid
    rule = ["---"] * texts + ["--:"] * (len(head) - texts)
    columns = []
    for side, *cells in zip(rule, head, rule, *rows):
        cells = [cell.replace("|", "\\|") for cell in cells]
        align = str.ljust if side == "---" else str.rjust
        width = max(map(len, cells))
        columns.append([align(cell, width) for cell in cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in zip(*columns))


def main() -> None:
    """Print the table."""
    parser = Parser(prog="python -m common.study.results", description=__doc__,
                    formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="?", type=a_path, default="runs",
                        help="folder of the run folders (default: runs)")
    parser.add_argument("--links", action="store_true", help="make each test figure a link to its "
                        "result.json, for a page that lies in the folder")
    given = parser.parse_args()
    root = Path(given.runs)
    runs = find(root)
    if not runs:
        raise InputError(f"{root} holds no finished run: train first, or name another folder")
    print(markdown(table(runs, root, given.links), texts=4), end="")


if __name__ == "__main__":
    run_script(main)
