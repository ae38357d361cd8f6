"""Arms × seeds → one table with intervals and costs, and conclusions in words computed from it."""
import csv
import math
from collections.abc import Mapping, Sequence
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from common.analysis.inputs import load_model
from common.analysis.scores import t_interval
from common.config import Runtime, difference
from common.data.sources import CLASSES
from common.files import Json, read_json, write_csv, write_json, write_text
from common.plots import VAL, new_figure
from common.study.cost import measure
from common.study.results import Run, markdown, read_run
from common.training.runtime import amp_dtype, pick_device
from common.words import number

REPORT_TOP1 = {
    "EfficientNetB2_Pretrained": 0.9381,
    "EfficientNetB2_NoPretrain": 0.8374,
    "EfficientNetB2_NoResize": 0.8599,
    "EfficientNetB2_NoLS": 0.9381,
    "EfficientNetB2_NoRE": 0.9293,
}
# What the table says of an arm, None where it is unknown → head of its column.
COLUMNS = {
    "arm": "arm",
    "n": "n",
    "top1": "test top-1 %",
    "std": "± std",
    "low": "from",
    "high": "to",
    "delta": "Δ points",
    "delta_low": "Δ from",
    "delta_high": "Δ to",
    "report_top1": "first study %",
    "report_delta": "its Δ",
    "train_memory_mb": "train MB",
    "inference_memory_mb": "infer MB",
    "latency_ms_1": "ms, batch 1",
    "latency_ms_n": "ms, batch N",
    "batch_n": "N",
    "parameters": "parameters",
}
# Decimals of those that are no shares.
DECIMALS = {"n": 0, "train_memory_mb": 0, "inference_memory_mb": 0, "latency_ms_1": 2,
            "latency_ms_n": 2, "batch_n": 0, "parameters": 0}
ABOUT = (
    "{source}; the control starts from {weights}; {recipe[head_epochs]} + {recipe[epochs]} epochs; "
    "{versions[hardware]}, torch {versions[torch]}.\n\n"
)
METHOD = (
    "Δ is paired by seed; intervals are Student-t, 95 %, over seeds; p is McNemar's exact test on "
    "the test images. Latency is the median after a warm-up, device idle before and after; memory "
    "is the peak of one training step and of one forward pass at the recipe's batch size, measured "
    "apart from the runs.\n\n"
)
CLAIMS = (
    "The first study's Δ is *confirmed* where the whole interval has its sign, or lies within a "
    "point of none where it saw none, *refuted* where the interval leaves it out, else *open*: one "
    "seed tells of a pair of networks, not of the recipe.\n\n"
)
CHART = "\n![Test accuracy of each arm and its difference to the control](ablation.png)\n"


def measure_cost(folder: Path, runtime: Runtime) -> None:
    """Write cost.json beside a finished run, unless it is there: memory and latency of its
    network."""
    target = folder / "cost.json"
    if target.is_file():
        return
    device = pick_device(runtime)
    model, card = load_model(folder / "best.pt", device)
    size = card["image_size"] * card["resize"]
    amp = amp_dtype(runtime, device, card["arch"]["name"])
    write_json(target, measure(model, (3, size, size), card["recipe"]["batch_size"], device, amp,
                               quick=runtime.smoke))


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided exact p of McNemar's test: how likely so uneven a split of `b + c`
    disagreements is by chance.

    Args:
        b, c: images that only the first, and only the second, of two classifiers gets right.
    """
    n = b + c
    tail = sum(math.comb(n, k) for k in range(min(b, c) + 1)) / 2**n
    return min(1.0, 2 * tail)


def verdict(low: float | None, high: float | None, claimed: float) -> str:
    """What a 95 % interval of a difference makes of the one that the first study claimed.

    `confirmed`: all of it has the claimed sign, or where no difference was claimed it stays within
    a point of none. `refuted`: it leaves the claimed one out. Else `open`, as without interval.
    """
    if low is None:
        return "open"
    if claimed and low * claimed > 0 and high * claimed > 0:
        return "confirmed"
    if not claimed and -0.01 < low <= 0 <= high < 0.01:
        return "confirmed"
    return "open" if low <= claimed <= high else "refuted"


def collect(study: Path, arms: Mapping[str, Json], seeds: Sequence[int], control: str) -> Json:
    """The table of all finished runs `<study>/<arm>-seed<seed>`, ready for JSON; accuracies
    are fractions. What stands in it of recipe, data and machine is the first control's own.

    Differences to the control are paired by seed. Intervals are Student-t, 95 %, over
    seeds; None with fewer than two.

    Args:
        arms: the fields that each changes, the control's first.
    """
    runs, gaps = {arm: {} for arm in arms}, {}
    for arm, seed in product(arms, seeds):
        folder = study / f"{arm}-seed{seed}"
        mark = Path(f"{folder}.FAILED")
        if mark.is_file():
            gaps[folder.name] = f"FAILED: {mark.read_text().strip()}"
        elif (folder / "result.json").is_file():
            runs[arm][seed] = read_run(folder)
        else:
            gaps[folder.name] = "not finished"
    found = [(arm, run) for arm in arms for run in runs[arm].values()]
    if not found:
        return {"rows": [], "gaps": gaps}
    first = found[0][1]
    unlike = {}
    for arm, run in found if runs[control] else ():
        if odd := difference(_facts(first) | arms[arm], _facts(run)):
            unlike[run.folder.name] = (f"differs from {first.folder.name} in more than its arm "
                                       f"({', '.join(odd)})")
    rows = [_row(arm, runs[arm], runs[control]) for arm in arms if runs[arm]]
    if all(_of_the_first_study(run) for _, run in found):
        for row in rows:
            row["report_top1"] = REPORT_TOP1[row["arm"]]
            row["report_delta"] = row["report_top1"] - REPORT_TOP1[control]
    return {
        "source": first.result["source"],
        "class_names": first.result.get("class_names"),
        "weights": first.result.get("weights"),
        "versions": first.result["versions"],
        "control": control,
        "recipe": first.recipe,
        "seeds": seeds,
        "rows": rows,
        "unlike": unlike,
        "gaps": gaps,
    }


def _facts(run: Run) -> Json:
    """What must be equal in all runs of one table, but for what an arm changes."""
    data = run.result.get("identity", run.result["source"])
    return run.recipe | {"seed": None, "data": data, "machine": run.machine}


def _of_the_first_study(run: Run) -> bool:
    """Whether a run was of its images: all of CIFAR-10."""
    # Older results do not say so: theirs are told by the names of their classes.
    named = run.result.get("class_names") == [*CLASSES]
    return run.result.get("is_cifar10", named) and not run.recipe["train_limit"]


def _row(arm: str, runs: Mapping[int, Run], base: Mapping[int, Run]) -> Json:
    """One arm's line of the table, from its runs and the control's by seed."""
    top1 = {seed: run.result["test_top1"] for seed, run in runs.items()}
    pairs = [seed for seed in runs if seed in base and runs is not base]
    deltas = [top1[seed] - base[seed].result["test_top1"] for seed in pairs]
    own, effect = t_interval([*top1.values()]), t_interval(deltas)
    first = runs[min(runs)]
    cost = first.folder / "cost.json"
    return {
        **dict.fromkeys(COLUMNS),
        "arm": arm,
        "n": len(runs),
        "top1_by_seed": top1,
        "top1": own["mean"], "std": own["std"], "low": own["low"], "high": own["high"],
        "delta": effect["mean"], "delta_std": effect["std"],
        "delta_low": effect["low"], "delta_high": effect["high"],
        "pairs": len(pairs),
        "only_right": _only_right(base[pairs[0]], runs[pairs[0]]) if len(pairs) == 1 else None,
        "parameters": first.result.get("parameters"),
        **(read_json(cost) if cost.is_file() else {}),
    }


def _only_right(*runs: Run) -> list[int] | None:
    """Test images that only the first, and only the second, of two runs gets right; None
    without both predictions."""
    right = []
    for run in runs:
        path = run.folder / "test_predictions.csv"
        if not path.is_file():
            return None
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.reader(file)
            right.append({name for name, label, prediction in lines if label == prediction})
    first, second = right
    return [len(first - second), len(second - first)]


def conclusions(table: Json) -> list[str]:
    """What the numbers of this table say, and no more; an effect needs an interval that
    leaves out 0."""
    words = []
    for row in table["rows"]:
        if row["delta"] is None:
            continue
        said = f"{row['arm'].removeprefix('EfficientNetB2_')}: {_effect(row)}."
        if row["report_delta"] is not None:
            outcome = verdict(row["delta_low"], row["delta_high"], row["report_delta"])
            said += f" First study {_cell('report_delta', row['report_delta'])}: {outcome}."
        words.append(said)
    return [*words, *map(": ".join, (table["unlike"] | table["gaps"]).items())]


def _effect(row: Json) -> str:
    """One arm's difference to the control, and what it shows."""
    low, high, pair = row["delta_low"], row["delta_high"], row["only_right"]
    points = f"{_cell('delta', row['delta'])} points"
    if low is not None:
        ends = f"{_cell('delta_low', low)} to {_cell('delta_high', high)}"
        shown = "no measurable effect" if low <= 0 <= high else "a measurable effect"
        return f"{points} (95 % interval {ends}, n = {row['pairs']}), {shown}"
    if pair is None:
        return f"{points}, one seed: no effect is claimed"
    p = mcnemar_exact(*pair)
    odds = f"p = {p:.3f}" if p >= 0.0005 else "p < 0.001"
    shown = "beyond chance" if p < 0.05 else "no more than by chance"
    return f"{points}, one seed: this pair of networks differs {shown} ({odds})"


def _cell(key: str, value: Any) -> str:
    """What the table shows of a column's value: shares in percent, a dash for None."""
    if value is None or key == "arm":
        return value or "–"
    if key in DECIMALS:
        return number(value, DECIMALS[key])
    return number(value * 100, sign="+" if "delta" in key else "")


def page(table: Json) -> str:
    """The table, without the columns that no arm fills, how it was measured, and its conclusions,
    as Markdown that a terminal shows as well."""
    columns = []
    for key, head in COLUMNS.items():
        cells = [_cell(key, row[key]) for row in table["rows"]]
        if {*cells} != {"–"}:
            columns.append([head, *cells])
    said = "".join(f"- {sentence}\n" for sentence in conclusions(table))
    claims = CLAIMS if table["rows"][0]["report_delta"] is not None else ""
    return f"{ABOUT.format(**table)}{markdown([*zip(*columns)])}\n{METHOD}{claims}{said}"


def write(table: Json, study: Path) -> None:
    """ablation.json, .csv, .md and .png in the study's folder."""
    write_json(study / "ablation.json", {**table, "conclusions": conclusions(table)})
    write_csv(study / "ablation.csv", [*COLUMNS], map(itemgetter(*COLUMNS), table["rows"]))
    chart(table["rows"], study / "ablation.png",
          f"What each arm costs: ablation {study.name} ({table['source']})")
    write_text(study / "ablation.md", page(table) + CHART)


def chart(rows: Sequence[Json], path: Path, title: str) -> None:
    """Save two panels of bars: test accuracy of each arm, and its difference to the control.

    Args:
        rows: with arm, top1, low, high, delta, delta_low, delta_high; fractions or None.
    """
    panels = {
        "test top-1 (%)": ("top1", "low", "high"),
        "difference to the control (points)": ("delta", "delta_low", "delta_high"),
    }
    names = [row["arm"].removeprefix("EfficientNetB2_") for row in rows]
    note = "Whiskers: 95 % Student-t intervals over seeds; a single seed has none."
    with new_figure(path, title, (9, 0.9 + 0.45 * len(rows)), note) as figure:
        for axes, (label, keys) in zip(figure.subplots(1, 2, sharey=True), panels.items()):
            # None, of what is unknown, becomes nan.
            value, low, high = 100 * np.array([[row[key] for row in rows] for key in keys], float)
            reach = np.nan_to_num([value - low, high - value])
            bars = axes.barh(names, value, 0.6, color=VAL, xerr=reach)
            axes.bar_label(bars, fmt=number, padding=4)
            axes.axvline(0, color="black", lw=0.8)
            axes.set(xlabel=label, xmargin=0.2)
            axes.grid(False, axis="y")
        axes.invert_yaxis()
