"""Figures of the whole study."""
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from common.plots import ACCENT, MUTED, TRAIN, VAL, new_figure
from common.training.curves import _line


def ablation(rows: Sequence[Mapping[str, object]], curves: Mapping[str, Sequence[float]], path: str | Path, title: str) -> None:
    """Saves three panels: accuracy of each arm, its difference to the control, and the val curves.

    Args:
        rows: with arm, top1, low, high, delta, delta_low, delta_high (fractions; None where unknown) and n.
        curves: arm → val top-1 by epoch.
    """
    colors = dict(zip((row["arm"] for row in rows), (MUTED, VAL, TRAIN, "#009E73", ACCENT, "#CC79A7")))
    names = [str(row["arm"]).removeprefix("EfficientNetB2_") for row in rows]
    note = "Whiskers: 95 % Student-t intervals over seeds." if rows[0]["low"] is not None else "A single seed: no interval over seeds."
    with new_figure(path, title, (12, 3.8), note) as figure:
        accuracy, effect, epochs = figure.subplots(1, 3, width_ratios=(1, 1, 1.2))
        for axes, keys, label in ((accuracy, ("top1", "low", "high"), "test top-1 (%)"), (effect, ("delta", "delta_low", "delta_high"), "Δ to control (points)")):
            for y, row in enumerate(rows):
                value, low, high = (None if row[key] is None else 100 * row[key] for key in keys)
                if value is None:
                    axes.text(0, y, " control", va="center", color=MUTED, fontsize=8)
                    continue
                whiskers = None if low is None else [[value - low], [high - value]]
                axes.barh(y, value, 0.62, color=colors[row["arm"]], xerr=whiskers, error_kw={"capsize": 3, "lw": 1.2})
                if axes is accuracy:
                    axes.annotate(f"{value:.2f}", (0, y), (5, 0), textcoords="offset points", va="center", color="white", fontsize=8, fontweight="bold")
                else:
                    end, side = (high if high is not None else value, 1) if value >= 0 else (low if low is not None else value, -1)
                    axes.annotate(f"{value:+.2f}", (end, y), (6 * side, 0), textcoords="offset points", va="center", fontsize=8,
                                  ha="left" if side > 0 else "right")
            axes.set(yticks=range(len(rows)), yticklabels=names if axes is accuracy else [], xlabel=label, ylim=(len(rows) - 0.5, -0.5))
            axes.grid(axis="y", visible=False)
        effect.axvline(0, color="black", lw=0.8)
        effect.margins(x=0.22)
        for arm, values in curves.items():
            epochs.plot(range(1, len(values) + 1), [100 * v for v in values], _line(len(values)), color=colors[arm], label=str(arm).removeprefix("EfficientNetB2_"))
        epochs.set(xlabel="epoch (both stages)", ylabel="val top-1 (%)")
        epochs.xaxis.set_major_locator(MaxNLocator(integer=True))
        epochs.legend(fontsize=8)


def study(rows: Sequence[Mapping[str, object]], path: str | Path, note: str) -> None:
    """Saves two panels: each row's test accuracy (a dot) beside the report's, and its val accuracy by epoch.

    Args:
        rows: with name, top1, std (percent), report (percent or None) and curve (val percent by epoch).
    """
    colors = (MUTED, VAL, TRAIN, "#009E73", ACCENT, "#CC79A7", "#56B4E9", "black")
    with new_figure(path, "CIFAR-10: what each step brings", (11, 1.9 + 0.34 * len(rows)), note) as figure:
        accuracy, epochs = figure.subplots(1, 2, width_ratios=(1, 1.1))
        for y, row in enumerate(rows):
            color = colors[y % len(colors)]
            accuracy.errorbar(row["top1"], y, xerr=row["std"] or None, fmt="o", color=color, markersize=8, capsize=3)
            accuracy.annotate(f"{row['top1']:.2f}", (row["top1"], y), (0, 7), textcoords="offset points", ha="center", color=color, fontweight="bold", fontsize=8)
            if row["report"] is not None:
                accuracy.plot(row["report"], y, "D", color="white", markeredgecolor="black", markersize=5.5, zorder=1.9)
            epochs.plot(range(1, len(row["curve"]) + 1), row["curve"], _line(len(row["curve"])), color=color, label=row["name"])
        accuracy.plot([], [], "o", color="black", markersize=8, label="ours")
        accuracy.plot([], [], "D", color="white", markeredgecolor="black", markersize=5.5, label="the report")
        accuracy.set(yticks=range(len(rows)), yticklabels=[row["name"] for row in rows], xlabel="top-1 (%)", ylim=(len(rows) - 0.4, -0.7))
        accuracy.margins(x=0.12)
        accuracy.legend(loc="lower left")
        accuracy.set_title("test accuracy")
        epochs.set(xlabel="epoch", ylabel="val top-1 (%)", title="val accuracy while training")
        epochs.xaxis.set_major_locator(MaxNLocator(integer=True))
        epochs.legend(fontsize=8, loc="lower right")


def size_curve(points: Sequence[Mapping[str, object]], path: str | Path) -> None:
    """Saves two panels against the input size: test accuracy, and training time.

    Args:
        points: with weights (the name of a line), px, top1 and std (percent), and seconds.
    """
    with new_figure(path, "EfficientNet-B2 by input size", (8.5, 3.6), "Whiskers: standard deviation over seeds.") as figure:
        accuracy, cost = figure.subplots(1, 2)
        for color, weights in zip((VAL, TRAIN), dict.fromkeys(point["weights"] for point in points)):
            mine = sorted((point for point in points if point["weights"] == weights), key=lambda point: point["px"])
            x, y, spread, seconds = ([point[key] for point in mine] for key in ("px", "top1", "std", "seconds"))
            accuracy.errorbar(x, y, spread, fmt="o-", color=color, capsize=3, label=weights)
            cost.plot(x, seconds, "o-", color=color, label=weights)
        accuracy.set(xlabel="input size (px)", ylabel="test top-1 (%)")
        cost.set(xlabel="input size (px)", ylabel="training time (s)")
        cost.set_ylim(bottom=0)
        for axes in (accuracy, cost):
            axes.set_xticks(sorted({point["px"] for point in points}))
        accuracy.legend(fontsize=8)
