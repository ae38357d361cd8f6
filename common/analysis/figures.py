"""Figures of an analysis, from arrays: confusions, calibration, errors, and where the network looks."""
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.ticker import MaxNLocator

from common.plots import ACCENT, MAX_CLASSES, MUTED, TRAIN, VAL, mosaic, new_figure

KINDS = {"gradcam": ("Grad-CAM", VAL), "random": ("random maps", MUTED), "centre": ("centre prior", TRAIN)}
GAP = 4  # white pixels between the pictures of a strip
HEAT_NOTE = "Each map is divided by its own maximum (yellow): compare places, not heights.\nWithout evidence for the class the map is black and the overlay the plain image."
SURE = {"color": "black", "elinewidth": 1, "capsize": 2.5}  # how an interval is drawn


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str], path: Path, title: str) -> None:
    """Saves the (K, K) confusion matrix, rows true: counts, and the percent of the row beneath and as colour.

    Beyond 20 classes the cells have no numbers.
    """
    counts, k = np.asarray(counts), len(classes)
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 2.2 + 0.62 * min(k, MAX_CLASSES)
    with new_figure(path, title, (side + 0.6, side), "A row sums to 100 %. The colours are stretched at the low end, so that single errors show.") as figure:
        axes = figure.subplots()
        image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.4, 0, 100))
        for row, column in np.ndindex(counts.shape) if k <= MAX_CLASSES else ():
            if counts[row, column]:
                shade = "white" if share[row, column] > 30 else "black"
                axes.text(column, row - 0.08, f"{counts[row, column]:,}", ha="center", va="center", color=shade, fontweight="bold", fontsize=8.5)
                axes.text(column, row + 0.27, f"{share[row, column]:.1f}", ha="center", va="center", color=shade, fontsize=6.5)
        every = -(-k // 50)
        axes.set_xticks(range(0, k, every), [_short(name) for name in classes[::every]], rotation=90 if k > MAX_CLASSES else 40,
                        ha="center" if k > MAX_CLASSES else "right", rotation_mode="anchor" if k <= MAX_CLASSES else "default")
        axes.set_yticks(range(0, k, every), [_short(name) for name in classes[::every]])
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.grid(False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, shrink=0.6, ticks=[0, 1, 5, 20, 50, 100], label="percent of the true class")
        bar.outline.set_visible(False)


def reliability(scores: Mapping[str, Any], path: Path, title: str) -> None:
    """Saves the reliability diagram over the counts of its bins.

    Args:
        scores: top1, nll, brier, and calibration with ece, edges (B + 1,), and count, confidence and accuracy (B,) of each bin.
    """
    table = scores["calibration"]
    numbers = (f"ECE {table['ece']:.2%}", f"NLL {scores['nll']:.4f}", f"mean confidence {table['mean_confidence']:.2%}", f"top-1 {scores['top1']:.2%}")
    edges, count, confidence, accuracy = (np.asarray(table[key]) for key in ("edges", "count", "confidence", "accuracy"))
    used, middles, width = count > 0, (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    ends = np.array([ends for ends in table["accuracy_interval_95"] if ends])
    with new_figure(path, title, (6.2, 6.0)) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], "--", color=MUTED, linewidth=1.2, label="accuracy = confidence", zorder=1)
        upper.bar(middles[used], accuracy[used], 0.94 * width, color=VAL, alpha=0.22, label="accuracy in the bin")
        upper.errorbar(confidence[used], accuracy[used], yerr=np.abs(ends.T - accuracy[used]), fmt="o", markersize=5, **{**SURE, "color": VAL},
                       label="the same at its mean confidence,\nwith its 95 % interval")
        upper.set(ylabel="accuracy", ylim=(0, 1.02))
        upper.legend(loc="upper left", fontsize=8)
        upper.text(0.97, 0.05, "\n".join(numbers), transform=upper.transAxes, ha="right", va="bottom", linespacing=1.5,
                   bbox={"facecolor": "white", "edgecolor": "#CCCCCC", "boxstyle": "round,pad=0.5"})
        lower.bar(middles[used], count[used], 0.94 * width, color=MUTED)
        lower.set(xlabel="confidence (probability of the predicted class)", ylabel="images", xlim=(0, 1), yscale="log")
        lower.set_ylim(0.7, None)
        figure.align_ylabels()


def class_bars(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Saves recall of every class as bars with 95 % intervals, precision as a mark; best recall first.

    Args:
        rows: class, precision, recall, recall_interval_95 (None without images) and support; fractions.
    """
    rows = sorted(rows, key=lambda row: row["recall"])
    recall, precision = (np.array([100 * row[key] for row in rows]) for key in ("recall", "precision"))
    ends = np.array([100 * np.array(row["recall_interval_95"] or (row["recall"],) * 2) for row in rows])
    with new_figure(path, title, (7.5, 1.3 + 0.33 * len(rows))) as figure:
        axes = figure.subplots()
        at = np.arange(len(rows))
        bars = axes.barh(at, recall, color="#5BA3D0", height=0.66, label="recall: the share of the class that is found")
        ranges = axes.errorbar(recall, at, xerr=np.abs(ends.T - recall), fmt="none", label="its 95 % interval", **SURE)
        (marks,) = axes.plot(precision, at, "|", color=ACCENT, markersize=15, markeredgewidth=3, label="precision: the share of its predictions that is right")
        for i, row in enumerate(rows):
            axes.text(101, i, f"{row['recall']:.1%}", va="center", fontsize=8)
        axes.set_yticks(at, [_short(row["class"]) for row in rows])
        axes.set(xlabel="percent", xlim=(0, 100), ylim=(-0.6, len(rows) - 0.4))
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        figure.legend(handles=[bars, ranges, marks], loc="outside lower center", ncols=3, fontsize=8)


def error_gallery(images: np.ndarray, rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Saves errors as tiles `T: airplane → P: ship` with index, loss and the two highest probabilities.

    Args:
        images: (N, 3, H, W) uint8.
        rows: true, predicted, second, index, loss, confidence and second_confidence of each image.
    """
    tiles = [[enlarge(image, 256)] for image in images]
    with _strips(tiles, 5, path, title, below=0.33) as (axes, places):
        for (x, y), row in zip(places, rows):
            true, predicted, second = (_short(row[key], 12) for key in ("true", "predicted", "second"))
            axes.text(x, y, f"T: {true} → P: {predicted}", ha="center", va="top", fontsize=7, fontweight="bold")
            axes.text(x, y + 0.07, f"index {row['index']:,} · loss {row['loss']:.2f}\n{predicted} {row['confidence']:.1%} · {second} "
                      f"{row['second_confidence']:.1%}", ha="center", va="top", fontsize=6.8, color="#333333", linespacing=1.4)


def cam_grid(images: np.ndarray, maps: np.ndarray, labels: np.ndarray, classes: Sequence[str], path: Path, title: str, note: str) -> None:
    """Saves image, heat map and overlay of up to three images a class, one row a class, at most 20 classes.

    Args:
        images: (N, 3, H, W) uint8; maps (N, h, w) in [0, 1]; labels (N,) that index `classes`.
        note: the line below, such as the layer and the size of its map.
    """
    shown = [k for k in range(len(classes)) if k in labels][:MAX_CLASSES]
    picked = [np.flatnonzero(labels == k)[:3] for k in shown]
    columns = max(map(len, picked))
    tiles = [[_pictures(images[i], maps[i], 112) for i in row] + [[]] * (columns - len(row)) for row in picked]
    with _strips([tile for row in tiles for tile in row], columns, path, title, note, ("image", "heat map", "overlay")) as (axes, _):
        axes.set_yticks(np.arange(len(shown)) + 0.5, [_short(classes[k]) for k in shown])


def cam_pairs(images: np.ndarray, true_maps: np.ndarray, predicted_maps: np.ndarray, rows: Sequence[Mapping[str, Any]], path: Path, title: str,
              note: str, halved: bool = False) -> None:
    """Saves errors with the evidence for the true class beside that for the predicted one.

    Args:
        images: (N, 3, H, W) uint8; maps (N, h, w) in [0, 1].
        rows: true, predicted, index and confidence of each image.
        halved: draw the line between the upper and the lower half.
    """
    px = 150
    tiles = [[enlarge(image, px), _pictures(image, a, px)[2], _pictures(image, b, px)[2]] for image, a, b in zip(images, true_maps, predicted_maps)]
    for tile in tiles if halved else ():
        for picture in tile[1:]:
            picture[px // 2 - 1 : px // 2 + 1, np.arange(px) // 6 % 2 == 0] = 255
    with _strips(tiles, 2, path, title, note, ("image", "true class", "predicted class"), below=0.2) as (axes, places):
        for (x, y), row in zip(places, rows):
            axes.text(x, y, f"T: {_short(row['true'])} → P: {_short(row['predicted'])} ({row['confidence']:.1%}), index {row['index']:,}",
                      ha="center", va="top", fontsize=7.5)


def faithfulness(result: Mapping[str, Any], path: Path, title: str, note: str) -> None:
    """Saves deletion and insertion curves of every kind of map with 95 % bands, and the areas' differences to Grad-CAM.

    Args:
        result: `fraction`, `curves` and `differences` as in analysis.json; intervals may be None.
    """
    percent = 100 * np.asarray(result["fraction"])
    with new_figure(path, title, (11, 3.9), f"Mean over {result['images']} images with 95 % intervals. {note}") as figure:
        panels = figure.subplots(1, 3, width_ratios=(1, 1, 0.9))
        for axes, name, verb in zip(panels, ("deletion", "insertion"), ("deleted", "inserted")):
            for kind, (label, colour) in KINDS.items():
                curve = result["curves"][kind][name]
                axes.plot(percent, curve["mean"], ".-", color=colour, label=label)
                if None not in curve["low"]:
                    axes.fill_between(percent, curve["low"], curve["high"], color=colour, alpha=0.18, linewidth=0)
            better = "a lower curve is better" if name == "deletion" else "a higher curve is better"
            axes.set(title=f"{name}: {better}", xlabel=f"pixels {verb}, hottest first (%)", ylabel="probability of the predicted class", xlim=(0, 100), ylim=(0, 1))
        panels[0].legend(loc="upper right")
        _differences(panels[2], result["differences"]["all"])


def _differences(axes: Axes, differences: Mapping[str, Any]) -> None:
    """Areas of Grad-CAM minus those of each control as points with intervals."""
    names = [(name, control) for name in ("insertion", "deletion") for control in ("centre", "random")]
    for at, (name, control) in enumerate(names):
        found, colour = differences[control][name], KINDS[control][1]
        known = found["low"] is not None
        axes.errorbar(found["mean"], at, xerr=[[found["mean"] - found["low"]], [found["high"] - found["mean"]]] if known else None,
                      fmt="o", color=colour, elinewidth=2, capsize=4)
        axes.annotate(f"{found['mean']:+.3f}".replace("-", "−"), (found["mean"], at), (0, 7), textcoords="offset points", ha="center", fontsize=8,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(names)), [f"{name},\nagainst {KINDS[control][0]}" for name, control in names], fontsize=8)
    axes.set(title="difference of areas", xlabel="better: deletion < 0, insertion > 0", ylim=(-0.5, len(names) - 0.3))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.margins(x=0.15)
    axes.grid(False, axis="y")


def enlarge(image: np.ndarray, px: int) -> np.ndarray:
    """(3, H, W) uint8 as (px, px, 3): Lanczos, so that a small picture can be recognised."""
    return cv2.resize(np.ascontiguousarray(image.transpose(1, 2, 0)), (px, px), interpolation=cv2.INTER_LANCZOS4)


def _pictures(image: np.ndarray, heat: np.ndarray, px: int) -> list[np.ndarray]:
    """Image, heat map and overlay, (px, px, 3) uint8 each; in the overlay the picture fades where the map is hot."""
    plain = enlarge(image, px)
    heat = np.clip(cv2.resize(np.ascontiguousarray(heat, np.float32), (px, px), interpolation=cv2.INTER_LINEAR), 0, 1)
    colour = cv2.applyColorMap((255 * heat + 0.5).astype(np.uint8), cv2.COLORMAP_INFERNO)[:, :, ::-1]
    share = 0.75 * heat[:, :, None]
    return [plain, np.ascontiguousarray(colour), ((1 - share) * plain + share * colour + 0.5).astype(np.uint8)]


@contextmanager
def _strips(tiles: Sequence[Sequence[np.ndarray]], columns: int, path: Path, title: str, note: str = "", heads: Sequence[str] = (),
            below: float = 0.0) -> Iterator[tuple[Axes, list[tuple[float, float]]]]:
    """Axes with strips of equal pictures side by side, `columns` strips a row, and the points below each strip's middle.

    Args:
        tiles: strips of (px, px, 3) pictures; an empty one stays white.
        heads: words above the pictures of the first row.
        below: white under a strip, as a share of its height.
    """
    columns = min(columns, len(tiles))
    px, count = tiles[0][0].shape[0], len(tiles[0])
    rows, width = -(-len(tiles) // columns), count * (px + GAP) + (GAP if count > 1 else 0)
    canvas = np.full((rows * columns, px, width, 3), 255, np.uint8)
    for cell, tile in zip(canvas, tiles):
        for i, picture in enumerate(tile):
            cell[:, i * (px + GAP) : i * (px + GAP) + px] = picture
    middles = [(i * (px + GAP) + px / 2) / (width + 2) for i in range(count)]
    with mosaic(path, title, canvas.transpose(0, 3, 1, 2).reshape(rows, columns, 3, px, width), px, below) as axes:
        for i, head in enumerate(heads):
            for column in range(columns):
                axes.text(column + middles[i], -0.03, head, ha="center", va="bottom", fontsize=7.5, color=MUTED)
        axes.set_title(title, fontsize=11, fontweight="bold", pad=18 if heads else 6)
        axes.set_xlabel(f"{note}\n{HEAT_NOTE}" if heads else "", fontsize=7, color=MUTED)
        middle, bottom = (middles[0] + middles[-1]) / 2, px * 1.03 / (px + 2 + round(below * px))
        yield axes, [(i % columns + middle, i // columns + bottom) for i in range(len(tiles))]


def _short(name: str, most: int = 18) -> str:
    """A class name that fits."""
    return name if len(name) <= most else name[: most - 1] + "…"
