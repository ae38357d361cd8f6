"""Figures of one run: samples, an augmented batch, the curves."""
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy import ndarray

from common.plots import ACCENT, MAX_CLASSES, MUTED, TRAIN, VAL, mosaic, new_figure, short
from common.training.run import best_row
from common.words import percent

MAX_TILES = 32  # images of an augmented batch
LOSS_NOTE = ("Train loss and accuracy are measured while training, under the recipe's augmentation,"
             " dropout and label smoothing if it has them; val is plain cross-entropy on untouched"
             " images.")
SPIKE = 3.0  # a first loss this many times the second's would flatten all that follows


def sample_grid(images: ndarray, labels: ndarray, classes: Sequence[str], path: str | Path,
                title: str = "") -> None:
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


def augmented_batch(images: ndarray, labels: ndarray, classes: Sequence[str], path: str | Path,
                    title: str = "") -> None:
    """Save the first 32 images of a batch as the network sees them, each above its class name.

    Args:
        images: (N, 3, H, W) float in [0, 1], normalisation undone; clipped to that range.
        labels: (N,) integers that index `classes`.
        path: the figure's file; its ending gives the format.
    """
    count = min(len(images), MAX_TILES)
    columns = min(count, 8)
    rows = -(-count // columns)
    tiles = np.full((rows * columns, *images.shape[1:]), 255, np.uint8)
    tiles[:count] = np.round(np.clip(images[:count], 0, 1) * 255)
    tiles = tiles.reshape(rows, columns, *images.shape[1:])
    with mosaic(path, title, tiles, tile_px=128, below=0.2) as axes:
        for index, label in enumerate(labels[:count]):
            row, column = divmod(index, columns)
            # About as wide as a tile at this size.
            name = short(classes[int(label)], 14)
            axes.text(column + 0.5, row + 0.84, name, ha="center", va="top", fontsize=7)


def curves(history: Sequence[Mapping[str, object]], path: str | Path, title: str,
           note: str = LOSS_NOTE) -> None:
    """Save loss and accuracy by epoch over a strip of the learning rate, stage starts dashed and
    the best epoch marked.

    Args:
        history: rows with stage, epoch (1-based across stages), train_loss, train_top1, val_loss,
            val_top1 (top-1 as fractions) and lr.
        path: the figure's file; its ending gives the format.
        note: the line under the panels.
    """
    numbers = ("epoch", "train_loss", "val_loss", "train_top1", "val_top1", "lr")
    values = {key: np.array([float(row[key]) for row in history]) for key in numbers}
    stages = [str(row["stage"]) for row in history]
    starts = [i for i in range(len(stages)) if i == 0 or stages[i] != stages[i - 1]]
    with new_figure(path, title, (9, 4.6), note) as figure:
        grid = figure.add_gridspec(2, 2, height_ratios=(4, 1))
        loss, accuracy = (figure.add_subplot(grid[0, i]) for i in range(2))
        best = list(history).index(best_row(history))
        _train_and_val(loss, values, best, "loss", "loss")
        _train_and_val(accuracy, values, best, "top1", "accuracy (%)")
        accuracy.legend(loc="best")
        _leave_out_a_spike(loss, values)
        rates = [figure.add_subplot(grid[1, i], sharex=panel)
                 for i, panel in enumerate((loss, accuracy))]
        for axes in rates:
            _rates(axes, values, stages, starts)
        for axes in (loss, accuracy, *rates):
            for i in starts[1:]:
                axes.axvline(values["epoch"][i] - 0.5, color=MUTED, linestyle="--", linewidth=1)


def _train_and_val(axes: Axes, values: dict[str, ndarray], best: int, key: str,
                   title: str) -> None:
    """Train and val of a measure, the best epoch marked."""
    factor = 100 if key == "top1" else 1
    epochs = values["epoch"]
    line = _line(len(epochs))
    axes.plot(epochs, values[f"train_{key}"] * factor, line, color=TRAIN, label="train")
    axes.plot(epochs, values[f"val_{key}"] * factor, line, color=VAL, label="val")
    mark = f"best epoch: {epochs[best]:.0f}, val {percent(values['val_top1'][best])}"
    axes.plot(epochs[best], values[f"val_{key}"][best] * factor, "*", color=ACCENT, markersize=13,
              zorder=1.9, clip_on=False, label=mark)
    axes.set_title(title)
    axes.tick_params(labelbottom=False)


def _leave_out_a_spike(axes: Axes, values: dict[str, ndarray]) -> None:
    """End the loss axis below a first epoch that would flatten all others."""
    losses = np.concatenate([values["train_loss"], values["val_loss"]])
    later = np.concatenate([values["train_loss"][1:], values["val_loss"][1:]])
    # Pretrained weights under a new head often begin with one.
    if len(later) and losses.max() > SPIKE * later.max() > 0:
        axes.set_ylim(0, 1.1 * later.max())
        axes.annotate(f"↑ {losses.max():.3g} in epoch 1", (0.02, 0.98), xycoords="axes fraction",
                      va="top", color=MUTED)


def _rates(axes: Axes, values: dict[str, ndarray], stages: list[str], starts: list[int]) -> None:
    """The learning rate, each stage with a line of its own."""
    epochs, lr = values["epoch"], values["lr"]
    for i, end in zip(starts, [*starts[1:], len(stages)]):
        axes.plot(epochs[i:end], lr[i:end], _line(end - i), color=MUTED)
        if len(starts) > 1:
            axes.annotate(f" {short(stages[i])}", (epochs[i] - 0.5, 0.06),
                          xycoords=("data", "axes fraction"), fontsize=7)
    axes.set_ylabel("lr", fontsize=8)
    axes.set_xlabel("epoch")
    axes.set_ylim(0, 1.15 * lr.max() or 1)
    axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))


def _line(points: int) -> str:
    """The plot format: dots as well where so few points draw no or hardly any line."""
    return ".-" if points < 4 else "-"
