"""Publish measured runs: copy their small files and write the result tables, every number from a file of a real run.

    python -m common.study.results runs docs/results    # copies, writes docs/results/README.md, fills README.md's tables

A row holds the runs that its command gives, one per seed; a run with other settings gets a line of its own that shows them, in
docs/results alone. What has not been run stands in the table as "not measured". Trial runs (--smoke) are left out, and so are
figures that show images of the data set: the right to publish those is not ours to give.
"""
import csv
import functools
import importlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote


from common.analysis import findings
from common.analysis.findings import claims
from common.config import COMMON_FLAGS, Parser, Recipe, parse
from common.data.sources import CLASSES
from common.errors import InputError, run_script
from common.files import read_json, write_json, write_text
from common.metrics import Interval, t_interval
from common.models.weights import IMAGENET_URLS
from common.study.ablation import REPORT_TOP1, grid
from common.study.figures import study

RUN_FILES = ("recipe.json", "result.json", "history.csv", "curves.png")
ABLATION_FILES = ("ablation.json", "ablation.csv", "ablation.md", "ablation.png")
ANALYSIS_FILES = ("analysis.json", "confusion.csv", "confusion.png", "per_class.csv", "per_class.png", "reliability.png", "faithfulness.png")
MARK, END = "<!-- results -->", "<!-- end of results -->"
UNMEASURED = "not measured"
COLUMNS = {"run": "---", "the report": "---", "test top-1 %": "---:", "val %": "---:", "epochs": "---:", "training": "---:", "wall-clock": "---:",
           "images/s, best epoch": "---:", "memory": "---:", "hardware": "---", "command": "---"}  # fmt: skip
SMALL = ("run", "test top-1 %", "val %", "epochs", "training", "command")  # of README.md's table of runs with other settings
SHORT = tuple(name for name in COLUMNS if name != "command")


@dataclass(frozen=True)
class Row:
    """A line of the table: a key for folder names, a title, the report's figure, the command, and which recipes belong to it."""

    key: str
    title: str
    report: str
    command: str
    fits: Callable[[Mapping[str, Any]], bool]

    @property
    def script(self) -> str:
        """The training script's name."""
        return self.command.split(".py")[0]


def _is(own: bool | None = None, **wanted: Any) -> Callable[[Mapping[str, Any]], bool]:
    """A test for recipes that hold all these values and, if `own` is given, start from weights of this project or from others."""
    return lambda recipe: all(recipe[key] == value for key, value in wanted.items()) and own in (None, own_weights(recipe))


def own_weights(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe starts from weights that are not ImageNet's published file."""
    return recipe["weights"] is not None and Path(recipe["weights"]).name not in {Path(url).name for url in IMAGENET_URLS.values()}


PRETRAINING = Row("pretraining", "EfficientNet-B2, pretraining", "–", "train_effnet.py --resize 2 --no-pretrained --data-dir DIR", _is(model="efficientnet_b2", pretrained=False))
OWN = Row("b2-own", "EfficientNet-B2, 64 px, own weights", "–", "train_effnet.py --resize 2 --weights FILE", _is(True, resize=2, pretrained=True))
IMAGENET = Row("b2", "EfficientNet-B2, 64 px, ImageNet weights", "93.77-93.81", "train_effnet.py --resize 2", _is(False, resize=2, pretrained=True))
SIZES = tuple(Row(f"b2-{32 * n}px", f"EfficientNet-B2, {32 * n} px, pretrained", report, f"train_effnet.py --resize {n}", _is(resize=n, pretrained=True))
              for n, report in ((1, "85.99"), (3, "–"), (4, "–")))
ROWS = (
    Row("baseline", "SimpleCNN", "val 73.30", "train_baseline.py", _is(model="simple_cnn")),
    Row("improved-report", "ImprovedCNN, report's recipe", "84.05", "train_improved.py --recipe report", _is(model="improved_cnn", decay_all=True)),
    Row("improved", "ImprovedCNN", "–", "train_improved.py", _is(model="improved_cnn", decay_all=False)),
    Row("se-imagenet", "SE-ResNet18, ImageNet stem", "val 83.58", "train_improved.py --model se_resnet18 --stem imagenet", _is(model="se_resnet18", stem="imagenet", pretrained=False)),
    Row("se-cifar", "SE-ResNet18, CIFAR stem", "–", "train_improved.py --model se_resnet18", _is(model="se_resnet18", stem="cifar", pretrained=False)),
    Row("b2-scratch", "EfficientNet-B2, 64 px, from scratch", "83.74", "train_effnet.py --resize 2 --no-pretrained", _is(resize=2, pretrained=False)),
    PRETRAINING,
    OWN,
    IMAGENET,
    *SIZES,
)


@functools.cache
def _default(row: Row) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The recipe that a row's command gives, and which of its fields are flags of the script."""
    script = importlib.import_module(row.script)
    flags, pick = getattr(script, "FLAGS", ()), getattr(script, "pick", lambda given, name: name)
    recipe, _ = parse("", script.RECIPES, script.SMOKE, flags, pick, row.command.split()[1:])
    return asdict(recipe), (*COMMON_FLAGS, *flags)


def changes(row: Row, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What a run did otherwise than the row's command; seed, the weights' path and the size of another set's images do not count."""
    free = {"seed", "weights"} | ({"resize"} if row is PRETRAINING else set())
    return {key: recipe[key] for key, value in _default(row)[0].items() if key not in free and recipe[key] != value}


@dataclass(frozen=True)
class Found:
    """A finished run: its folder, script, recipe, split, result and history."""

    folder: Path
    script: str
    recipe: dict[str, Any]
    split_hash: str
    result: dict[str, Any]
    history: list[dict[str, str]]

    def belongs(self, row: Row) -> bool:
        """Whether this run counts for a row; synthetic images count for none, another data set only for pretraining."""
        return (self.script == row.script and self.result["source"] != "synthetic" and is_cifar10(self.result) != (row is PRETRAINING)
                and row.fits(self.recipe))

    def alike(self) -> str:
        """Equal for runs that may share a line: all but seed and weights' path is the same, machine and versions included."""
        versions = self.result["versions"]
        return str(({**self.recipe, "seed": None, "weights": own_weights(self.recipe)}, self.split_hash, versions["hardware"], versions["torch"], versions.get("precision")))


def is_cifar10(result: Mapping[str, Any]) -> bool:
    """Whether a result is of CIFAR-10's classes; results older than the list of names had ten classes only of CIFAR-10."""
    names = result.get("class_names")
    return tuple(names) == CLASSES if names else "10 classes" in str(result["source"]) or str(result["source"]).startswith("CIFAR-10")


def find(root: Path, trials: bool = False) -> list[Found]:
    """Every finished run `root`/<script>/<name>, sorted; those of --smoke only as `trials`."""
    found = []
    for path in sorted(root.glob("*/*/result.json")):
        card = read_json(path.parent / "recipe.json")
        if card.get("runtime", {}).get("smoke") and not trials:
            continue
        with (path.parent / "history.csv").open() as file:
            found.append(Found(path.parent, card["script"], {**asdict(Recipe()), **card["recipe"]}, card.get("split_hash", ""), read_json(path), list(csv.DictReader(file))))
    return found


def _mean(runs: Sequence[Found], key: str) -> float | None:
    """Mean of a number of result.json; None where a run lacks it."""
    values = [run.result.get(key) for run in runs]
    return None if None in values else sum(values) / len(values)


def cells(row: Row, runs: Sequence[Found]) -> dict[str, str]:
    """One line of the table; accuracies and times are means over seeds, with the standard deviation where there are several."""
    line = dict.fromkeys(COLUMNS, "") | {"run": row.title, "the report": row.report, "test top-1 %": UNMEASURED, "command": f"`python {row.command}`"}
    if not runs:
        return line
    one, versions = runs[0], runs[0].result["versions"]
    other, flags = changes(row, one.recipe), _default(row)[1]
    title = row.title + (", own weights" if row in SIZES and own_weights(one.recipe) else "")
    if row is PRETRAINING:
        title += f" ({len(one.result['class_names'])} classes)"
    if other:
        title += f", {other['train_limit']:,} training images" if other.get("train_limit") else ", other settings"
    words = "".join(f" --{key.replace('_', '-')} {value}" for key, value in other.items() if key in flags and value is not None)
    rest = ", ".join(f"{key} {value}" for key, value in other.items() if key not in flags)
    test, val = (t_interval([100 * run.result[key] for run in runs]) for key in ("test_top1", "val_top1"))
    lengths = sorted({len(run.history) for run in runs})
    cold = None if any(run.result.get("resumed") for run in runs) else _mean(runs, "wall_seconds")
    gpu, rss = _mean(runs, "peak_memory_bytes"), _mean(runs, "peak_rss_bytes")
    return line | {
        "run": title, "test top-1 %": _spread(test, runs), "val %": f"{val.mean:.2f}", "epochs": "-".join(map(str, lengths[:: max(1, len(lengths) - 1)])),
        "training": _duration(_mean(runs, "train_seconds")), "wall-clock": _duration(cold), "images/s, best epoch": f"{_mean(runs, 'images_per_s'):,.0f}",
        "memory": f"{gpu / 1e9:.1f} GB" if gpu else f"{rss / 1e9:.1f} GB RAM" if rss else "–",
        "hardware": ", ".join([versions["hardware"], f"torch {versions['torch']}", *filter(None, [versions.get("precision")])]),
        "command": f"`python {row.command}{words}`" + (f" with {rest}" if rest else ""),
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


def groups(row: Row, found: Sequence[Found]) -> Iterator[tuple[bool, list[Found]]]:
    """(whether they are what the row's command gives, runs that share a line), those that are first."""
    lines: dict[str, list[Found]] = {}
    for run in found:
        if run.belongs(row):
            lines.setdefault(run.alike(), []).append(run)
    yield from sorted(((not changes(row, runs[0].recipe), runs) for runs in lines.values()), key=lambda one: not one[0])


def _markdown(lines: Iterable[Sequence[str]]) -> str:
    """Rows of cells as Markdown."""
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def table(found: Sequence[Found], columns: Sequence[str] = tuple(COLUMNS), full: bool = True, others: bool = True) -> str:
    """The result table as Markdown: what each row's command gave (`full`), and a line for each other setting (`others`)."""
    lines = [columns, [COLUMNS[name] for name in columns]]
    for row in ROWS:
        mine = list(groups(row, found))
        chosen = ([runs for own, runs in mine if own] or [[]]) if full else []
        for runs in chosen + ([runs for own, runs in mine if not own] if others else []):
            line = cells(row, runs)
            lines.append([line[name] for name in columns])
    return _markdown(lines)


def full_ablation(folder: Path) -> dict[str, Any] | None:
    """The published ablation of CIFAR-10 with the default recipe, all arms and the most seeds, if there is one."""
    def whole(one: dict[str, Any]) -> bool:
        same = one.get("recipe") and not changes(IMAGENET, {**asdict(Recipe()), **one["recipe"]})
        done = {row["arm"]: row["n"] for row in one["rows"]} == dict.fromkeys(REPORT_TOP1, len(one["seeds"]))
        return bool(same and done and not one["failed"]) and one["source"] != "synthetic" and is_cifar10(one)

    tables = [read_json(path) for path in sorted(folder.glob("ablation/*/ablation.json"))]
    return max(filter(whole, tables), key=lambda one: len(one["seeds"]), default=None)


def ablation(folder: Path) -> str:
    """The ablation's table and conclusions as Markdown; what was not measured says so."""
    full = full_ablation(folder)
    if full:
        return _markdown(_ruled(grid(full))) + "\n" + "".join(f"- {words}\n" for words in full["conclusions"])
    return f"Five-arm ablation with all training images: {UNMEASURED}.\n"


def _ruled(grid: list[list[str]]) -> list[list[str]]:
    """Header, Markdown's rule, rows."""
    return [grid[0], ["---"] + ["---:"] * (len(grid[0]) - 1), *grid[1:]]


def analyses(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Published analyses of all of CIFAR-10's test images, the checkpoint with the best val accuracy first."""
    found = [(path.parent, read_json(path)) for path in sorted(folder.glob("analyze/*/analysis.json"))]
    whole = [one for one in found if one[1]["is_cifar10"] and not one[1]["synthetic"] and one[1]["split"] == "test" and one[1]["request"]["limit"] is None]
    return sorted(whole, key=lambda one: -one[1]["checkpoint"]["metrics"]["val_top1"])


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
                 _markdown(_ruled(grid)) if bench["results"] else "", *map(_trajectory, bench.get("trajectories", [])),
                 *map(_profile, bench.get("profiles", [])), "\n"]
    return "".join(text) or f"{UNMEASURED}\n\n"


def _trajectory(one: dict[str, Any]) -> str:
    """A sentence on two curves of training loss."""
    means = ", ".join(f"{loop} {' '.join(f'{value:.3f}' for value in values)}" for loop, values in one["means"].items())
    gap = one["gap"]
    return (f"- Training loss of {one['model']}, batch {one['batch_size']}, ours in {one['precision']}, mean of each {one['steps_a_part']} steps over {one['seeds']} seeds: "
            f"{means}; ours less plain over the last half {gap['mean']:+.4f}, 95 % interval {gap['low']:+.4f} to {gap['high']:+.4f}.\n")


def _profile(one: dict[str, Any], shown: int = 12) -> str:
    """A table of the kernels, or on a CPU operators, that take most of a step."""
    busy = one["busy_seconds"]
    lines = [["kernel", "calls a step", "ms a step", "share"]]
    for kernel in one["kernels"][:shown]:
        name = kernel["name"][:100].replace("|", "\\|")
        lines.append([f"`{name}`", f"{kernel['calls']:.0f}", f"{1e3 * kernel['seconds']:.2f}", f"{kernel['seconds'] / busy:.1%}"])
    return (f"\nA step of {one['model']}, batch {one['batch_size']}, in {one['precision']}: {1e3 * one['step_seconds']:.2f} ms under the profiler, "
            f"{1e3 * busy:.2f} ms of it in kernels (on a CPU: operators); the {len(lines) - 1} longest of {len(one['kernels'])}:\n\n{_markdown(_ruled(lines))}")


def size_curve(found: Sequence[Found], path: Path) -> bool:
    """Draw accuracy and cost against the input size, if a pretrained B2 was trained at two sizes or more; whether it did."""
    points = []
    for row in (OWN, IMAGENET, *SIZES):
        for runs in (runs for full, runs in groups(row, found) if full):
            top1 = t_interval([100 * run.result["test_top1"] for run in runs])
            points.append({"weights": "own weights" if own_weights(runs[0].recipe) else "ImageNet weights", "px": 32 * runs[0].recipe["resize"], "top1": top1.mean,
                           "std": top1.std if len(runs) > 1 else 0.0, "seconds": _mean(runs, "train_seconds")})
    if len({point["px"] for point in points}) < 2:
        return False
    size_curve(points, path)
    return True


def study_figure(found: Sequence[Found], path: Path) -> bool:
    """Draw every measured row but pretraining and input sizes, accuracy beside the report's and val curves; whether there was one."""
    rows = []
    for row in (row for row in ROWS if row not in (PRETRAINING, *SIZES)):
        for runs in (runs for full, runs in groups(row, found) if full):
            top1 = t_interval([100 * run.result["test_top1"] for run in runs])
            curves = [[100 * float(line["val_top1"]) for line in run.history] for run in runs]
            report = re.search(r"[\d.]+", row.report)
            rows.append({"name": row.title, "top1": top1.mean, "std": top1.std if len(runs) > 1 else 0.0, "report": report and float(report[0]),
                         "curve": [sum(values) / len(values) for values in zip(*curves)]})
    if rows:
        study(rows, path, "Dots: means over seeds, with their standard deviation; the report's figures are on val where the table says so. Curves: means over seeds.")
    return bool(rows)


def copy(source: Path, target: Path, trials: bool = False) -> int:
    """Copy the small files of every run, ablation, analysis and bench of `source`; the number of places.

    What stands under the same name is replaced if it is of the same machine; that of another machine keeps its place, and the
    new one gets the machine's name.
    """
    places = [(run.folder, run.script, "result.json", RUN_FILES) for run in find(source, trials)]
    for script, marker, files in (("ablation", "ablation.json", ABLATION_FILES), ("analyze", "analysis.json", ANALYSIS_FILES)):
        places += [(path.parent, script, marker, files) for path in sorted(source.glob(f"{script}/*/{marker}")) if trials or read_json(path)["source"] != "synthetic"]
    for folder, script, marker, files in places:
        place, hardware = target / script / folder.name, _hardware(folder / marker)
        if (place / marker).is_file() and _hardware(place / marker) != hardware:
            place = place.with_name(f"{folder.name}-{hardware}")
        place.mkdir(parents=True, exist_ok=True)
        for name in files:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, place / name)
        if script.startswith("train_"):
            card = read_json(place / "recipe.json")
            write_json(place / "recipe.json", {**card, "runtime": {**card.get("runtime", {}), "data_dir": None}})  # a path of this machine is no result
    benches = sorted(source.glob("bench*.json"))
    for path in benches:
        shutil.copyfile(path, target / f"{path.stem}-{_hardware(path)}.json")
    return len(places) + len(benches)


def _hardware(path: Path) -> str:
    """The machine that a JSON file names, fit for a file's name."""
    content = read_json(path)
    versions = content.get("versions") or content.get("environment") or {}
    return re.sub(r"[^a-z0-9]+", "-", str(versions.get("hardware")).lower()).strip("-")


def overview(found: Sequence[Found], target: Path) -> str:
    """`target`/README.md: the tables, and a section for each run with its diagnosis and curves."""
    about = target / "about.md"  # what no file of a run knows: the state of the data, who shared the machine
    text = ["# Measured results", "", "Written by `python -m common.study.results`; every number comes from the files beside it. *training* is the sum of the epochs, "
            "evaluation on val included; *wall-clock* is the whole process, imports, data, test and figures included.", "",
            *([about.read_text()] if about.is_file() else []), table(found),
            *(["![study](study.png)", ""] if study_figure(found, target / "study.png") else []), "## Ablation", "", ablation(target)]
    for path in sorted(target.glob("ablation/*/ablation.md")):
        here = quote(str(path.parent.relative_to(target)))
        text += [f"### ablation / {path.parent.name}", "", *path.read_text().split("\n")[2:], f"![arms]({here}/ablation.png)", ""]
    if size_curve(found, target / "input_size.png"):
        text += ["## Input size", "", "![accuracy and cost against input size](input_size.png)", ""]
    text += ["## Speed", "", speed(target)]
    for folder, result in analyses(target):
        here = quote(str(folder.relative_to(target)))
        text += [f"## Analysis of {folder.name}", "", *(f"- {words}" for words in findings(result)), "",
                 *(f"- The report: {claim} **{verdict}**: {why}" for claim, verdict, why in claims(result)), "",
                 f"![confusion]({here}/confusion.png)", "", f"![reliability]({here}/reliability.png)", "", f"![faithfulness]({here}/faithfulness.png)", ""]
    text += ["## Runs", ""]
    for run in found:
        here, versions = quote(str(run.folder.relative_to(target))), run.result["versions"]
        text += [f"### {run.script} / {run.folder.name}", "", f"{run.result['source']}; test {run.result['test_top1']:.2%}, 95 % interval "
                 f"{run.result['test_interval_95'][0]:.2%} to {run.result['test_interval_95'][1]:.2%}; val {run.result['val_top1']:.2%} at epoch "
                 f"{run.result['best_epoch']}; seed {run.recipe['seed']}; {versions['hardware']}, Python {versions['python']}, torch {versions['torch']}, "
                 f"commit {versions['git_commit']}.", "", *(f"- {sentence}" for sentence in run.result["diagnosis"]), "",
                 f"![curves]({here}/curves.png)", "", f"[history]({here}/history.csv) · [result]({here}/result.json) · [recipe]({here}/recipe.json)", ""]
    return "\n".join(text)


def summary(target: Path) -> str:
    """What README.md shows: the rows, the ablation, what the analysis of the best checkpoint found first, and what was measured on."""
    about = target / "about.md"
    note = about.read_text().strip().split("\n\n")[0] + "\n\n" if about.is_file() else ""
    best = next(iter(analyses(target)), None)
    found = f"Analysis of the best checkpoint, {best[0].name}: {findings(best[1])[0]}" if best else f"Analysis of the best checkpoint: {UNMEASURED}."
    runs = find(target)
    smaller = table(runs, SMALL, full=False)
    smaller = f"With other settings, small budgets above all:\n\n{smaller}\n" if smaller.count("\n") > 2 else ""
    return f"{note}{table(runs, SHORT, others=False)}\n{smaller}{ablation(target)}\n{found}\n"


def fill_readme(readme: Path, target: Path) -> None:
    """Replace what stands between the two marks of README.md by the summary."""
    before, mark, rest = readme.read_text().partition(MARK)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise InputError(f"{readme} lacks the marks {MARK} and {END}: put them where the tables belong")
    write_text(readme, f"{before}{MARK}\n{summary(target)}{END}{after}")


def publish(source: Path, target: Path, trials: bool = False) -> int:
    """Copy and write the overview, and README.md's tables if `target` is docs/results; the number of places copied."""
    target.mkdir(parents=True, exist_ok=True)
    count = copy(source, target, trials)
    write_text(target / "README.md", overview(find(target, trials), target))
    if target.resolve() == Path("docs/results").resolve():
        fill_readme(Path("README.md"), target)
    return count


def main() -> None:
    """Publish the runs that the command line names."""
    parser = Parser(prog="python -m common.study.results", description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path, help="folder of the run folders")
    parser.add_argument("target", type=Path, help="where to publish; docs/results fills README.md's tables too")
    given = parser.parse_args()
    if not find(given.runs):
        raise InputError(f"no finished run in {given.runs}: train first, or give another folder")
    print(f"{publish(given.runs, given.target)} results published in {given.target}")


if __name__ == "__main__":
    run_script(main)
