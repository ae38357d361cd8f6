"""Arms × seeds → one table with intervals and costs, and conclusions in words computed from it."""
import math
from collections.abc import Sequence
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import Any

from common.config import Runtime
from common.files import Json, read_json, write_csv, write_json, write_text
from common.metrics import t_interval
from common.study import figures, tables
from common.study.arms import failure_mark
from common.study.cost import measure
from common.training.run import load_model
from common.training.runtime import amp_dtype, pick_device
from common.words import count, number

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
WHOLE = ("n", "train_memory_mb", "inference_memory_mb", "batch_n", "parameters")
ABOUT = (
    "{source}; the control starts from {weights}; {recipe[head_epochs]} + {recipe[epochs]} epochs; "
    "{versions[hardware]}, torch {versions[torch]}, commit {versions[git_commit]}.\n\n"
)
METHOD = (
    "Δ is paired by seed; intervals are Student-t, 95 %, over seeds. Latency is the median after a "
    "warm-up, device idle before and after; memory is the peak of one training step and of one "
    "forward pass at the recipe's batch size, measured apart from the runs."
)


def measure_cost(folder: Path, runtime: Runtime, quick: bool) -> None:
    """Write cost.json beside a finished run, unless it is there: memory and latency of its
    network."""
    target = folder / "cost.json"
    if target.is_file():
        return
    device = pick_device(runtime)
    model, card = load_model(folder / "best.pt", device)
    size = card["image_size"] * card["resize"]
    amp = amp_dtype(runtime, device, card["arch"]["name"])
    costs = measure(model, (3, size, size), card["recipe"]["batch_size"], device, amp, quick)
    write_json(target, costs)


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided exact p of McNemar's test: how likely so uneven a split of `b + c`
    disagreements is by chance.

    Args:
        b, c: images that only the first, and only the second, of two classifiers gets right.
    """
    n = b + c
    tail = sum(math.comb(n, k) for k in range(min(b, c) + 1)) / 2**n
    return min(1.0, 2 * tail)


def collect(
    study: Path, arms: Sequence[str], seeds: Sequence[int], control: str, recipe: Json
) -> Json:
    """The table of all finished runs `<study>/<arm>-seed<seed>`, ready for JSON; accuracies
    are fractions.

    Differences to the control are paired by seed. Intervals are Student-t, 95 %, over
    seeds; None with fewer than two.

    Args:
        recipe: every field of the control's.
    """
    results = {arm: {} for arm in arms}  # arm → seed → result.json and its folder
    gaps = {}
    for arm, seed in product(arms, seeds):
        folder = study / f"{arm}-seed{seed}"
        mark, result = failure_mark(folder), folder / "result.json"
        if mark.is_file():
            gaps[folder.name] = f"FAILED: {mark.read_text().strip()}"
        elif result.is_file():
            results[arm][seed] = read_json(result, ("test_top1",)) | {"folder": folder}
        else:
            gaps[folder.name] = "missing"
    rows = [_row(arm, control, results) for arm in arms if results[arm]]
    # The first study trained on all of CIFAR-10.
    if not recipe["train_limit"] and not recipe["synthetic"]:
        for row in rows:
            row["report_top1"] = REPORT_TOP1[row["arm"]]
            row["report_delta"] = row["report_top1"] - REPORT_TOP1[control]
    first = next((run for runs in results.values() for run in runs.values()), {})
    versions = dict.fromkeys(("hardware", "torch", "git_commit")) | first.get("versions", {})
    return {key: first.get(key) for key in ("source", "class_names", "weights")} | {
        "versions": versions, "control": control, "recipe": recipe, "seeds": seeds, "rows": rows,
        "gaps": gaps,
    }  # fmt: skip


def _row(arm: str, control: str, results: Json) -> Json:
    """One arm's line of the table."""
    runs, base = results[arm], results[control]
    top1 = {seed: run["test_top1"] for seed, run in runs.items()}
    pairs = [seed for seed in runs if seed in base and arm != control]
    deltas = [top1[seed] - base[seed]["test_top1"] for seed in pairs]
    first = runs[min(runs)]
    cost = first["folder"] / "cost.json"
    return {
        **dict.fromkeys(COLUMNS),
        "arm": arm,
        "n": len(runs),
        "top1_by_seed": top1,
        **dict(zip(("top1", "std", "low", "high"), t_interval([*top1.values()]))),
        **dict(zip(("delta", "delta_std", "delta_low", "delta_high"), t_interval(deltas))),
        "only_right": _only_right(base[pairs[0]], runs[pairs[0]]) if len(pairs) == 1 else None,
        "parameters": first["parameters"],
        **(read_json(cost) if cost.is_file() else {}),
    }


def _only_right(*runs: Json) -> list[int] | None:
    """Test images that only the first, and only the second, of two runs gets right; None
    without both predictions."""
    try:
        tests = [tables.read_csv(run["folder"] / "test_predictions.csv") for run in runs]
    except FileNotFoundError:
        return None
    first, second = (
        {line["name"] for line in lines if line["prediction"] == line["label"]} for lines in tests
    )
    return [len(first - second), len(second - first)]


def conclusions(table: Json) -> list[str]:
    """What the numbers of this table say, and no more; an effect needs an interval that
    leaves out 0."""
    words = []
    effects = [row for row in table["rows"] if row["delta"] is not None]
    for row in sorted(effects, key=itemgetter("delta")):
        said = f"{row['arm'].removeprefix('EfficientNetB2_')}: {_effect(row)}"
        if row["report_delta"] is not None:
            said += f" (the first study: {_cell('report_delta', row['report_delta'])})"
        words.append(f"{said}.")
    if effects and not learned(table):
        words.append("No arm does much better than guessing: the runs are too short to compare.")
    return [*words, *map(": ".join, table["gaps"].items())]


def _effect(row: Json) -> str:
    """One arm's difference to the control, and what it shows."""
    low, high, pair = row["delta_low"], row["delta_high"], row["only_right"]
    shown = {key: _cell(key, row[key]) for key in COLUMNS}
    points = "{delta} points against the control".format(**shown)
    interval = "95 % interval from {delta_low} to {delta_high} over {n} seeds".format(**shown)
    if low is not None:
        if low <= 0 <= high:
            return f"no measurable effect, {points}, {interval}"
        return f"{'costs' if high < 0 else 'gains'} {shown['delta'][1:]} points, {interval}"
    if pair is None:
        return f"{points}, a single seed, so no effect is claimed"
    p = mcnemar_exact(*pair)
    odds = f"p = {p:.3f}".replace("= 0.000", "< 0.001")  # three decimals show no less
    verdict = "beyond chance" if p < 0.05 else "no more than by chance"
    return (
        f"{points}; on the test images this pair of networks differs {verdict} "
        f"({count(pair[0], 'image')} only the control gets right, {pair[1]:,} only this network; "
        f"McNemar's exact test, {odds}), but a single seed cannot tell what the recipe does"
    )


def learned(table: Json) -> bool:
    """Whether some arm is right at least half as often again as guessing is: below that a
    chart shows noise."""
    return any(len(table["class_names"]) * row["top1"] > 1.5 for row in table["rows"])


def grid(table: Json) -> list[tuple[str, ...]]:
    """Header and rows as text cells, without the columns that no arm fills."""
    columns = []
    for key, head in COLUMNS.items():
        cells = [_cell(key, row.get(key)) for row in table["rows"]]
        if set(cells) != {"–"}:
            columns.append([head, *cells])
    return list(zip(*columns))


def _cell(key: str, value: Any) -> str:
    """What the table shows of a column's value: shares in percent, a dash for None."""
    if value is None or key == "arm":
        return value or "–"
    if key in WHOLE:
        return number(value, 0)
    if key.startswith("latency"):
        return number(value)
    return number(value * 100, sign="+" if "delta" in key else "")


def markdown(table: Json) -> str:
    """The table, how it was measured, and its conclusions, as Markdown that a terminal
    shows as well."""
    numbers, said = tables.markdown(grid(table)), tables.bullets(conclusions(table))
    return f"{ABOUT.format(**table)}{numbers}\n{METHOD}\n\n{said}"


def write(table: Json, study: Path) -> None:
    """ablation.json, .csv and .md in the study's folder, and .png where an arm has learned
    something."""
    write_json(study / "ablation.json", {**table, "conclusions": conclusions(table)})
    write_csv(study / "ablation.csv", [*COLUMNS], map(itemgetter(*COLUMNS), table["rows"]))
    text = markdown(table)
    if learned(table):
        text += "\n![Test accuracy of each arm and its difference to the control](ablation.png)\n"
        title = f"What each arm costs: ablation {study.name} ({table['source']})"
        figures.ablation(table["rows"], study / "ablation.png", title)
    write_text(study / "ablation.md", text)


def best_checkpoint(study: Path) -> Path | None:
    """best.pt of the run with the highest val top-1; test plays no part in the choice."""
    runs = sorted(study.glob("*-seed*/result.json"))
    best = max(runs, key=lambda path: read_json(path, ("val_top1",))["val_top1"], default=None)
    return best and best.with_name("best.pt")
