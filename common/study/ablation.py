"""Arms × seeds → one table with intervals and costs, and conclusions in words computed from it."""
import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from common.config import Runtime
from common.files import read_json, write_json, write_text
from common.metrics import t_interval, wilson_interval
from common.study.cost import measure
from common.study.figures import ablation
from common.training.run import load_model
from common.training.runtime import amp_dtype, pick_device

REPORT_TOP1 = {"EfficientNetB2_Pretrained": 0.9381, "EfficientNetB2_NoPretrain": 0.8374, "EfficientNetB2_NoResize": 0.8599,
               "EfficientNetB2_NoLS": 0.9381, "EfficientNetB2_NoRE": 0.9293}
COLUMNS = ("arm", "n", "top1", "std", "low", "high", "delta", "delta_low", "delta_high", "report_top1", "report_delta", "val_top1",
           "train_memory_mb", "inference_memory_mb", "latency_ms_1", "latency_ms_n", "batch_n", "parameters", "seconds")


def measure_cost(folder: Path, runtime: Runtime, quick: bool = False) -> None:
    """Write cost.json beside a finished run, unless it is there: parameters, memory and latency of its network."""
    if (folder / "cost.json").is_file():
        return
    device = pick_device(runtime)
    model, checkpoint = load_model(folder / "best.pt", device)
    size = checkpoint["image_size"] * checkpoint["resize"]
    write_json(folder / "cost.json", measure(model, (3, size, size), checkpoint["recipe"]["batch_size"], device,
                                                  amp_dtype=amp_dtype(runtime, device, checkpoint["arch"]["name"]), memory_format=torch.channels_last, quick=quick))


def collect(study: Path, arms: Sequence[str], seeds: Sequence[int], control: str) -> dict[str, Any]:
    """The table of all finished runs `<study>/<arm>-seed<seed>`, ready for JSON; accuracies are fractions.

    Differences to the control are paired by seed. Intervals are Student-t, 95 %, over seeds; None with fewer than two.
    """
    results: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in arms}
    missing, failed = [], {}
    for arm in arms:
        for seed in seeds:
            folder = study / f"{arm}-seed{seed}"
            if (folder / "result.json").is_file() and not (study / f"{folder.name}.FAILED").is_file():
                results[arm][seed] = read_json(folder / "result.json")
            elif (study / f"{folder.name}.FAILED").is_file():
                failed[folder.name] = (study / f"{folder.name}.FAILED").read_text().strip()
            else:
                missing.append(folder.name)
    rows = [_row(arm, results[arm], results.get(control, {}), study, control) for arm in arms if results[arm]]
    first = next((found for by_seed in results.values() for found in by_seed.values()), None)
    return {"control": control, "seeds": list(seeds), "source": first and first["source"], "class_names": first and first.get("class_names"), "versions": first and first["versions"], "rows": rows,
            "missing": missing, "failed": failed}


def _row(arm: str, by_seed: dict[int, dict[str, Any]], control: dict[int, dict[str, Any]], study: Path, name: str) -> dict[str, Any]:
    """One arm's line of the table."""
    top1 = [by_seed[seed]["test_top1"] for seed in sorted(by_seed)]
    deltas = [by_seed[seed]["test_top1"] - control[seed]["test_top1"] for seed in sorted(by_seed) if seed in control and arm != name]
    accuracy, delta = t_interval(top1), t_interval(deltas) if deltas else None
    one = next(iter(by_seed))
    costs = read_json(study / f"{arm}-seed{one}" / "cost.json") if (study / f"{arm}-seed{one}" / "cost.json").is_file() else None
    return {
        "arm": arm, "n": len(top1), "top1_by_seed": {str(seed): by_seed[seed]["test_top1"] for seed in sorted(by_seed)}, "top1": accuracy.mean,
        "std": _finite(accuracy.std), "low": _finite(accuracy.low), "high": _finite(accuracy.high),
        "delta": delta and delta.mean, "delta_low": delta and _finite(delta.low), "delta_high": delta and _finite(delta.high), "pairs": len(deltas),
        "test_images": by_seed[one]["test_images"], "report_top1": REPORT_TOP1.get(arm),
        "report_delta": REPORT_TOP1[arm] - REPORT_TOP1[name] if arm != name else None,
        "val_top1": sum(r["val_top1"] for r in by_seed.values()) / len(by_seed), "seconds": sum(r["wall_seconds"] for r in by_seed.values()),
        "parameters": by_seed[one]["parameters"], "cost": costs, **_cost_columns(costs),
    }


def _cost_columns(costs: dict[str, Any] | None) -> dict[str, Any]:
    """The table's figures of a cost.json: megabytes (10^6) allocated, and median milliseconds."""
    if costs is None:
        return dict.fromkeys(("train_memory_mb", "inference_memory_mb", "latency_ms_1", "latency_ms_n", "batch_n"))
    n = costs["batch_size"]
    return {"train_memory_mb": costs["train_memory"]["allocated"] / 1e6, "inference_memory_mb": costs["inference_memory"]["allocated"] / 1e6,
            "latency_ms_1": costs["latency_ms"]["1"]["p50"], "latency_ms_n": costs["latency_ms"][str(n)]["p50"], "batch_n": n}


def _finite(value: float) -> float | None:
    """None for nan and infinities, which JSON does not have."""
    return value if math.isfinite(value) else None


def conclusions(table: dict[str, Any]) -> list[str]:
    """What the numbers of this table say, and no more; an effect needs an interval that leaves out 0."""
    words = []
    effects = [row for row in table["rows"] if row["delta"] is not None]
    for row in sorted(effects, key=lambda row: row["delta"]):
        points, name = f"{row['delta'] * 100:+.2f} points", row["arm"].removeprefix("EfficientNetB2_")
        report = f" (the report: {row['report_delta'] * 100:+.2f})"
        if row["delta_low"] is None:
            low, high = wilson_interval(round(row["top1"] * row["test_images"]), row["test_images"])
            words.append(f"{name}: {points} against the control, a single seed, so no effect is claimed; the {row['test_images']:,} test images alone "
                         f"leave ±{(high - low) * 50:.2f} points on either figure{report}.")
        elif row["delta_low"] <= 0 <= row["delta_high"]:
            words.append(f"{name}: no measurable effect, {points} with a 95 % interval from {row['delta_low'] * 100:+.2f} to "
                         f"{row['delta_high'] * 100:+.2f} over {row['pairs']} seeds{report}.")
        else:
            words.append(f"{name}: {'costs' if row['delta'] < 0 else 'gains'} {abs(row['delta']) * 100:.2f} points, 95 % interval from "
                         f"{row['delta_low'] * 100:+.2f} to {row['delta_high'] * 100:+.2f} over {row['pairs']} seeds{report}.")
    memory = [row for row in table["rows"] if row["train_memory_mb"] is not None]
    if len(memory) > 1:
        low, high = (f(memory, key=lambda row: row["train_memory_mb"]) for f in (min, max))
        words.append(f"Memory of a training step lies between {low['train_memory_mb']:,.0f} MB ({low['arm']}) and {high['train_memory_mb']:,.0f} MB "
                     f"({high['arm']}).")
    words += [f"FAILED {name}: {reason}" for name, reason in table["failed"].items()]
    words += [f"missing: {', '.join(table['missing'])}"] if table["missing"] else []
    return words


def _percent(value: float | None, sign: str = "") -> str:
    """A fraction in percent with two digits, or a dash."""
    return "–" if value is None else f"{value * 100:{sign}.2f}"


def _cells(row: dict[str, Any]) -> list[str]:
    """One row of the table as text."""
    spread = f" ± {_percent(row['std'])}" if row["std"] is not None else " (single seed)"
    between = f" [{_percent(row['delta_low'], '+')}, {_percent(row['delta_high'], '+')}]" if row["delta_low"] is not None else ""
    costs = [f"{row[key]:,.{digits}f}" if row[key] is not None else "–"
             for key, digits in (("train_memory_mb", 0), ("inference_memory_mb", 0), ("latency_ms_1", 2), ("latency_ms_n", 2))]
    return [row["arm"], str(row["n"]), _percent(row["top1"]) + spread, _percent(row["delta"], "+") + between, _percent(row["report_top1"]),
            _percent(row["report_delta"], "+"), *costs, f"{row['parameters']:,}"]


def grid(table: dict[str, Any]) -> list[list[str]]:
    """Header and rows as text cells."""
    n = next((row["batch_n"] for row in table["rows"] if row["batch_n"]), "N")
    header = ["arm", "n", "test top-1 %", "Δ points", "report %", "report Δ", "train MB", "infer MB", "ms, batch 1", f"ms, batch {n}", "parameters"]
    return [header, *map(_cells, table["rows"])]


def text(table: dict[str, Any]) -> list[str]:
    """The table and its conclusions for a terminal."""
    cells = grid(table)
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))) for row in cells]
    return ["", lines[0], "-" * len(lines[0]), *lines[1:], "", *conclusions(table)]


def markdown(table: dict[str, Any]) -> str:
    """The table, how it was measured, and its conclusions, as Markdown."""
    cells, versions = grid(table), table["versions"] or {}
    lines = ["# Ablation", "", f"{table['source']}; seeds {', '.join(map(str, table['seeds']))}; {versions.get('hardware')}, torch {versions.get('torch')}, "
             f"commit {versions.get('git_commit')}.", "", "| " + " | ".join(cells[0]) + " |", "|---" + "|---:" * (len(cells[0]) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in cells[1:]]
    lines += ["", "Δ is paired by seed; intervals are Student-t, 95 %, over seeds. Latency is the median after a warm-up, device idle before and after; "
              "memory is the peak of one training step and of one forward pass at the recipe's batch size, measured apart from the runs.", ""]
    return "\n".join([*lines, *(f"- {sentence}" for sentence in conclusions(table)), ""])


def write(table: dict[str, Any], study: Path) -> None:
    """ablation.json, .csv, .md and .png in the study's folder."""
    write_json(study / "ablation.json", {**table, "conclusions": conclusions(table)})
    rows = io.StringIO()
    writer = csv.DictWriter(rows, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table["rows"])
    write_text(study / "ablation.csv", rows.getvalue())
    write_text(study / "ablation.md", markdown(table))
    if table["rows"]:
        ablation(table["rows"], _curves(table, study), study / "ablation.png", f"Ablation ({table['source']})")


def _curves(table: dict[str, Any], study: Path) -> dict[str, list[float]]:
    """Val top-1 by epoch of each arm, averaged over the seeds that got so far."""
    curves = {}
    for row in table["rows"]:
        runs = [[float(line["val_top1"]) for line in csv.DictReader((study / f"{row['arm']}-seed{seed}" / "history.csv").open())]
                for seed in row["top1_by_seed"]]
        curves[row["arm"]] = [sum(values) / len(values) for values in
                              ([run[i] for run in runs if i < len(run)] for i in range(max(map(len, runs))))]
    return curves


def best_checkpoint(table: dict[str, Any], study: Path) -> Path | None:
    """best.pt of the run with the highest val top-1; test plays no part in the choice."""
    folders = [study / f"{row['arm']}-seed{seed}" for row in table["rows"] for seed in row["top1_by_seed"]]
    return max(folders, key=lambda folder: read_json(folder / "result.json")["val_top1"]) / "best.pt" if folders else None
