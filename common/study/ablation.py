"""Arms × seeds → one table with intervals and costs, and conclusions in words computed from it."""
import math
from collections.abc import Sequence
from pathlib import Path

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
# Numbers of an arm, None where unknown: key → head of its column, factor, digits, sign.
COLUMNS = {
    "n": ("n", 1, 0, ""),
    "top1": ("test top-1 %", 100, 2, ""),
    "std": ("± std", 100, 2, ""),
    "low": ("from", 100, 2, ""),
    "high": ("to", 100, 2, ""),
    "delta": ("Δ points", 100, 2, "+"),
    "delta_low": ("Δ from", 100, 2, "+"),
    "delta_high": ("Δ to", 100, 2, "+"),
    "report_top1": ("first study %", 100, 2, ""),
    "report_delta": ("its Δ", 100, 2, "+"),
    "train_memory_mb": ("train MB", 1, 0, ""),
    "inference_memory_mb": ("infer MB", 1, 0, ""),
    "latency_ms_1": ("ms, batch 1", 1, 2, ""),
    "latency_ms_n": ("ms, batch N", 1, 2, ""),
    "batch_n": ("N", 1, 0, ""),
    "parameters": ("parameters", 1, 0, ""),
}
METHOD = (
    "Δ is paired by seed; intervals are Student-t, 95 %, over seeds. Latency is the median after a "
    "warm-up, device idle before and after; memory is the peak of one training step and of one "
    "forward pass at the recipe's batch size, measured apart from the runs."
)


def measure_cost(folder: Path, runtime: Runtime, quick: bool = False) -> None:
    """Write cost.json beside a finished run, unless it is there: memory and latency of its
    network."""
    if (folder / "cost.json").is_file():
        return
    device = pick_device(runtime)
    model, card = load_model(folder / "best.pt", device)
    size = card["image_size"] * card["resize"]
    amp = amp_dtype(runtime, device, card["arch"]["name"])
    costs = measure(model, (3, size, size), card["recipe"]["batch_size"], device, amp, quick)
    write_json(folder / "cost.json", costs)


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
    results: Json = {}  # arm → seed → content of result.json
    gaps = {}
    for arm in arms:
        for seed in seeds:
            folder = study / f"{arm}-seed{seed}"
            mark = failure_mark(folder)
            if mark.is_file():
                gaps[folder.name] = f"FAILED: {mark.read_text().strip()}"
            elif (folder / "result.json").is_file():
                result = read_json(folder / "result.json", ("test_top1",))
                results.setdefault(arm, {})[seed] = result
            else:
                gaps[folder.name] = "missing"
    rows = [_row(study, arm, control, results) for arm in results]
    # The first study trained on all of CIFAR-10.
    if not recipe["train_limit"] and not recipe["synthetic"]:
        for row in rows:
            row["report_top1"] = REPORT_TOP1[row["arm"]]
            row["report_delta"] = REPORT_TOP1[row["arm"]] - REPORT_TOP1[control]
    first = next((run for runs in results.values() for run in runs.values()), {})
    about = {key: first.get(key) for key in ("source", "class_names", "weights", "versions")}
    return {
        "control": control,
        "recipe": recipe,
        **about,
        "seeds": list(seeds),
        "rows": rows,
        "gaps": gaps,
    }


def _row(study: Path, arm: str, control: str, results: Json) -> Json:
    """One arm's line of the table."""
    runs, base = results[arm], results.get(control, {})
    top1 = {seed: run["test_top1"] for seed, run in runs.items()}
    pairs = [seed for seed in runs if seed in base and arm != control]
    deltas = [top1[seed] - base[seed]["test_top1"] for seed in pairs]
    seed, one = next(iter(runs.items()))
    folder = study / f"{arm}-seed{seed}"
    row = dict.fromkeys(COLUMNS) | {"arm": arm, "n": len(runs), "top1_by_seed": top1}
    row |= _interval(("top1", "std", "low", "high"), list(top1.values()))
    row |= _interval(("delta", "delta_std", "delta_low", "delta_high"), deltas)
    if (folder / "cost.json").is_file():
        row |= read_json(folder / "cost.json")
    row["only_right"] = None
    if len(pairs) == 1:
        row["only_right"] = _only_right(study / f"{control}-seed{seed}", folder)
    row["parameters"] = one["parameters"]
    return row


def _interval(names: Sequence[str], values: Sequence[float]) -> Json:
    """Mean, standard deviation and the interval's ends under `names`; None for what too few
    values cannot give."""
    found = t_interval(values) if values else [math.nan] * 4
    return {name: value if math.isfinite(value) else None for name, value in zip(names, found)}


def _only_right(*folders: Path) -> list[int] | None:
    """Test images that only the first, and only the second, of two runs gets right; None
    without both predictions."""
    right = []
    for folder in folders:
        path = folder / "test_predictions.csv"
        if not path.is_file():
            return None
        lines = tables.read_csv(path)
        right.append({line["name"] for line in lines if line["prediction"] == line["label"]})
    first, second = right
    return [len(first - second), len(second - first)]


def conclusions(table: Json) -> list[str]:
    """What the numbers of this table say, and no more; an effect needs an interval that
    leaves out 0."""
    words = []
    effects = [row for row in table["rows"] if row["delta"] is not None]
    for row in sorted(effects, key=lambda row: row["delta"]):
        name = row["arm"].removeprefix("EfficientNetB2_")
        words.append(f"{name}: {_effect(row)}{_report(row)}.")
    if effects and not learned(table):
        words.append("No arm does much better than guessing: the runs are too short to compare.")
    return [*words, *(f"{name}: {why}" for name, why in table["gaps"].items())]


def _effect(row: Json) -> str:
    """One arm's difference to the control, and what it shows."""
    points = f"{_points(row['delta'])} points against the control"
    if row["delta_low"] is not None:
        ends = f"{_points(row['delta_low'])} to {_points(row['delta_high'])}"
        interval = f"95 % interval from {ends} over {count(row['n'], 'seed')}"
        if row["delta_low"] <= 0 <= row["delta_high"]:
            return f"no measurable effect, {points}, {interval}"
        verb = "costs" if row["delta"] < 0 else "gains"
        return f"{verb} {number(abs(row['delta']) * 100)} points, {interval}"
    if row["only_right"] is None:
        return f"{points}, a single seed, so no effect is claimed"
    control, arm = row["only_right"]
    p = mcnemar_exact(control, arm)
    odds = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    verdict = "beyond chance" if p < 0.05 else "no more than by chance"
    return (
        f"{points}; on the test images this pair of networks differs {verdict} "
        f"({count(control, 'image')} only the control gets right, {arm:,} only this network; "
        f"McNemar's exact test, {odds}), but a single seed cannot tell what the recipe does"
    )


def _report(row: Json) -> str:
    """The first study's difference in brackets, where there is one to compare with."""
    if row["report_delta"] is None:
        return ""
    return f" (the first study: {_points(row['report_delta'])})"


def _points(share: float) -> str:
    """A difference of fractions in points."""
    return number(share * 100, 2, "+")


def learned(table: Json) -> bool:
    """Whether some arm is right at least half as often again as guessing is: below that a
    chart shows noise."""
    best = max((row["top1"] for row in table["rows"]), default=0)
    return best * len(table["class_names"] or REPORT_TOP1) > 1.5


def grid(table: Json) -> list[list[str]]:
    """Header and rows as text cells, without the columns that no arm fills."""
    rows = table["rows"]
    shown = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    lines = [["arm", *(COLUMNS[key][0] for key in shown)]]
    for row in rows:
        lines.append([row["arm"], *(_cell(row.get(key), *COLUMNS[key][1:]) for key in shown)])
    return lines


def _cell(value: float | None, factor: int, digits: int, sign: str) -> str:
    """One number of the table, or a dash."""
    return "–" if value is None else number(value * factor, digits, sign)


def markdown(table: Json) -> str:
    """The table, how it was measured, and its conclusions, as Markdown that a terminal
    shows as well."""
    versions = table["versions"] or {}
    start = table["weights"] or "pretrained weights"
    about = (f"{table['source']}; the control starts from {start}; {versions.get('hardware')}, "
             f"torch {versions.get('torch')}, commit {versions.get('git_commit')}.")
    said = "\n".join(f"- {sentence}" for sentence in conclusions(table))
    return f"{about}\n\n{tables.markdown(grid(table))}\n{METHOD}\n\n{said}\n"


def write(table: Json, study: Path) -> None:
    """ablation.json, .csv and .md in the study's folder, and .png where an arm has learned
    something."""
    write_json(study / "ablation.json", {**table, "conclusions": conclusions(table)})
    columns = ["arm", *COLUMNS]
    rows = [[row.get(key) for key in columns] for row in table["rows"]]
    write_csv(study / "ablation.csv", columns, rows)
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
