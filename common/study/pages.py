"""The published tables and the page of all results, every number from a file of a real run."""
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from urllib.parse import quote

from common.analysis.findings import claims, findings
from common.config import Recipe
from common.files import Json, read_json
from common.study import ablation
from common.study.found import Runs, find, groups, of_row
from common.study.rows import FREE, ROWS, STARTS, Row
from common.study.tables import bullets, markdown
from common.words import duration, number, percent

HEADS = (
    "run", "weights", "first study %", "test top-1 %", "val %", "epochs", "training", "wall-clock",
    "images/s", "hardware", "command",
)  # fmt: skip
# Of the guides' tables, which a phone shows too.
SHORT = (*HEADS[:7], "hardware")
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
RUN = """<details><summary>{place}: test {test}, from {run.weights}</summary>

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
SAID = "The first study said: {}. **{}**: {}"
RATES = {  # head of a column → its cells
    "network": "{model}",
    "batch": "{batch_size}",
    "variant": "{variant}",
    "ours in": "{precision}",
    "images/s": "{images_per_s:,.0f}",
    "× plain": "{ratio_to_plain:.2f}",
    "cold s": "{cold_seconds:.1f}",
}
SPEED = """<details><summary>{name}: {hardware}, torch {torch}, commit {git_commit}</summary>

[All figures, and the kernels of a step where they were measured]({name})

{rates}
</details>
"""


def line(row: Row, runs: Runs, heads: Sequence[str]) -> list[str]:
    """The cells of one line; accuracies and times are means over seeds, with the standard
    deviation where there are several. Without runs it says that nothing was measured."""
    cells = {
        "run": row.title,
        "weights": STARTS[row.starts[0]] if len(row.starts) == 1 else "pretrained",
        "first study %": row.report,
        "test top-1 %": "not measured",
        "command": f"`python {row.command}`",
    }
    if runs:
        one = runs[0]
        settings = ["{} {}".format(*item) for item in row.changes(one.recipe).items()]
        # The wall-clock of a resumed run is that of its last process alone.
        resumed = any(run.result.get("resumed") for run in runs)
        cells |= {
            "run": ", ".join([row.title, *settings]),
            "weights": one.weights,
            "test top-1 %": _spread(runs, "test_top1"),
            "val %": _spread(runs, "val_top1"),
            "epochs": " to ".join(sorted({str(run.epochs) for run in runs}, key=int)),
            "training": duration(_mean(runs, "train_seconds")),
            "wall-clock": "–" if resumed else duration(_mean(runs, "wall_seconds")),
            "images/s": number(fmean(run.rate for run in runs), 0),
            "hardware": one.machine,
        }
        if one.recipe["train_limit"]:  # the first study saw all images
            cells["first study %"] = "–"
    return [cells.get(head, "") for head in heads]


def _mean(runs: Runs, key: str) -> float:
    """Mean of one of the results."""
    return fmean(run.result[key] for run in runs)


def _spread(runs: Runs, key: str) -> str:
    """Mean in percent, standard deviation and number of seeds."""
    values = [100 * run.result[key] for run in runs]
    spread = f" ± {number(stdev(values))} (n = {len(values)})" if len(values) > 1 else ""
    return number(fmean(values)) + spread


def results(found: Runs, heads: Sequence[str] = HEADS) -> list[str]:
    """Two tables: a line for each row, and one for each other setting that was run."""
    asked, other = [heads], [heads]
    for row in ROWS:
        own, rest = of_row(found, row)
        if not own and "FILE" not in row.command:
            own = [[]]
        asked += [line(row, runs, heads) for runs in own]
        other += [line(row, runs, heads) for runs in rest]
    return [markdown(asked), markdown(other)]


def tuning(found: Runs) -> str:
    """Val accuracy of each setting that was tried, the best first; columns are what was varied."""
    varied = [
        key
        for key in vars(Recipe())
        if key not in FREE and len({run.recipe[key] for run in found}) > 1
    ]
    grid = [[*varied, "val %"]]
    for runs in sorted(groups(found), key=lambda runs: -_mean(runs, "val_top1")):
        settings = [str(runs[0].recipe[key]) for key in varied]
        grid.append([*settings, _spread(runs, "val_top1")])
    return markdown(grid)


def whole_ablation(target: Path) -> Json:
    """The published ablation without gaps, on all training images, with the most seeds; one
    without rows where there is none."""
    tables = [
        read_json(path, ("recipe", "gaps", "seeds", "conclusions"))
        for path in sorted(target.glob("ablation/*/ablation.json"))
    ]
    whole = [one for one in tables if not one["gaps"] and not one["recipe"]["train_limit"]]
    return max(
        whole, key=lambda one: len(one["seeds"]), default={"rows": [], "conclusions": []}
    )


def best_analysis(target: Path) -> Json | None:
    """The published analysis, of all test images, of the checkpoint with the best val accuracy."""
    found = [
        read_json(path, ("split", "request", "checkpoint"))
        for path in sorted(target.glob("analyze/*/analysis.json"))
    ]
    whole = [one for one in found if one["split"] == "test" and one["request"]["limit"] is None]
    return max(whole, key=lambda one: one["checkpoint"]["metrics"]["val_top1"], default=None)


def said(target: Path) -> list[str]:
    """The findings: what the ablation and the analysis of the best checkpoint show."""
    sentences = whole_ablation(target)["conclusions"]
    analysis = best_analysis(target)
    if analysis:
        first, *rest = findings(analysis)
        sentences += [f"The best checkpoint, {analysis['checkpoint']['file']}: {first}", *rest]
        sentences += [SAID.format(*claim) for claim in claims(analysis)]
    return sentences


def readme(target: Path) -> dict[str, str]:
    """Caption → tables and findings that README.md shows."""
    asked, other = results(find(target), SHORT)
    arms = whole_ablation(target)
    about = ablation.ABOUT.format(**arms) if arms["rows"] else ""
    return {
        "Results": asked,
        "With other settings": other,
        "Ablation": about + markdown(ablation.grid(arms)),
        "Findings": bullets(said(target)),
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
        test, diagnosis = percent(run.result["test_top1"]), " ".join(run.result["diagnosis"])
        parts["runs"] += RUN.format(place=place, test=test, run=run, diagnosis=diagnosis)
    for path in sorted(target.glob("bench*.json")):
        bench = read_json(path, ("environment", "results"))
        grid = [[*RATES]]
        for one in bench["results"]:
            grid.append([cell.format(**one) for cell in RATES.values()])
        parts["speed"] += SPEED.format(name=path.name, rates=markdown(grid), **bench["environment"])
    return PAGE.format(
        about=note.read_text() if note.is_file() else "",
        findings=bullets(said(target)),
        results=asked,
        other=other,
        tuning=tuning(find(target / "tuning")),
        **parts,
    )
