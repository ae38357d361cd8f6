"""One table of all finished runs below a folder, as Markdown.

    python -m common.study.results                        # of ./runs
    python -m common.study.results docs/results --links   # for a page there: figures are links

Runs that differ in their seed alone share a row: mean ± standard deviation (n = seeds). *what* is
the network and what departs from its usual recipe here, the one that most of its runs with all
training images have; that stands below the table, as do the machines, by number. Test and val are
top-1 in percent at the epoch that was best on val; time is that of all epochs.
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

from common.config import Parser, Recipe, a_path
from common.errors import InputError, run_script
from common.files import Json, read_json
from common.words import duration, number

NUMBERS = ("test_top1", "val_top1", "epochs", "train_seconds")
HEADS = ("run", "what", "weights", "test %", "val %", "epochs", "time", "on")
# Fields that have a column of their own, or stand beside the network's name.
APART = {"model", "stem", "resize", "pretrained", "weights", "epochs", "seed"}


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


def find(root: Path) -> tuple[list[Run], list[str]]:
    """Every finished run below `root` by its path, and a line on each that cannot be read."""
    runs, problems = [], []
    for path in sorted(root.rglob("result.json")):
        try:
            runs.append(read_run(path.parent))
        except InputError as error:
            problems.append(f"left out: {error}")
    return runs, problems


def by_seed(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs side by side in one folder that differ in their seed alone, together."""
    groups = {}
    for run in runs:
        key = str((run.folder.parent, run.recipe | {"seed": None}, run.machine))
        while run.recipe["seed"] in groups.get(key, ()):
            key += "again"  # the same seed once more is no other one
        groups.setdefault(key, {})[run.recipe["seed"]] = run
    return [list(group.values()) for group in groups.values()]


def usual(recipes: Sequence[Json]) -> Json:
    """Each field's most frequent value, in recipes on all training images where there are some."""
    whole = [recipe for recipe in recipes if not recipe["train_limit"]] or recipes
    return {key: mode(recipe.get(key) for recipe in whole) for key in recipes[0]}


def departures(recipe: Json, base: Json) -> list[str]:
    """The fields of a recipe that differ from `base`, in words; 0 is "no" of it."""
    words = []
    for key, value in recipe.items():
        if key not in APART and value != base.get(key):
            name = key.replace("_", " ")
            words.append(name if value is True else f"{name} {value}" if value else f"no {name}")
    return words


def network(recipe: Json) -> str:
    """`se_resnet18 imagenet`, or `efficientnet_b2 ×2` where images are enlarged."""
    stem = f" {recipe['stem']}" if recipe["model"] == "se_resnet18" else ""
    resize = f" ×{recipe['resize']}" if recipe["resize"] != 1 else ""
    return f"{recipe['model']}{stem}{resize}"


def weights(recipe: Json) -> str:
    """`random`, `ImageNet` for the published ones, else the name of the file, or of the run whose
    best.pt it was."""
    file = Path(str(recipe["weights"] or "ImageNet"))
    own = file.parent.name if file.name == "best.pt" else file.stem
    return own if recipe["pretrained"] else "random"


def mean(values: Sequence[float]) -> str:
    """Mean of fractions in percent, of several with their standard deviation."""
    spread = f" ± {number(100 * stdev(values))}" if len(values) > 1 else ""
    return number(100 * fmean(values)) + spread


def table(runs: Sequence[Run], root: Path, links: bool = False) -> tuple[list, list[str]]:
    """(header and rows as cells, lines to stand below: usual recipes and machines).

    Args:
        links: make of each run's test figure a link to its file, for a page in `root`.
    """
    machines = list(dict.fromkeys(run.machine for run in runs))
    bases = {model: usual([run.recipe for run in runs if run.recipe["model"] == model])
             for model in dict.fromkeys(run.recipe["model"] for run in runs)}
    grid = [HEADS]
    for group in by_seed(runs):
        folder, recipe, _, machine = group[0]
        tests, vals, epochs, seconds = zip(*([run.result[key] for key in NUMBERS] for run in group))
        each = [mean([value]) for value in tests]
        if links:
            files = (run.folder.relative_to(root) / "result.json" for run in group)
            each = [f"[{shown}]({quote_from_bytes(bytes(file))})"
                    for shown, file in zip(each, files)]
        name, test = folder.relative_to(root).as_posix(), each[0]
        if len(group) > 1:
            name = re.sub(r"-?seed\d+$", "", name)
            test = f"{mean(tests)} (n = {len(group)}: {', '.join(each)})"
        what = [network(recipe), *departures(recipe, bases[recipe["model"]])]
        grid.append((name, ", ".join(what), weights(recipe), test, mean(vals),
                     " to ".join(map(str, sorted({*epochs}))), duration(fmean(seconds)),
                     str(machines.index(machine) + 1)))
    plain = asdict(Recipe(batch_size=0, lr=0))  # so that these two are always said
    below = [f"usual recipe of {model}: {', '.join(departures(base, plain))}"
             for model, base in bases.items()]
    return grid, below + [f"machine {i}: {words}" for i, words in enumerate(machines, 1)]


def markdown(grid: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Header and rows of cells as an aligned Markdown table, numbers to the right.

    Args:
        texts: columns at the left that are no numbers.
    """
    columns = []
    for at, cells in enumerate(zip(*grid)):
        cells = [cell.replace("|", "\\|") for cell in cells]
        width = max(3, *map(len, cells))
        align, rule = str.ljust, "-" * width
        if at >= texts:
            align, rule = str.rjust, rule[1:] + ":"
        head, *rest = [align(cell, width) for cell in cells]
        columns.append([head, rule, *rest])
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
    runs, problems = find(root)
    for problem in problems:
        print(problem, file=sys.stderr)
    if not runs:
        raise InputError(f"{root} holds no finished run: train first, or name another folder")
    grid, below = table(runs, root, given.links)
    print(markdown(grid, 3), *(f"- {line}" for line in below), sep="\n")


if __name__ == "__main__":
    run_script(main)
