"""The figure of an ablation."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.files import Json
from common.plots import VAL, new_figure
from common.words import number


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
