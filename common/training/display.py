"""What a training run shows, lines in the terminal and pictures, made of what others decided."""
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy import ndarray
from tqdm import tqdm

from common.config import Recipe, Runtime
from common.data.augment import augmentation
from common.data.splits import Splits
from common.files import Json
from common.plots import ACCENT, MAX_CLASSES, MUTED, TRAIN, VAL, mosaic, new_figure
from common.training.run import best_row
from common.training.schedule import batch_size_for, epoch_order, lr_for
from common.words import count, duration, percent, short, shorten

SLOW = 1800  # seconds of a stage on a CPU after which shorter ways are named
SHORTER = "; slow on a CPU: --smoke shows the whole path, --train-limit N trains on fewer images"
DATA = "data: {}; train {:,} / val {:,} / test {:,}, {size}×{size} px"
RECIPE = ("recipe: {length}, {optimizer}, lr {lr:.3g} {schedule}, batch {batch} ({steps} an "
          "epoch), label smoothing {label_smoothing:g}; augmentation: {augmentation}")
EPOCH = ("{title} | Train Loss: {train_loss:.4f} Acc: {train_top1:.2%} | "
         "Val Loss: {val_loss:.4f} Acc: {val_top1:.2%} | "
         "LR {lr:.1e} | {seconds:.1f}s {images_per_s:,.0f} img/s")
RESULT = """\
best epoch {best_epoch}: val {val_top1}, train without augmentation {clean_train_top1}
test accuracy {test_top1} ({low} to {high}), {images}, {source}"""
LOSS_NOTE = ("Train loss and accuracy are measured while training, under the recipe's augmentation,"
             " dropout and label smoothing if it has them; val is plain cross-entropy on untouched"
             " images.")
SPIKE = 2.0  # the loss axis ends at this many times the highest loss after the first epoch
NUMBERS = ("epoch", "train_loss", "val_loss", "train_top1", "val_top1", "lr")


def data_lines(splits: Splits) -> list[str]:
    """Sizes, classes and images of each class, and what the source has to say."""
    parts = splits.train, splits.val, splits.test
    lines = [DATA.format(splits.source, *map(len, parts), size=splits.image_size)]
    for label, name in enumerate(splits.classes[:MAX_CLASSES]):
        sizes = (int((part.labels == label).sum()) for part in parts)
        lines.append("  {:<18}  {:>5,} / {:>5,} / {:>5,}".format(short(name, 40), *sizes))
    if len(splits.classes) > MAX_CLASSES:
        lines.append(f"  … {len(splits.classes):,} classes")
    return lines + [f"note: {note}" for note in splits.notes]


def recipe_line(recipe: Recipe, images: int) -> str:
    """Optimiser, rate, batch and augmentation for so many training images."""
    batch = batch_size_for(images, recipe.batch_size)
    length = count(recipe.epochs, "epoch")
    if recipe.head_epochs:
        length = f"{recipe.head_epochs} + {length}"
    values = vars(recipe) | {
        "length": length, "optimizer": {"sgd": "SGD", "adamw": "AdamW"}[recipe.optimizer],
        "lr": lr_for(recipe.lr, images, recipe), "batch": batch,
        "steps": count(len(epoch_order(images, batch, 0)), "step"),
        "augmentation": augmentation(recipe) or "none",
    }
    return RECIPE.format(**values)


def announce(seconds: float, on_cpu: bool) -> None:
    """Say how long the stage will take, and on a slow machine how to make it shorter."""
    hint = SHORTER if on_cpu and seconds > SLOW else ""
    tqdm.write(f"this takes about {duration(seconds)}{hint}")
    print(end="", flush=True)


def result_lines(result: Json) -> list[str]:
    """What came of the run: accuracies, the interval of test's, the diagnosis."""
    low, high = map(percent, result["test_interval_95"])
    shares = {key: percent(value) for key, value in result.items() if key.endswith("_top1")}
    shown = result | shares | {"images": count(result["test_images"], "image")}
    line = RESULT.format(low=low, high=high, **shown)
    if abs(result["balanced_top1"] - result["test_top1"]) > 0.001:
        line += "; {balanced_top1} in the mean over classes".format(**shares)
    return [line, *(f"  {sentence}" for sentence in result["diagnosis"])]


def next_line(ckpt: Path) -> str:
    """The command to type next, from where the user stands."""
    script = str(Path(sys.argv[0]).with_name("analyze.py"))
    return f"next: {shlex.join(['python', script, '--ckpt', str(ckpt)])}"


def resume_line(script: str, folder: Path, runtime: Runtime) -> str:
    """The command that goes on with an interrupted run."""
    words = ["python", *sys.argv]
    if folder.name != runtime.run_name:  # a numbered trial run
        words += ["--name", folder.name]
    if Path(sys.argv[0]).stem == script and not runtime.resume:
        words.append("--resume")  # ablation.py, which trains arms too, goes on by itself
    return f"to go on: {shlex.join(words)}"


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
    """Save loss and accuracy by epoch over a strip of the learning rate; a stage's start is dashed.

    Args:
        history: rows with stage and NUMBERS; epochs from 1 across stages, top-1 as fractions.
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
