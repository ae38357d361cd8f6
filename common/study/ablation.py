"""Arms × seeds → one table with intervals and costs, and conclusions in words computed from it."""
import csv
import math
from collections.abc import Mapping, Sequence
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import Any

from common.config import Runtime, difference
from common.data.sources import CLASSES
from common.files import Json, read_json, write_csv, write_json, write_text
from common.metrics import t_interval
from common.study import figures
from common.study.arms import failure_mark
from common.study.cost import measure
from common.study.results import Run, markdown, read_run, weights
from common.training.run import load_model
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
WHOLE = ("n", "train_memory_mb", "inference_memory_mb", "batch_n", "parameters")
ABOUT = (
    "{source}; the control starts from {weights}; {recipe[head_epochs]} + {recipe[epochs]} epochs; "
    "{versions[hardware]}, torch {versions[torch]}, commit {commit}.\n\n"
)
METHOD = (
    "Δ is paired by seed; intervals are Student-t, 95 %, over seeds; p is McNemar's exact test on "
    "the test images. Latency is the median after a warm-up, device idle before and after; memory "
    "is the peak of one training step and of one forward pass at the recipe's batch size, measured "
    "apart from the runs.\n"
)
CLAIMS = (
    "The first study's Δ is *confirmed* where the whole interval has its sign, or lies within a "
    "point of none where it saw none, *refuted* where the interval leaves it out, else *open*: one "
    "seed tells of a pair of networks, not of the recipe.\n"
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


def is_cifar10(result: Json) -> bool:
    """Whether a run was of CIFAR-10; results that do not say so are told by source and classes."""
    # Results older than the list of names had ten classes only of CIFAR-10.
    named = tuple(result.get("class_names", CLASSES)) == CLASSES
    return result.get("is_cifar10", named and result["source"] != "synthetic")


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
        if failure_mark(folder).is_file():
            gaps[folder.name] = f"FAILED: {failure_mark(folder).read_text().strip()}"
        elif (folder / "result.json").is_file():
            runs[arm][seed] = read_run(folder)
        else:
            gaps[folder.name] = "not finished" if folder.is_dir() else "missing"
    found = [(arm, run) for arm in arms for run in runs[arm].values()]
    if not found:
        return {"rows": [], "gaps": gaps}
    rows = [_row(arm, control, runs) for arm in arms if runs[arm]]
    # The first study trained on all of CIFAR-10.
    if all(is_cifar10(run.result) and not run.recipe["train_limit"] for _, run in found):
        for row in rows:
            row["report_top1"] = REPORT_TOP1[row["arm"]]
            row["report_delta"] = row["report_top1"] - REPORT_TOP1[control]
    first = found[0][1]
    return {
        "source": first.result["source"],
        "class_names": first.result.get("class_names", CLASSES),
        "weights": first.result.get("weights") or weights(first.recipe),
        "versions": first.result["versions"],
        "control": control,
        "recipe": first.recipe,
        "seeds": seeds,
        "rows": rows,
        "unlike": _unlike(found, arms),
        "gaps": gaps,
    }


def _unlike(found: Sequence[tuple[str, Run]], arms: Mapping[str, Json]) -> dict[str, str]:
    """Run → how it differs from the first one in more than its arm and its seed."""
    (first_arm, first), *others = found
    unlike = {}
    for arm, run in others:
        own = arms[first_arm] | arms[arm]
        odd = difference(_facts(first) | own, _facts(run) | own)
        if odd:
            unlike[run.folder.name] = (f"differs from {first.folder.name} in more than its arm "
                                       f"({', '.join(odd)})")
    return unlike


def _facts(run: Run) -> Json:
    """What must be equal in all runs of one table."""
    data = run.result.get("identity", run.result["source"])
    return run.recipe | {"seed": None, "data": data, "machine": run.machine}


def _row(arm: str, control: str, results: Mapping[str, dict[int, Run]]) -> Json:
    """One arm's line of the table."""
    runs, base = results[arm], results[control]
    top1 = {seed: run.result["test_top1"] for seed, run in runs.items()}
    pairs = [seed for seed in runs if seed in base and arm != control]
    deltas = [top1[seed] - base[seed].result["test_top1"] for seed in pairs]
    first = runs[min(runs)]
    cost = first.folder / "cost.json"
    return {
        **dict.fromkeys(COLUMNS),
        "arm": arm,
        "n": len(runs),
        "top1_by_seed": top1,
        **dict(zip(("top1", "std", "low", "high"), t_interval([*top1.values()]))),
        **dict(zip(("delta", "delta_std", "delta_low", "delta_high"), t_interval(deltas))),
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
            lines = csv.DictReader(file)
            right.append({line["name"] for line in lines if line["prediction"] == line["label"]})
    first, second = right
    return [len(first - second), len(second - first)]


def conclusions(table: Json) -> list[str]:
    """What the numbers of this table say, and no more; an effect needs an interval that
    leaves out 0."""
    words = []
    effects = [row for row in table["rows"] if row["delta"] is not None]
    for row in sorted(effects, key=itemgetter("delta")):
        said = f"{row['arm'].removeprefix('EfficientNetB2_')}: {_effect(row)}."
        if row["report_delta"] is not None:
            outcome = verdict(row["delta_low"], row["delta_high"], row["report_delta"])
            said += f" First study {_cell('report_delta', row['report_delta'])}: {outcome}."
        words.append(said)
    if effects and not learned(table):
        words.append("No arm does much better than guessing: the runs are too short to compare.")
    return [*words, *map(": ".join, (table["unlike"] | table["gaps"]).items())]


def _effect(row: Json) -> str:
    """One arm's difference to the control, and what it shows."""
    low, high, pair = row["delta_low"], row["delta_high"], row["only_right"]
    points = f"{_cell('delta', row['delta'])} points"
    if low is not None:
        ends = f"{_cell('delta_low', low)} to {_cell('delta_high', high)}"
        shown = "no measurable effect" if low <= 0 <= high else "lower" if high < 0 else "higher"
        return f"{points} (95 % interval {ends}, n = {row['pairs']}), {shown}"
    if pair is None:
        return f"{points}, one seed: no effect is claimed"
    p = mcnemar_exact(*pair)
    odds = f"p = {p:.3f}" if p >= 0.0005 else "p < 0.001"
    shown = "beyond chance" if p < 0.05 else "no more than by chance"
    return f"{points}, one seed: this pair of networks differs {shown} ({odds})"


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


def page(table: Json) -> str:
    """The table, how it was measured, and its conclusions, as Markdown that a terminal
    shows as well."""
    said = "".join(f"- {sentence}\n" for sentence in conclusions(table))
    claims = CLAIMS if any(row["report_delta"] is not None for row in table["rows"]) else ""
    about = ABOUT.format(**table, commit=table["versions"].get("git_commit") or "unknown")
    return f"{about}{markdown(grid(table))}\n{METHOD}{claims}\n{said}"


def write(table: Json, study: Path) -> None:
    """ablation.json, .csv and .md in the study's folder, and .png where an arm has learned
    something."""
    write_json(study / "ablation.json", {**table, "conclusions": conclusions(table)})
    write_csv(study / "ablation.csv", [*COLUMNS], map(itemgetter(*COLUMNS), table["rows"]))
    text = page(table)
    if learned(table):
        text += "\n![Test accuracy of each arm and its difference to the control](ablation.png)\n"
        title = f"What each arm costs: ablation {study.name} ({table['source']})"
        figures.ablation(table["rows"], study / "ablation.png", title)
    write_text(study / "ablation.md", text)


def best_checkpoint(study: Path) -> Path | None:
    """best.pt of the run with the highest val top-1, of those that have one; test plays no part
    in the choice."""
    runs = [path for path in sorted(study.glob("*-seed*/best.pt"))
            if path.with_name("result.json").is_file()]
    return max(runs, default=None,
               key=lambda path: read_run(path.parent).result["val_top1"])
