"""Publish measured runs: copy their small files and write the result tables, every number from a file of a real run.

    python -m common.results runs docs/results    # copies, writes docs/results/README.md, fills README.md's tables

Runs that differ only in the seed share a row. What has not been run stands in the table as "not measured". Figures that
show images of the data set are not copied: the right to publish those is not ours to give.
"""
import csv
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import compare, findings, plots
from common.config import Parser
from common.errors import InputError, run_script
from common.files import read_json, write_text
from common.metrics import Interval, t_interval

RUN_FILES = ("recipe.json", "result.json", "history.csv", "curves.png")
ABLATION_FILES = ("ablation.json", "ablation.csv", "ablation.md", "ablation.png")
ANALYSIS_FILES = ("analysis.json", "confusion.csv", "confusion.png", "per_class.csv", "per_class.png", "reliability.png", "faithfulness.png")
MARK, END = "<!-- results -->", "<!-- end of results -->"
UNMEASURED = "not measured"
COLUMNS = {"run": "---", "the report": "---", "test top-1 %": "---:", "val %": "---:", "epochs": "---:", "training": "---:", "wall-clock": "---:",
           "images/s": "---:", "memory": "---:", "hardware": "---", "command": "---"}  # fmt: skip
SHORT = tuple(name for name in COLUMNS if name != "command")
CIFAR_CLASSES = 10


@dataclass(frozen=True)
class Row:
    """A line of the table: a key for folder names, a title, the report's figure, the command, and which recipes belong to it."""

    key: str
    title: str
    report: str
    command: str
    fits: Callable[[dict[str, Any]], bool]

    @property
    def script(self) -> str:
        """The training script's name."""
        return self.command.split(".py")[0]


def _is(**wanted: Any) -> Callable[[dict[str, Any]], bool]:
    """A test for recipes that hold all these values; `weights=True` asks for any file."""
    return lambda recipe: all(bool(recipe[k]) == v if isinstance(v, bool) else recipe[k] == v for k, v in wanted.items())


PRETRAINING = Row("pretraining", "EfficientNet-B2, pretraining on another set", "–", "train_effnet.py --resize 2 --no-pretrained --data-dir DIR",
                  _is(model="efficientnet_b2", pretrained=False))
OWN = Row("b2-own", "EfficientNet-B2, 64 px, own weights", "–", "train_effnet.py --resize 2 --weights FILE", _is(resize=2, pretrained=True, weights=True))
IMAGENET = Row("b2", "EfficientNet-B2, 64 px, ImageNet weights", "93.77-93.81", "train_effnet.py --resize 2", _is(resize=2, pretrained=True, weights=False))
SIZES = tuple(Row(f"b2-{32 * n}px", f"EfficientNet-B2, {32 * n} px, pretrained", report, f"train_effnet.py --resize {n}", _is(resize=n, pretrained=True))
              for n, report in ((1, "85.99"), (3, "–"), (4, "–")))
ROWS = (
    Row("baseline", "SimpleCNN", "val 73.30", "train_baseline.py", _is(model="simple_cnn")),
    Row("improved-report", "ImprovedCNN, report's recipe", "84.05", "train_improved.py --recipe report", _is(model="improved_cnn", decay_all=True)),
    Row("improved", "ImprovedCNN", "–", "train_improved.py", _is(model="improved_cnn", decay_all=False)),
    Row("se-imagenet", "SE-ResNet18, ImageNet stem", "val 83.58", "train_improved.py --model se_resnet18 --stem imagenet", _is(model="se_resnet18", stem="imagenet")),
    Row("se-cifar", "SE-ResNet18, CIFAR stem", "–", "train_improved.py --model se_resnet18", _is(model="se_resnet18", stem="cifar")),
    Row("b2-scratch", "EfficientNet-B2, 64 px, from scratch", "83.74", "train_effnet.py --resize 2 --no-pretrained", _is(resize=2, pretrained=False)),
    PRETRAINING,
    OWN,
    IMAGENET,
    *SIZES,
)


@dataclass(frozen=True)
class Found:
    """A finished run: its folder, script, recipe, result and history."""

    folder: Path
    script: str
    recipe: dict[str, Any]
    result: dict[str, Any]
    history: list[dict[str, str]]

    def belongs(self, row: Row) -> bool:
        """Whether this run counts for a row; drawn images count for none, another data set only for pretraining."""
        other = self.result.get("classes", CIFAR_CLASSES) != CIFAR_CLASSES
        return self.result["source"] != "synthetic" and self.script == row.script and other == (row is PRETRAINING) and row.fits(self.recipe)


def find(source: Path) -> list[Found]:
    """Every finished training run below `source`, sorted by folder; the arms of an ablation are left to its own table."""
    found = []
    for path in sorted(source.rglob("result.json")):
        card = read_json(path.parent / "recipe.json")
        with (path.parent / "history.csv").open() as file:
            found.append(Found(path.parent, card["script"], card["recipe"], read_json(path), list(csv.DictReader(file))))
    return [run for run in found if not run.script.startswith("ablation/")]


def _mean(runs: Sequence[Found], key: str) -> float | None:
    """Mean of a number of result.json; None where a run lacks it."""
    values = [run.result.get(key) for run in runs]
    return None if None in values else sum(values) / len(values)


def cells(row: Row, runs: Sequence[Found]) -> dict[str, str]:
    """One line of the table; accuracies and times are means over seeds, with the standard deviation where there are several."""
    line = dict.fromkeys(COLUMNS, "") | {"run": row.title, "the report": row.report, "test top-1 %": UNMEASURED, "command": f"`python {row.command}`"}
    if not runs:
        return line
    one = runs[0]
    test, val = (t_interval([100 * run.result[key] for run in runs]) for key in ("test_top1", "val_top1"))
    limit = f", {one.recipe['train_limit']:,} training images" if one.recipe["train_limit"] else ""
    shown = ("train_limit", "val_size", "head_epochs", "epochs", "lr") if limit else ()
    flags = "".join(f" --{key.replace('_', '-')} {one.recipe[key]}" for key in shown
                    if one.recipe[key] is not None and (key != "head_epochs" or one.script == "train_effnet"))
    lengths = sorted({len(run.history) for run in runs})
    cold = None if any(run.result.get("resumed") for run in runs) else _mean(runs, "wall_seconds")
    gpu, rss = _mean(runs, "peak_memory_bytes"), _mean(runs, "peak_rss_bytes")
    versions = one.result["versions"]
    return line | {
        "run": row.title + limit, "test top-1 %": _spread(test, runs), "val %": f"{val.mean:.2f}", "epochs": "-".join(map(str, lengths[:: max(1, len(lengths) - 1)])),
        "training": _duration(_mean(runs, "train_seconds")), "wall-clock": _duration(cold), "images/s": f"{_mean(runs, 'images_per_s'):,.0f}",
        "memory": f"{gpu / 1e9:.1f} GB" if gpu else f"{rss / 1e9:.1f} GB RAM" if rss else "–",
        "hardware": ", ".join([versions["hardware"], f"torch {versions['torch']}", *filter(None, [versions.get("precision")])]), "command": f"`python {row.command}{flags}`",
    }  # fmt: skip


def _spread(test: Interval, runs: Sequence[Found]) -> str:
    """Mean, standard deviation and number of runs, or the seed of a single one."""
    if len(runs) == 1:
        return f"{test.mean:.2f} (n = 1, seed {runs[0].recipe['seed']})"
    return f"{test.mean:.2f} ± {test.std:.2f} (n = {len(runs)})"


def _duration(seconds: float | None) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds is None:
        return "–"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def groups(row: Row, found: Sequence[Found]) -> list[list[Found]]:
    """The runs of a row, those that differ only in the seed and its weights' path together; full budgets first."""
    by_recipe: dict[str, list[Found]] = {}
    for run in found:
        if run.belongs(row):
            by_recipe.setdefault(str({**run.recipe, "seed": None, "on": run.result["versions"]["hardware"]}), []).append(run)
    return sorted(by_recipe.values(), key=lambda runs: runs[0].recipe["train_limit"] is not None)


def table(found: Sequence[Found], columns: Sequence[str] = tuple(COLUMNS), small: bool = True) -> str:
    """The result table as Markdown; small budgets get lines of their own (`small`) after the full one."""
    lines = [columns, [COLUMNS[name] for name in columns]]
    for row in ROWS:
        mine = groups(row, found)
        full = [runs for runs in mine if runs[0].recipe["train_limit"] is None]
        for runs in (full or [[]]) + (mine[len(full):] if small else []):
            line = cells(row, runs)
            lines.append([line[name] for name in columns])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def full_ablation(folder: Path) -> dict[str, Any] | None:
    """The published ablation of the full data set with the most seeds, if there is one."""
    tables = [read_json(path) for path in sorted(folder.glob("ablation/*/ablation.json"))]
    full = [one for one in tables if one.get("recipe") and one["recipe"]["train_limit"] is None and one["source"] != "synthetic"]
    return max(full, key=lambda one: len(one["seeds"]), default=None)


def ablation(folder: Path) -> str:
    """The ablation's table and conclusions as Markdown; what was not measured says so."""
    full = full_ablation(folder)
    if full:
        return "".join(f"| {' | '.join(line)} |\n" for line in _ruled(compare.grid(full))) + "\n" + "".join(f"- {words}\n" for words in full["conclusions"])
    return f"Five-arm ablation with all training images: {UNMEASURED}.\n"


def _ruled(grid: list[list[str]]) -> list[list[str]]:
    """Header, Markdown's rule, rows."""
    return [grid[0], ["---"] + ["---:"] * (len(grid[0]) - 1), *grid[1:]]


def analyses(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Published analyses of real images, the checkpoint with the best val accuracy first."""
    found = [(path.parent, read_json(path)) for path in sorted(folder.glob("analyze/*/analysis.json"))]
    return sorted((one for one in found if not one[1]["synthetic"]), key=lambda one: -one[1]["checkpoint"]["metrics"]["val_top1"])


def speed(folder: Path) -> str:
    """Every published bench as a Markdown table."""
    text = []
    for path in sorted(folder.glob("bench*.json")):
        bench = read_json(path)
        env = bench["environment"]
        grid = [["network", "batch", "variant", "precision of ours", "images/s", "range", "× plain", "% of bound", "cold s"]]
        for one in bench["results"]:
            bound = f"{one['images_per_s'] / one['bound']['images_per_s']:.0%}" if one["variant"].startswith("train") else ""
            grid.append([one["model"], str(one["batch_size"]), one["variant"], one["precision"], f"{one['images_per_s']:,.0f}",
                         f"{min(one['samples']):,.0f}-{max(one['samples']):,.0f}", f"{one['ratio_to_plain']:.2f}", bound, f"{one['cold_seconds']:.1f}"])
        text += [f"[{path.name}]({path.name}): {env['hardware']}, torch {env['torch']}, commit {env['git_commit']}\n\n",
                 *(f"| {' | '.join(line)} |\n" for line in (_ruled(grid) if bench["results"] else [])), *map(_trajectory, bench.get("trajectories", [])), "\n"]
    return "".join(text) or f"{UNMEASURED}\n\n"


def _trajectory(one: dict[str, Any]) -> str:
    """A sentence on two curves of training loss."""
    means = ", ".join(f"{loop} {' '.join(f'{value:.3f}' for value in values)}" for loop, values in one["means"].items())
    gap = one["gap"]
    return (f"- Training loss of {one['model']}, batch {one['batch_size']}, ours in {one['precision']}, mean of each {one['steps_a_part']} steps over {one['seeds']} seeds: "
            f"{means}; ours less plain over the last half {gap['mean']:+.4f}, 95 % interval {gap['low']:+.4f} to {gap['high']:+.4f}.\n")


def size_curve(found: Sequence[Found], path: Path) -> bool:
    """Draw accuracy and cost against the input size, if a pretrained B2 was trained at two sizes or more with all images; whether it did."""
    points = []
    for row in ROWS:
        for runs in groups(row, found):
            recipe = runs[0].recipe
            if recipe["model"] == "efficientnet_b2" and recipe["pretrained"] and recipe["train_limit"] is None:
                top1 = t_interval([100 * run.result["test_top1"] for run in runs])
                points.append({"weights": "own weights" if recipe["weights"] else "ImageNet weights", "px": 32 * recipe["resize"], "top1": top1.mean,
                               "std": top1.std if len(runs) > 1 else 0.0, "seconds": _mean(runs, "train_seconds")})
    if len({point["px"] for point in points}) < 2:
        return False
    plots.size_curve(points, path)
    return True


def study_figure(found: Sequence[Found], path: Path) -> bool:
    """Draw every full-budget row but the input sizes, accuracy beside the report's and val curves, if there is one; whether it did."""
    rows = []
    for row in ROWS:
        for runs in groups(row, found):
            if runs[0].recipe["train_limit"] is None and row not in (PRETRAINING, *SIZES):
                top1 = t_interval([100 * run.result["test_top1"] for run in runs])
                curves = [[100 * float(line["val_top1"]) for line in run.history] for run in runs]
                report = re.search(r"[\d.]+", row.report)
                rows.append({"name": row.title, "top1": top1.mean, "std": top1.std if len(runs) > 1 else 0.0, "report": report and float(report[0]),
                             "curve": [sum(values) / len(values) for values in zip(*curves)]})
    if rows:
        plots.study(rows, path, "Dots: means over seeds, with their standard deviation; the report's figures are on val where the table says so. Curves: means over seeds.")
    return bool(rows)


def copy(source: Path, target: Path) -> int:
    """Copy the small files of every run, ablation, analysis and bench below `source`; the number of places. One of the same name is replaced."""
    places = [(run.folder, target / run.script / run.folder.name, RUN_FILES) for run in find(source)]
    for script, marker, files in (("ablation", "ablation.json", ABLATION_FILES), ("analyze", "analysis.json", ANALYSIS_FILES)):
        places += [(path.parent, target / script / path.parent.name, files) for path in sorted(source.rglob(marker))]
    for folder, place, files in places:
        place.mkdir(parents=True, exist_ok=True)
        for name in files:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, place / name)
    benches = sorted(source.glob("bench*.json"))
    for path in benches:
        hardware = re.sub(r"[^a-z0-9]+", "-", read_json(path)["environment"]["hardware"].lower()).strip("-")
        shutil.copyfile(path, target / f"bench-{hardware}.json")
    return len(places) + len(benches)


def overview(found: Sequence[Found], target: Path) -> str:
    """`target`/README.md: the tables, and a section for each run with its diagnosis and curves."""
    about = target / "about.md"  # what no file of a run knows: the state of the data, who shared the machine
    text = ["# Measured results", "", "Written by `python -m common.results`; every number comes from the files beside it. *training* is the sum of the epochs, "
            "evaluation included; *wall-clock* is the whole process, imports, data, test and figures included.", "",
            *([about.read_text()] if about.is_file() else []), table(found),
            *(["![study](study.png)", ""] if study_figure(found, target / "study.png") else []), "## Ablation", "", ablation(target)]
    for path in sorted(target.glob("ablation/*/ablation.md")):
        here = path.parent.relative_to(target)
        text += [f"### ablation / {path.parent.name}", "", *path.read_text().split("\n")[2:], f"![arms]({here}/ablation.png)", ""]
    if size_curve(found, target / "input_size.png"):
        text += ["## Input size", "", "![accuracy and cost against input size](input_size.png)", ""]
    text += ["## Speed", "", speed(target)]
    for folder, result in analyses(target):
        here = folder.relative_to(target)
        text += [f"## Analysis of {folder.name}", "", *(f"- {words}" for words in findings.findings(result)), "",
                 *(f"- The report: {claim} **{verdict}**: {why}" for claim, verdict, why in findings.claims(result)), "",
                 f"![confusion]({here}/confusion.png)", "", f"![reliability]({here}/reliability.png)", "", f"![faithfulness]({here}/faithfulness.png)", ""]
    text += ["## Runs", ""]
    for run in found:
        here, versions = run.folder.relative_to(target), run.result["versions"]
        text += [f"### {run.script} / {run.folder.name}", "", f"{run.result['source']}; test {run.result['test_top1']:.2%}, 95 % interval "
                 f"{run.result['test_interval_95'][0]:.2%} to {run.result['test_interval_95'][1]:.2%}; val {run.result['val_top1']:.2%} at epoch "
                 f"{run.result['best_epoch']}; seed {run.recipe['seed']}; {versions['hardware']}, Python {versions['python']}, torch {versions['torch']}, "
                 f"commit {versions['git_commit']}.", "", *(f"- {sentence}" for sentence in run.result["diagnosis"]), "",
                 f"![curves]({here}/curves.png)", "", f"[history]({here}/history.csv) · [result]({here}/result.json) · [recipe]({here}/recipe.json)", ""]
    return "\n".join(text)


def summary(target: Path) -> str:
    """What README.md shows: full-budget rows, the ablation, and what the analysis of the best checkpoint found first."""
    best = next(iter(analyses(target)), None)
    found = f"Analysis of the best checkpoint, {best[0].name}: {findings.findings(best[1])[0]}" if best else f"Analysis of the best checkpoint: {UNMEASURED}."
    return f"{table(find(target), SHORT, small=False)}\n{ablation(target)}\n{found}\n"


def fill_readme(readme: Path, target: Path) -> None:
    """Replace what stands between the two marks of README.md by the summary."""
    text = readme.read_text()
    if MARK not in text or END not in text:
        raise InputError(f"{readme} lacks the marks {MARK} and {END}: put them where the tables belong")
    before, after = text.split(MARK)[0], text.split(END)[1]
    write_text(readme, f"{before}{MARK}\n{summary(target)}{END}{after}")


def publish(source: Path, target: Path, readme: Path | None) -> int:
    """Copy, write the overview and fill the README, if one is given; the number of places copied."""
    target.mkdir(parents=True, exist_ok=True)
    count = copy(source, target)
    write_text(target / "README.md", overview(find(target), target))
    if readme:
        fill_readme(readme, target)
    return count


def main() -> None:
    """Publish the runs that the command line names."""
    parser = Parser(prog="python -m common.results", description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path, help="folder of the run folders")
    parser.add_argument("target", type=Path, help="where to publish, as docs/results")
    given = parser.parse_args()
    if not find(given.runs):
        raise InputError(f"no finished run in {given.runs}: train first, or give another folder")
    print(f"{publish(given.runs, given.target, Path('README.md'))} results published in {given.target}")


if __name__ == "__main__":
    run_script(main)
