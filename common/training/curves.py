"""Figures of one run: samples, an augmented batch, the curves."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy import ndarray

from common.files import Json
from common.plots import ACCENT, MAX_CLASSES, MUTED, TRAIN, VAL, mosaic, new_figure, short
from common.training.run import best_row
from common.words import percent

MAX_TILES = 32  # images of an augmented batch
LOSS_NOTE = ("Train loss and accuracy are measured while training, under the recipe's augmentation,"
             " dropout and label smoothing if it has them; val is plain cross-entropy on untouched"
             " images.")
SPIKE = 2.0  # the loss axis ends at this many times the highest loss after the first epoch
NUMBERS = ("epoch", "train_loss", "val_loss", "train_top1", "val_top1", "lr")


def sample_grid(images: ndarray, labels: ndarray, classes: Sequence[str], path: Path,
                title: str) -> None:
    """Save one labelled row of ten images per class, at most 20 classes.

    Args:
        images: (N, 3, H, W) uint8; a class shows its first ten.
        labels: (N,) integers that index `classes`.
        path: the figure's file; its ending gives the format.
    """
    shown = min(len(classes), MAX_CLASSES)
    columns = min(10, np.bincount(labels).max())
    tiles = np.full((shown, columns, *images.shape[1:]), 255, np.uint8)
    for row in range(shown):
        picks = np.flatnonzero(labels == row)[:columns]
        tiles[row, : len(picks)] = images[picks]
    if shown < len(classes):
        title = f"{title} (first {shown} of {len(classes)} classes)".strip()
    with mosaic(path, title, tiles, tile_px=96) as axes:
        axes.set_yticks(np.arange(shown) + 0.5, [short(name) for name in classes[:shown]])


def augmented_batch(images: ndarray, labels: ndarray, classes: Sequence[str], path: Path,
                    title: str) -> None:
    """Save the first 32 images of a batch as the network sees them, each above its class name.

    Args:
        images: (N, 3, H, W) float in [0, 1], normalisation undone; clipped to that range.
        labels: (N,) integers that index `classes`.
        path: the figure's file; its ending gives the format.
    """
    some = np.round(images[:MAX_TILES].clip(0, 1) * 255)
    columns = min(len(some), 8)
    # White tiles complete the last row.
    lacking = -len(some) % columns
    white = np.full((lacking, *images.shape[1:]), 255)
    tiles = np.concatenate([some, white]).astype(np.uint8)
    tiles = tiles.reshape(-1, columns, *images.shape[1:])
    with mosaic(path, title, tiles, tile_px=128, below=0.2) as axes:
        for index, label in enumerate(labels[:MAX_TILES]):
            row, column = divmod(index, columns)
            # About as wide as a tile at this size.
            name = short(classes[int(label)], 14)
            axes.text(column + 0.5, row + 0.84, name, ha="center", va="top", fontsize=7)


def curves(history: Sequence[Json], path: Path, title: str) -> None:
    """Save loss and accuracy by epoch over a strip of the learning rate, stage starts dashed and
    the best epoch marked.

    Args:
        history: rows with stage, epoch (1-based across stages), train_loss, train_top1, val_loss,
            val_top1 (top-1 as fractions) and lr.
        path: the figure's file; its ending gives the format.
    """
    values = {key: np.array([float(row[key]) for row in history]) for key in NUMBERS}
    epochs, best = values["epoch"], list(history).index(best_row(history))
    stages = [str(row["stage"]) for row in history]
    starts = [i for i, stage in enumerate(stages) if i == 0 or stage != stages[i - 1]]
    with new_figure(path, title, (9, 4.6), LOSS_NOTE) as figure:
        panels = figure.subplots(2, 2, sharex=True, height_ratios=(4, 1))
        loss, accuracy = panels[0]
        _train_and_val(loss, values, best, "loss")
        _train_and_val(accuracy, values, best, "top1")
        if len(history) > 1:
            # Pretrained weights under a new head may begin at many times the later losses.
            later = max(values["train_loss"][1:].max(), values["val_loss"][1:].max())
            loss.set_ylim(0, min(loss.get_ylim()[1], SPIKE * later))
        for axes in panels[1]:
            _rates(axes, epochs, values["lr"], starts)
        for axes in panels.flat:
            for i in starts[1:]:
                axes.axvline(epochs[i] - 0.5, color=MUTED, linestyle="--", linewidth=1,
                             label=f"stage {short(stages[i])} begins")
        accuracy.legend(loc="best")


def _train_and_val(axes: Axes, values: dict[str, ndarray], best: int, key: str) -> None:
    """Train and val of a measure, the best epoch marked."""
    factor, title = (100, "accuracy (%)") if key == "top1" else (1, "loss")
    epochs, train, val = values["epoch"], values[f"train_{key}"], values[f"val_{key}"]
    axes.plot(epochs, train * factor, ".-", markersize=3, color=TRAIN, label="train")
    axes.plot(epochs, val * factor, ".-", markersize=3, color=VAL, label="val")
    mark = f"best epoch: {epochs[best]:.0f}, val {percent(values['val_top1'][best])}"
    axes.plot(epochs[best], val[best] * factor, "*", color=ACCENT, markersize=13, zorder=1.9,
              clip_on=False, label=mark)
    axes.set_title(title)


def _rates(axes: Axes, epochs: ndarray, lr: ndarray, starts: list[int]) -> None:
    """The learning rate, each stage with a line of its own."""
    for i, end in zip(starts, [*starts[1:], len(epochs)]):
        axes.plot(epochs[i:end], lr[i:end], ".-", markersize=3, color=MUTED)
    axes.set(xlabel="epoch", xlim=(epochs[0] - 0.5, epochs[-1] + 0.5))
    axes.set_ylabel("lr", fontsize=8)
    axes.set_ylim(0, 1.15 * lr.max() or 1)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
