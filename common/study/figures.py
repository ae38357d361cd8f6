"""Figures of the whole study."""
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MultipleLocator

from common.files import Json
from common.plots import ACCENT, MUTED, TRAIN, VAL, new_figure
from common.study.found import Found, of_row
from common.study.rows import ROWS

COLORS = (MUTED, VAL, TRAIN, "#009E73", ACCENT, "#CC79A7", "#56B4E9", "#000000")
NOTE = (
    "Dots: means over seeds, each a dash, of runs with all training images. "
    "The first study was made by hand,\n"
    "and this one repeats it; its diamonds of SimpleCNN and SE-ResNet18 are val accuracies, "
    "the only ones it gave."
)


def ablation(rows: Sequence[Json], path: Path, title: str) -> None:
    """Save two panels of bars: test accuracy of each arm, and its difference to the control.

    Args:
        rows: with arm, top1, low, high, delta, delta_low, delta_high; fractions or None.
    """
    note = "Whiskers: 95 % Student-t intervals over seeds; a single seed has none."
    with new_figure(path, title, (9, 0.9 + 0.45 * len(rows)), note) as figure:
        accuracy, effect = figure.subplots(1, 2, sharey=True)
        for y, row in enumerate(rows):
            _bar(accuracy, y, row["top1"], row["low"], row["high"], "{:.2f}")
            if row["delta"] is not None:
                _bar(effect, y, row["delta"], row["delta_low"], row["delta_high"], "{:+.2f}")
        names = [row["arm"].removeprefix("EfficientNetB2_") for row in rows]
        accuracy.set(yticks=range(len(rows)), yticklabels=names, xlabel="test top-1 (%)")
        accuracy.invert_yaxis()
        effect.set(xlabel="difference to the control (points)")
        effect.axvline(0, color="black", lw=0.8)
        for axes in (accuracy, effect):
            axes.margins(x=0.2)
            axes.grid(axis="y", visible=False)


def _bar(axes: Axes, y: int, value: float, low: float | None, high: float | None,
         form: str) -> None:
    """One bar with its value, and its whisker where there is an interval, in percent."""
    whisker = None if low is None else [[100 * (value - low)], [100 * (high - value)]]
    colour = COLORS[y % len(COLORS)]
    bars = axes.barh(y, 100 * value, 0.6, color=colour, xerr=whisker, capsize=3)
    axes.bar_label(bars, [form.format(100 * value)], padding=4, fontsize=8)


def study(found: Sequence[Found], path: Path) -> None:
    """Save a chart of each row's test accuracy beside the first study's.

    Of a row's runs on all training images those count that are nearest to its command.
    """
    lines = {}
    for row in ROWS:
        own, _ = of_row(found, row)
        if own:
            lines[row] = own[0]
    height = 1.6 + 0.42 * len(lines)
    with new_figure(path, "CIFAR-10: what each step brings", (8, height), NOTE) as figure:
        axes = figure.subplots()
        for y, (row, runs) in enumerate(lines.items()):
            top1 = [100 * run.result["test_top1"] for run in runs]
            mean = sum(top1) / len(top1)
            axes.plot(top1, [y] * len(top1), "|", color=VAL, markersize=9)
            axes.plot(mean, y, "o", color=VAL, markersize=8, label="this study")
            axes.text(mean, y - 0.25, f"{mean:.2f}", ha="center", color=VAL)
            first = re.search(r"[\d.]+", row.report)
            if first:
                axes.plot(float(first[0]), y, "D", color="white", markeredgecolor="black",
                          zorder=1.9, label="the first study")
        names = [textwrap.fill(row.title, 30) for row in lines]
        axes.set(yticks=range(len(lines)), yticklabels=names, xlabel="test top-1 (%)")
        axes.set_ylim(len(lines) - 0.4, -0.8)
        axes.xaxis.set_major_locator(MultipleLocator(5))
        axes.margins(x=0.1)
        handles, labels = axes.get_legend_handles_labels()
        once = dict(zip(labels, handles))
        axes.legend(once.values(), once.keys(), loc="lower left")
