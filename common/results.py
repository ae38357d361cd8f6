"""Publish measured runs: copy their small files and write the result table, every number from a file of a real run.

    python -m common.results runs docs/results    # copies, writes docs/results/README.md, fills README.md's table

Runs that differ only in the seed share a row. What has not been run stands in the table as "not measured".
"""
import csv
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import Parser
from common.errors import InputError, run_script
from common.files import read_json, write_text
from common.metrics import t_interval

COPIED = ("recipe.json", "result.json", "history.csv", "curves.png")
MARK, END = "<!-- results -->", "<!-- end of results -->"
HEADER = ("run", "the report", "test top-1 %", "val %", "epochs", "training time", "images/s", "hardware", "command")


@dataclass(frozen=True)
class Row:
    """A line of the table: what it is called, the report's figure, the command, and which recipes belong to it."""

    name: str
    report: str
    command: str
    script: str
    fits: Callable[[dict[str, Any]], bool]


def _is(**wanted: Any) -> Callable[[dict[str, Any]], bool]:
    """A test for recipes that hold all these values; `weights=True` asks for any file."""
    return lambda recipe: all(bool(recipe[k]) == v if isinstance(v, bool) else recipe[k] == v for k, v in wanted.items())


ROWS = (
    Row("SimpleCNN", "val 73.30", "train_baseline.py", "train_baseline", _is(model="simple_cnn")),
    Row("ImprovedCNN, report's recipe", "84.05", "train_improved.py --recipe report", "train_improved", _is(model="improved_cnn", decay_all=True)),
    Row("ImprovedCNN", "–", "train_improved.py", "train_improved", _is(model="improved_cnn", decay_all=False)),
    Row("SE-ResNet18, ImageNet stem", "val 83.58", "train_improved.py --model se_resnet18 --stem imagenet", "train_improved",
        _is(model="se_resnet18", stem="imagenet")),
    Row("SE-ResNet18, CIFAR stem", "–", "train_improved.py --model se_resnet18", "train_improved", _is(model="se_resnet18", stem="cifar")),
    Row("EfficientNet-B2, 64 px, from scratch", "83.74", "train_effnet.py --resize 2 --no-pretrained", "train_effnet", _is(resize=2, pretrained=False)),
    Row("EfficientNet-B2, 64 px, own weights", "–", "train_effnet.py --resize 2 --weights FILE", "train_effnet", _is(resize=2, pretrained=True, weights=True)),
    Row("EfficientNet-B2, 64 px, ImageNet weights", "93.77-93.81", "train_effnet.py --resize 2", "train_effnet",
        _is(resize=2, pretrained=True, weights=False)),
)


@dataclass(frozen=True)
class Found:
    """A finished run: its folder, recipe, result and history."""

    folder: Path
    script: str
    recipe: dict[str, Any]
    result: dict[str, Any]
    history: list[dict[str, str]]


def find(source: Path) -> list[Found]:
    """Every finished run below `source`, sorted by folder."""
    found = []
    for path in sorted(source.rglob("result.json")):
        card = read_json(path.parent / "recipe.json")
        with (path.parent / "history.csv").open() as file:
            found.append(Found(path.parent, card["script"], card["recipe"], read_json(path), list(csv.DictReader(file))))
    return found


def line(row: Row, runs: list[Found]) -> list[str]:
    """The cells of one row; accuracies are means over seeds, with the standard deviation where there are several."""
    if not runs:
        return [row.name, row.report, "not measured", "", "", "", "", "", f"`python {row.command}`"]
    results, one = [run.result for run in runs], runs[0]
    test, val = (t_interval([100 * result[key] for result in results]) for key in ("test_top1", "val_top1"))
    spread = f" ± {test.std:.2f} (n = {len(runs)})" if len(runs) > 1 else f" (n = 1, seed {one.recipe['seed']})"
    seconds = sum(result["train_seconds"] for result in results) / len(results)
    rate = sum(result["images_per_s"] for result in results) / len(results)
    limit = f", {one.recipe['train_limit']:,} training images" if one.recipe["train_limit"] else ""
    shown = ("train_limit", "val_size", "head_epochs", "epochs", "lr") if limit else ()
    flags = "".join(f" --{key.replace('_', '-')} {one.recipe[key]}" for key in shown
                    if one.recipe[key] is not None and (key != "head_epochs" or one.script == "train_effnet"))
    versions = one.result["versions"]
    return [row.name + limit, row.report, f"{test.mean:.2f}{spread}", f"{val.mean:.2f}", str(len(one.history)), _duration(seconds), f"{rate:,.0f}",
            f"{versions['hardware']}, torch {versions['torch']}", f"`python {row.command}{flags}`"]


def _duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def table(found: list[Found]) -> str:
    """The result table as Markdown, runs on drawn images left out; small budgets get lines of their own after the full one."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---" * 2 + "|---:" * 5 + "|---" * 2 + "|"]
    for row in ROWS:
        mine = [run for run in found if run.script == row.script and run.result["source"] != "synthetic" and row.fits(run.recipe)]
        groups: dict[str, list[Found]] = {}
        for run in mine:
            groups.setdefault(str({**run.recipe, "seed": None}), []).append(run)
        full = [runs for runs in groups.values() if runs[0].recipe["train_limit"] is None]
        small = [runs for runs in groups.values() if runs[0].recipe["train_limit"] is not None]
        lines += ["| " + " | ".join(line(row, runs)) + " |" for runs in [*(full or [[]]), *small]]
    return "\n".join(lines) + "\n"


def copy(found: list[Found], target: Path) -> None:
    """Copy each run's small files to `target`/<script>/<name>/; a run of the same name there is replaced."""
    for run in found:
        place = target / run.script / run.folder.name
        place.mkdir(parents=True, exist_ok=True)
        for name in COPIED:
            shutil.copyfile(run.folder / name, place / name)


def overview(found: list[Found], target: Path) -> str:
    """`target`/README.md: the table, and a section for each run with its diagnosis and curves."""
    about = target / "about.md"  # what no file of a run knows: the state of the data, who shared the machine
    text = ["# Measured results", "", "Written by `python -m common.results`; every number comes from the files beside it.", "",
            *([about.read_text()] if about.is_file() else []), table(found), "## Runs", ""]
    for run in found:
        here, versions = run.folder.relative_to(target), run.result["versions"]
        text += [f"### {run.script} / {run.folder.name}", "", f"{run.result['source']}; test {run.result['test_top1']:.2%}, 95 % interval "
                 f"{run.result['test_interval_95'][0]:.2%} to {run.result['test_interval_95'][1]:.2%}; val {run.result['val_top1']:.2%} at epoch "
                 f"{run.result['best_epoch']}; seed {run.recipe['seed']}; {versions['hardware']}, Python {versions['python']}, torch {versions['torch']}, "
                 f"commit {versions['git_commit']}.", "", *(f"- {sentence}" for sentence in run.result["diagnosis"]), "",
                 f"![curves]({here}/curves.png)", "", f"[history]({here}/history.csv) · [result]({here}/result.json) · [recipe]({here}/recipe.json)", ""]
    return "\n".join(text)


def fill_readme(readme: Path, found: list[Found]) -> None:
    """Replace what stands between the two marks of README.md by the table."""
    text = readme.read_text()
    if MARK not in text or END not in text:
        raise InputError(f"{readme} lacks the marks {MARK} and {END}: put them where the table belongs")
    before, after = text.split(MARK)[0], text.split(END)[1]
    write_text(readme, f"{before}{MARK}\n{table(found)}{END}{after}")


def main() -> None:
    """Publish the runs that the command line names."""
    parser = Parser(prog="python -m common.results", description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path, help="folder of the run folders")
    parser.add_argument("target", type=Path, help="where to publish, as docs/results")
    given = parser.parse_args()
    found = find(given.runs)
    if not found:
        raise InputError(f"no finished run in {given.runs}: train first, or give another folder")
    copy(found, given.target)
    published = find(given.target)
    write_text(given.target / "README.md", overview(published, given.target))
    fill_readme(Path("README.md"), published)
    print(f"{len(found)} runs published in {given.target}")


if __name__ == "__main__":
    run_script(main)
