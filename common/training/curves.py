"""Figures of one run: samples and curves."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy import ndarray

from common.files import Json
from common.plots import ACCENT, MAX_CLASSES, MUTED, TRAIN, VAL, mosaic, new_figure
from common.training.run import best_row
from common.words import percent, short, shorten

LOSS_NOTE = ("Train loss and accuracy are measured while training, under the recipe's augmentation,"
             " dropout and label smoothing if it has them; val is plain cross-entropy on untouched"
             " images.")
SPIKE = 2.0  # the loss axis ends at this many times the highest loss after the first epoch
NUMBERS = ("epoch", "train_loss", "val_loss", "train_top1", "val_top1", "lr")


def sample_grid(images: ndarray, labels: ndarray, classes: Sequence[str], path: Path,
                title: str) -> None:
    """Save one labelled row of images per class, of at most 20 classes.

    Args:
        images: (N, 3, H, W) uint8; labels: (N,) integers that index `classes`.
        path: the figure's PNG file.
    """
    shown = [*shorten(classes[:MAX_CLASSES], 18).values()]
    tiles = np.full((len(shown), np.bincount(labels).max(), *images.shape[1:]), 255, np.uint8)
    for label, row in enumerate(tiles):
        own = images[labels == label]
        row[: len(own)] = own
    if len(shown) < len(classes):
        title += f" (first {len(shown)} of {len(classes)} classes)"
    with mosaic(path, title, tiles, tile_px=96) as axes:
        axes.set_yticks(np.arange(len(shown)) + 0.5, shown)


def curves(history: Sequence[Json], path: Path, title: str) -> None:
    """Save loss and accuracy by epoch over a strip of the learning rate, stage starts dashed and
    the best epoch marked.

    Args:
        history: rows with stage, epoch (1-based across stages), train_loss, train_top1, val_loss,
            val_top1 (top-1 as fractions) and lr.
        path: the figure's PNG file.
    """
    rows = {key: np.array([row[key] for row in history]) for key in NUMBERS}
    epochs, best = rows["epoch"], history.index(best_row(history))
    stages = [row["stage"] for row in history]
    with new_figure(path, title, (9, 4.6), LOSS_NOTE) as figure:
        panels = figure.subplots(2, 2, sharex=True, height_ratios=(4, 1))
        for axes, key, name, scale in zip(panels[0], ("loss", "top1"), ("loss", "accuracy (%)"),
                                          (1, 100)):
            for part, colour in (("train", TRAIN), ("val", VAL)):
                axes.plot(epochs, scale * rows[f"{part}_{key}"], ".-", color=colour, label=part,
                          markersize=3)
            # Below the lines, which it would hide.
            axes.plot(epochs[best], scale * rows[f"val_{key}"][best], "*", color=ACCENT,
                      markersize=13, zorder=1.9,
                      label=f"best epoch: {epochs[best]}, val {percent(rows['val_top1'][best])}")
            axes.set_title(name)
        loss, accuracy = panels[0]
        if len(history) > 1:
            # Pretrained weights under a new head may begin at many times the later losses.
            later = np.maximum(rows["train_loss"], rows["val_loss"])[1:].max()
            loss.set_ylim(0, min(loss.get_ylim()[1], SPIKE * later))
        for axes in panels[1]:
            axes.plot(epochs, rows["lr"], ".", color=MUTED, markersize=5)
            axes.set(xlabel="epoch", ylabel="lr", ylim=(0, None))
            axes.locator_params("x", integer=True, min_n_ticks=1)
        for i in range(1, len(stages)):
            if stages[i] != stages[i - 1]:
                for axes in panels.flat:
                    axes.axvline(epochs[i] - 0.5, color=MUTED, linestyle="--",
                                 label=f"stage {short(stages[i])} begins")
        accuracy.legend()
