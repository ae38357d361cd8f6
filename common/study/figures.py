"""Figures of the whole study."""
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

from common.files import Json
from common.plots import VAL, new_figure
from common.study.found import Runs, of_row
from common.study.rows import ROWS
from common.words import number

NOTE = (
    "Dots: means over seeds, each a dash, of runs with all training images; where a row's own "
    "length was not run,\nof the nearest one, which the table names. Diamonds: the study made by "
    "hand that this one repeats;\nthose of SimpleCNN and SE-ResNet18 are val accuracies, the only "
    "ones it gave."
)


def ablation(rows: Sequence[Json], path: Path, title: str) -> None:
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


def study(found: Runs, path: Path) -> None:
    """Save a chart of each row's test accuracy beside the first study's.

    Of a row's runs on all training images those count that are nearest to its command.
    """
    lines = {row: own[0] for row in ROWS if (own := of_row(found, row)[0])}
    size = 8, 1.6 + 0.42 * len(lines)
    with new_figure(path, "CIFAR-10: what each step brings", size, NOTE) as figure:
        axes = figure.subplots()
        means, firsts = [], []
        for y, (row, runs) in enumerate(lines.items()):
            top1 = [100 * run.result["test_top1"] for run in runs]
            means.append(fmean(top1))
            firsts.append(float(re.search(r"[\d.]+|$", row.report)[0] or "nan"))
            axes.plot(top1, [y] * len(top1), "|", color=VAL, markersize=9)
            axes.text(means[y], y - 0.25, f"{means[y]:.2f}", ha="center", color=VAL)
        places = range(len(lines))
        axes.plot(means, places, "o", color=VAL, markersize=8, label="this study")
        axes.plot(firsts, places, "D", color="white", markeredgecolor="black", zorder=1.9,
                  label="the first study")
        names = [textwrap.fill(row.title, 30) for row in lines]
        axes.set(yticks=places, yticklabels=names, ylim=(len(lines) - 0.4, -0.8), xmargin=0.1,
                 xlabel="test top-1 (%)")
        axes.legend(loc="lower left")
