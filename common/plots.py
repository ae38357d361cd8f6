"""Figures from arrays, never from models: drawn without a display, saved whole or not at all."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe & Ito's colours, told apart by colour-blind readers as well.
TRAIN, VAL, ACCENT, MUTED = "#E69F00", "#0072B2", "#D55E00", "#666666"
STYLE = {
    "font.size": 9, "axes.titlesize": 10, "lines.linewidth": 1.6, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#E6E6E6", "axes.axisbelow": True,
    "savefig.dpi": 150, "savefig.bbox": "tight",
}  # fmt: skip
MAX_CLASSES = 20  # rows of a sample grid
MAX_TILES = 32  # images of an augmented batch
LOSS_NOTE = (
    "Train loss and accuracy are measured while training, under the recipe's augmentation, dropout and label "
    "smoothing if it has them; val is plain cross-entropy on untouched images."
)


def sample_grid(
    images: np.ndarray, labels: np.ndarray, classes: Sequence[str], path: str | Path, title: str = ""
) -> None:
    """Saves one labelled row of ten images per class, at most 20 classes.

    Args:
        images: (N, 3, H, W) uint8; a class shows its first ten.
        labels: (N,) integers that index `classes`.
        path: the figure's file; its ending gives the format.
    """
    shown, columns = min(len(classes), MAX_CLASSES), min(10, np.bincount(labels).max())
    tiles = np.full((shown, columns, *images.shape[1:]), 255, np.uint8)
    for row in range(shown):
        picks = np.flatnonzero(labels == row)[:columns]
        tiles[row, : len(picks)] = images[picks]
    if shown < len(classes):
        title = f"{title} (first {shown} of {len(classes)} classes)".strip()
    with mosaic(path, title, tiles, tile_px=96) as axes:
        axes.set_yticks(np.arange(shown) + 0.5, list(classes[:shown]))


def augmented_batch(
    images: np.ndarray, labels: np.ndarray, classes: Sequence[str], path: str | Path, title: str = ""
) -> None:
    """Saves the first 32 images of a batch as the network sees them, each above its class name.

    Args:
        images: (N, 3, H, W) float in [0, 1], normalisation undone; clipped to that range.
        labels: (N,) integers that index `classes`.
        path: the figure's file; its ending gives the format.
    """
    count = min(len(images), MAX_TILES)
    columns = max(1, min(count, 8))
    rows = -(-count // columns)
    tiles = np.full((rows * columns, *images.shape[1:]), 255, np.uint8)
    tiles[:count] = (np.clip(images[:count], 0, 1) * 255 + 0.5).astype(np.uint8)
    tiles = tiles.reshape(rows, columns, *images.shape[1:])
    with mosaic(path, title, tiles, tile_px=128, below=0.2) as axes:
        for index, label in enumerate(labels[:count]):
            row, column = divmod(index, columns)
            name = classes[int(label)]
            name = name if len(name) <= 18 else name[:17] + "…"
            axes.text(column + 0.5, row + 0.84, name, ha="center", va="top", fontsize=7)


def curves(history: Sequence[Mapping[str, object]], path: str | Path, title: str, note: str = LOSS_NOTE) -> None:
    """Saves loss, accuracy and learning rate by epoch, stage starts dashed, the best epoch marked.

    Args:
        history: rows with stage, epoch (1-based across stages), train_loss, train_top1, val_loss,
            val_top1 (top-1 as fractions) and lr.
        path: the figure's file; its ending gives the format.
        note: the line under the panels.
    """
    numbers = ("train_loss", "val_loss", "train_top1", "val_top1", "lr")
    values = {key: np.array([float(row[key]) for row in history]) for key in numbers}
    epochs = np.array([int(row["epoch"]) for row in history])
    names = [str(row["stage"]) for row in history]
    starts = [i for i, name in enumerate(names) if i == 0 or name != names[i - 1]]
    best = int(values["val_top1"].argmax())
    mark = f"best epoch: {epochs[best]}, val {values['val_top1'][best]:.2%}"
    with new_figure(path, title, (11, 3.6), note) as figure:
        loss, accuracy, rate = panels = figure.subplots(1, 3)
        for axes, key, factor in ((loss, "loss", 1), (accuracy, "top1", 100)):
            train, val = values[f"train_{key}"] * factor, values[f"val_{key}"] * factor
            axes.plot(epochs, train, _line(len(epochs)), color=TRAIN, label="train")
            axes.plot(epochs, val, _line(len(epochs)), color=VAL, label="val")
            star = {"color": ACCENT, "markersize": 13, "zorder": 1.9, "clip_on": False}
            axes.plot(epochs[best], val[best], "*", label=mark, **star)
        for i, end in zip(starts, [*starts[1:], len(names)]):
            lr = np.where(values["lr"] > 0, values["lr"], np.nan) if len(starts) > 1 else values["lr"]
            rate.plot(epochs[i:end], lr[i:end], _line(end - i), color=MUTED)
        for axes, name in zip(panels, ("loss", "accuracy (%)", "learning rate")):
            axes.set_title(name)
            axes.set_xlabel("epoch")
            axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
            axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
            for i in starts[1:]:
                axes.axvline(epochs[i] - 0.5, color=MUTED, linestyle="--", linewidth=1)
        accuracy.legend(loc="best")
        if len(starts) > 1:  # rates of two stages differ by powers of ten, and cosine ends at 0
            rate.set_yscale("log")
            rate.margins(y=0.15)  # room for the stages' names
            for i in starts:
                rate.annotate(f" {names[i]}", (epochs[i] - 0.5, 0.02), xycoords=("data", "axes fraction"))
        else:
            rate.set_ylim(0, 1.08 * values["lr"].max() or 1)
            rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))


def _line(points: int) -> str:
    """The plot format: dots as well where so few points draw no or hardly any line."""
    return ".-" if points < 4 else "-"


@contextmanager
def mosaic(path: str | Path, title: str, tiles: np.ndarray, tile_px: int, below: float = 0.0) -> Iterator[Axes]:
    """Axes that show (rows, columns, 3, H, W) uint8 tiles at about `tile_px`, one unit each way per tile.

    The enlargement is a whole number, so all pixels look equally large; labels lie outside the figure's
    size and enlarge the saved file. `below` leaves white under a tile, as a share of its height.
    """
    rows, columns, _, height, width = tiles.shape
    gaps = ((0, 0), (0, 0), (0, 0), (0, 2 + round(below * height)), (0, 2))
    canvas = np.pad(tiles, gaps, constant_values=255).transpose(0, 3, 1, 4, 2)
    canvas = canvas.reshape(rows * canvas.shape[1], columns * canvas.shape[3], 3)
    scale = max(1, round(tile_px / height)) / STYLE["savefig.dpi"]
    with new_figure(path, "", (canvas.shape[1] * scale, canvas.shape[0] * scale), layout=None) as figure:
        axes = figure.add_axes((0, 0, 1, 1), xticks=[], yticks=[])
        axes.imshow(canvas, extent=(0, columns, rows, 0), interpolation="nearest", aspect="auto")
        axes.set_title(title, fontsize=11, fontweight="bold")
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        yield axes


@contextmanager
def new_figure(
    path: str | Path, title: str, size: tuple[float, float], note: str = "", layout: str | None = "constrained"
) -> Iterator[Figure]:
    """A styled figure of `size` inches, saved to `path` when the block ends well."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout=layout)
        figure.suptitle(title, fontsize=11, fontweight="bold")
        yield figure
        if note:
            figure.supxlabel(note, fontsize=7, color=MUTED)
        _save(figure, Path(path))


def _save(figure: Figure, path: Path) -> None:
    """Writes beside `path` and renames, so that a half-written figure never bears the final name."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(temporary, metadata={"Software": None} if path.suffix == ".png" else None)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
