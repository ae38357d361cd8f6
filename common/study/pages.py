"""The published tables and the page of all results, every number from a file of a real run."""
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

from common.analysis.findings import claims, findings
from common.config import Recipe
from common.files import Json, read_json
from common.metrics import t_interval
from common.study import ablation
from common.study.found import Found, find, groups, of_row
from common.study.rows import FREE, ROWS, STARTS, Row
from common.study.tables import markdown
from common.words import duration, number, percent

HEADS = (
    "run", "weights", "first study %", "test top-1 %", "val %", "epochs", "training", "wall-clock",
    "images/s", "hardware", "command",
)  # fmt: skip
# Of the guides' tables, which a phone shows too.
SHORT = tuple(head for head in HEADS if head not in ("wall-clock", "images/s", "command"))
PAGE = """# Measured results

- [Findings](#findings)
- [Results](#results)
- [Other settings](#other-settings)
- [Defaults chosen on val](#defaults-chosen-on-val)
- [Ablation](#ablation)
- [Analysis](#analysis)
- [Runs](#runs)
- [Speed](#speed)

Written by `python -m common.study.results`; every number comes from the files beside it.
*first study*: the one made by hand that this one repeats, its test accuracy or, where it gave only
that, val. *training*: the sum of the epochs, evaluation on val included. *wall-clock*: the whole
process, imports, data, test and figures included. *images/s*: of the fastest epoch that trained the
whole network. ±: standard deviation over n seeds.

{about}
## Findings

{findings}
## Results

![Test accuracy beside the first study's](study.png)

{results}
## Other settings

{other}
## Defaults chosen on val

{tuning}
## Ablation

{ablation}
## Analysis

{analysis}
## Runs

{runs}
## Speed

{speed}"""
RUN = """<details><summary>{place}: test {test}, from {weights}</summary>

{diagnosis}

![curves]({place}/curves.png)

[history]({place}/history.csv) · [result]({place}/result.json) · [recipe]({place}/recipe.json)
</details>
"""
ANALYSIS = """### {name}

![confusion](analyze/{name}/confusion.png)

![reliability](analyze/{name}/reliability.png)

![faithfulness](analyze/{name}/faithfulness.png)
"""
ABLATION = """### {name}

{text}
"""
SPEED = """<details><summary>{name}: {hardware}, torch {torch}, commit {git_commit}</summary>

[All figures, and the kernels of a step where they were measured]({name})

{rates}
</details>
"""


def line(row: Row, runs: Sequence[Found]) -> dict[str, str]:
    """Head → cell of one line; accuracies and times are means over seeds, with the standard
    deviation where there are several."""
    one, result = runs[0], runs[0].result
    settings = [f"{key} {value}" for key, value in row.changes(one.recipe).items()]
    versions = result["versions"]
    machine = [versions["hardware"], f"torch {versions['torch']}", versions.get("precision")]

    def mean(key: str) -> float:
        return sum(run.result[key] for run in runs) / len(runs)

    # The wall-clock of a resumed run is that of its last process alone.
    resumed = any(run.result.get("resumed") for run in runs)
    return {
        "run": ", ".join([row.title, *settings]),
        "weights": one.weights,
        # The first study saw all images.
        "first study %": "–" if one.recipe["train_limit"] else row.report,
        "test top-1 %": _spread([run.result["test_top1"] for run in runs]),
        "val %": _spread([run.result["val_top1"] for run in runs]),
        "epochs": " to ".join(sorted({str(len(run.history)) for run in runs}, key=int)),
        "training": duration(mean("train_seconds")),
        "wall-clock": "–" if resumed else duration(mean("wall_seconds")),
        "images/s": number(sum(run.rate for run in runs) / len(runs), 0),
        "hardware": ", ".join(filter(None, machine)),
        "command": f"`python {row.command}`",
    }


def unmeasured(row: Row) -> dict[str, str]:
    """The line of a row that no run fills."""
    return {
        "run": row.title,
        "weights": STARTS[row.starts[0]] if len(row.starts) == 1 else "pretrained",
        "first study %": row.report,
        "test top-1 %": "not measured",
        "command": f"`python {row.command}`",
    }


def _spread(shares: Sequence[float]) -> str:
    """Mean in percent, standard deviation and number of seeds."""
    found = t_interval([100 * share for share in shares])
    spread = f" ± {number(found.std)} (n = {len(shares)})" if len(shares) > 1 else ""
    return number(found.mean) + spread


def results(found: Sequence[Found], heads: Sequence[str] = HEADS) -> tuple[str, str]:
    """Two tables: a line for each row, and one for each other setting that was run."""
    asked, other = [], []
    for row in ROWS:
        own, rest = of_row(found, row)
        asked += [line(row, runs) for runs in own]
        if not own and "FILE" not in row.command:
            asked.append(unmeasured(row))
        other += [line(row, runs) for runs in rest]
    return _table(asked, heads), _table(other, heads)


def _table(lines: Sequence[dict[str, str]], heads: Sequence[str]) -> str:
    """Lines as Markdown; a cell that a line lacks is empty."""
    return markdown([heads, *([line.get(head, "") for head in heads] for line in lines)])


def tuning(found: Sequence[Found]) -> str:
    """Val accuracy of each setting that was tried, the best first; columns are what was varied."""
    varied = [
        key
        for key in asdict(Recipe())
        if key not in FREE and len({run.recipe[key] for run in found}) > 1
    ]
    tried = []
    for runs in groups(found):
        val = [run.result["val_top1"] for run in runs]
        settings = [str(runs[0].recipe[key]) for key in varied]
        tried.append((sum(val) / len(val), [*settings, _spread(val)]))
    return markdown([[*varied, "val %"], *(cells for _, cells in sorted(tried, reverse=True))])


def whole_ablation(target: Path) -> Json | None:
    """The published ablation without gaps, on all training images, with the most seeds."""
    tables = [
        read_json(path, ("recipe", "gaps", "seeds", "conclusions"))
        for path in sorted(target.glob("ablation/*/ablation.json"))
    ]
    whole = [one for one in tables if not one["gaps"] and not one["recipe"]["train_limit"]]
    return max(whole, key=lambda one: len(one["seeds"]), default=None)


def best_analysis(target: Path) -> Json | None:
    """The published analysis, of all test images, of the checkpoint with the best val accuracy."""
    keys = ("split", "request", "checkpoint")
    found = [read_json(path, keys) for path in sorted(target.glob("analyze/*/analysis.json"))]
    whole = [one for one in found if one["split"] == "test" and one["request"]["limit"] is None]
    return max(whole, key=lambda one: one["checkpoint"]["metrics"]["val_top1"], default=None)


def said(target: Path) -> list[str]:
    """The findings: what the ablation and the analysis of the best checkpoint show."""
    whole, analysis = whole_ablation(target), best_analysis(target)
    sentences = whole["conclusions"] if whole else []
    if analysis:
        first, *rest = findings(analysis)
        sentences = [
            *sentences,
            f"The best checkpoint, {analysis['checkpoint']['file']}: {first}",
            *rest,
        ]
        for claim, verdict, why in claims(analysis):
            sentences.append(f"The first study said: {claim}. **{verdict}**: {why}")
    return sentences


def listed(sentences: Sequence[str]) -> str:
    """Sentences as a Markdown list."""
    return "".join(f"- {sentence}\n" for sentence in sentences)


def readme(target: Path) -> dict[str, str]:
    """Caption → tables and findings that README.md shows."""
    whole = whole_ablation(target)
    asked, other = results(find(target), SHORT)
    return {
        "Results": asked,
        "With other settings": other,
        "Ablation": markdown(ablation.grid(whole) if whole else []),
        "Findings": listed(said(target)),
    }


def overview(target: Path) -> str:
    """`target`/README.md: contents, findings, tables, and what each run and the bench say."""
    found = find(target)
    asked, other = results(found)
    # What no file of a run knows: the state of the data, who shared the machine.
    note = target / "about.md"
    parts = {"analysis": "", "ablation": "", "runs": "", "speed": ""}
    for path in sorted(target.glob("ablation/*/ablation.md")):
        name = quote(path.parent.name)
        text = path.read_text().replace("(ablation.png)", f"(ablation/{name}/ablation.png)")
        parts["ablation"] += ABLATION.format(name=name, text=text)
    for path in sorted(target.glob("analyze/*/analysis.json")):
        parts["analysis"] += ANALYSIS.format(name=quote(path.parent.name))
    for run in found:
        place = quote(run.folder.relative_to(target).as_posix())
        test, words = percent(run.result["test_top1"]), " ".join(run.result["diagnosis"])
        parts["runs"] += RUN.format(place=place, test=test, weights=run.weights, diagnosis=words)
    for path in sorted(target.glob("bench*.json")):
        bench = read_json(path, ("environment", "results"))
        parts["speed"] += SPEED.format(
            name=path.name, rates=rates(bench["results"]), **bench["environment"]
        )
    return PAGE.format(
        about=note.read_text() if note.is_file() else "",
        findings=listed(said(target)),
        results=asked,
        other=other,
        tuning=tuning(find(target / "tuning")),
        **parts,
    )


def rates(results: Sequence[Json]) -> str:
    """The table of a bench."""
    grid = [["network", "batch", "variant", "precision", "images/s", "× plain", "cold s"]]
    for one in results:
        numbers = [
            number(one["images_per_s"], 0),
            number(one["ratio_to_plain"]),
            number(one["cold_seconds"], 1),
        ]
        grid.append(
            [one["model"], str(one["batch_size"]), one["variant"], one["precision"], *numbers]
        )
    return markdown(grid)
