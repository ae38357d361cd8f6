"""Figures of one run: samples, an augmented batch, the curves."""
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator

from common.plots import ACCENT, MAX_CLASSES, MUTED, TRAIN, VAL, mosaic, new_figure

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
