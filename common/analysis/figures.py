"""Figures of an analysis: confusions, calibration, faithfulness, cases with their heat maps.

`result` is the content of analysis.json; each figure takes its file's name from its subject.
"""
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib import colormaps
from numpy import ndarray

from common.analysis.findings import OTHERS
from common.analysis.sentences import say
from common.files import Json
from common.metrics import wilson_interval
from common.plots import ACCENT, MAX_CLASSES, MUTED, TRAIN, VAL, mosaic, new_figure
from common.words import shorten

Strip = tuple[ndarray, str]  # pictures side by side (PX, W, 3) uint8, and the words below them
CASES = {  # figure: what it shows
    "errors": "The errors with the highest loss: evidence for the true and the predicted class",
    "heat_right": "Where it looks when it is right: image, heat map, both",
    "heat_planes": "Where it looks when it takes a plane for a ship: evidence for plane and ship",
}
CAPTION = ("T: {true} → P: {predicted} {confidence:%1}\n"
           "{second} {second_confidence:%1}, loss {loss:.2f}, image {file}")
MOST = 60  # strips in a figure
PX = 160  # side of a picture
HOTTEST = 5  # times its image's average heat, where the scale of colours ends
HEAT_NOTE = (f"One scale of colours for all pictures: from black, no heat, to yellow, {HOTTEST} "
             "times the average of the picture, or more.")


def confusion(result: Json, folder: Path) -> None:
    """Saves the confusion matrix, rows true: counts, and the percent of the row beneath.

    Beyond 20 classes neither these nor names would be legible: classes are numbered from 0.
    """
    counts, classes = np.array(result["confusion"]), result["classes"]
    share = counts / counts.sum(1, keepdims=True).clip(1)
    k = len(classes)
    side = 2.2 + 0.62 * min(k, MAX_CLASSES)
    with new_figure(folder / "confusion.png", f"Confusion matrix\n{result['title']}", (side, side),
                    "Images, and their percentage of all images of the true class.") as figure:
        axes = figure.subplots()
        # Stretched at the low end, so that single errors show; never too dark for the words.
        axes.imshow(share**0.4, cmap="Blues", vmin=0, vmax=1.5)
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.grid(False)
        if k <= MAX_CLASSES:
            names = shorten(classes, 18).values()
            axes.set_xticks(range(k), names, rotation=40, ha="right")
            axes.set_yticks(range(k), names)
            for (y, x), images in np.ndenumerate(counts):
                if images:
                    axes.text(x, y, f"{images:,}\n{100 * share[y, x]:.1f} %", ha="center",
                              va="center", fontsize=7)


def reliability(result: Json, folder: Path) -> None:
    """Saves the reliability diagram, each bin with the 95 % interval of its accuracy."""
    table = result["calibration"]
    bins = zip(table["confidence"], table["accuracy"], table["count"])
    confidence, accuracy, *ends = np.transpose(
        [(sure, share, *wilson_interval(share * n, n)) for sure, share, n in bins if n])
    title = f"Is it as accurate as it is confident?\n{result['title']}"
    note = say("ECE {calibration[ece]:%}, NLL {nll:.4f}; the fewer images, the wider an interval.",
               **result)
    with new_figure(folder / "reliability.png", title, (6.2, 5), note) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], "--", color=MUTED, label="as accurate as confident")
        axes.errorbar(confidence, accuracy, np.abs(ends - accuracy), fmt="o-", color=VAL,
                      label="accuracy of a bin, at its mean confidence")
        axes.set(xlabel="confidence: the probability of the predicted class",
                 ylabel="accuracy, 95 % interval")
        axes.legend()


def faithfulness(result: Json, folder: Path) -> None:
    """Saves deletion and insertion curves of every kind of map with their 95 % intervals."""
    test = result["faithfulness"]
    percents = 100 * np.array(test["shares"])
    note = say("Means over {faithfulness[images]:,} images, 95 % intervals. {heat_maps[where]}.",
               **result)
    title = f"Do the heat maps show what decides?\n{result['title']}"
    with new_figure(folder / "faithfulness.png", title, (8.4, 4.4), note) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, way, better in zip(panels, ("deletion", "insertion"), ("lower", "higher")):
            for (kind, curves), colour in zip(test["curves"].items(), (VAL, ACCENT, MUTED, TRAIN)):
                # Ends that are None become nan, which is not drawn.
                mean, low, high = (np.array([point[key] for point in curves[way]], float)
                                   for key in ("mean", "low", "high"))
                axes.plot(percents, mean, ".-", color=colour, label=OTHERS[kind])
                axes.fill_between(percents, low, high, color=colour, alpha=0.18)
            axes.set(title=f"{way}: {better} is better", xlabel="pixels changed, hottest first (%)",
                     ylim=(0, None))
        panels[0].set_ylabel("probability of the predicted class")
        panels[0].legend()


def cases(result: Json, folder: Path, figure: str, images: ndarray,
          maps: Sequence[ndarray]) -> None:
    """Saves one of CASES: the images of `result["shown"][figure]` with their heat maps.

    Args:
        images: (N, 3, H, W) uint8.
        maps: (N, h, w) in [0, 1] each: the evidence for the true and for the predicted class.
    """
    names = shorten(result["classes"], 12)
    parts = []
    for row, image, true, predicted in zip(result["shown"][figure][:MOST], images, *maps):
        words = {key: names.get(value, value) for key, value in row.items()}
        # The file's own name: beside its class the folder says nothing.
        words["file"] = Path(row["name"]).name[-20:]
        first = in_colours(true) if figure == "heat_right" else overlay(image, true)
        pictures = np.hstack([enlarged(image), first, overlay(image, predicted)])
        parts.append((pictures, say(CAPTION, **words)))
    strips(parts, folder / f"{figure}.png", f"{CASES[figure]}\n{result['title']}",
           f"{result['heat_maps']['where']}.\n{HEAT_NOTE}")


def strips(parts: Sequence[Strip], path: Path, title: str, note: str) -> None:
    """Saves strips of pictures with words below, three side by side."""
    grid = -(-len(parts) // 3), min(3, len(parts))
    widest = max(strip.shape[1] for strip, _ in parts)
    tiles = np.full((*grid, 3, PX, widest + 50), 255, np.uint8)
    for place, (strip, _) in zip(np.ndindex(grid), parts):
        tiles[place][:, :, : strip.shape[1]] = strip.transpose(2, 0, 1)
    with mosaic(path, title, tiles, PX, below=0.3) as axes:
        for (row, column), (_, caption) in zip(np.ndindex(grid), parts):
            axes.text(column, row + 0.79, caption, va="top", fontsize=7)
        axes.set_xlabel(note, fontsize=7, color=MUTED)


def enlarged(image: ndarray) -> ndarray:
    """(PX, PX, 3) uint8 of a (3, H, W) uint8 image."""
    # Lanczos, so that a small picture can be recognised.
    return cv2.resize(image.transpose(1, 2, 0), (PX, PX), interpolation=cv2.INTER_LANCZOS4)


def warmth(heat: ndarray) -> ndarray:
    """(PX, PX) in [0, 1] of an (h, w) heat map: 1 at HOTTEST times the map's mean and above.

    So all pictures have one scale, on which a map without a place is dark all over, as is one
    without evidence.
    """
    heat = np.asarray(heat, np.float32)
    heat = heat / max(heat.mean(), 1e-12)
    return np.clip(cv2.resize(heat, (PX, PX), interpolation=cv2.INTER_LINEAR) / HOTTEST, 0, 1)


def in_colours(heat: ndarray) -> ndarray:
    """(PX, PX, 3) uint8 of an (h, w) heat map."""
    return colormaps["inferno"](warmth(heat), bytes=True)[:, :, :3]  # without alpha


def overlay(image: ndarray, heat: ndarray) -> ndarray:
    """(PX, PX, 3) uint8: the picture in grey, and over it the colours of its heat."""
    grey = 0.7 * enlarged(image).mean(2, keepdims=True)
    share = 0.75 * warmth(heat)[:, :, None]
    return ((1 - share) * grey + share * in_colours(heat)).astype(np.uint8)
