"""Figures of an analysis: confusions, calibration, classes, faithfulness, strips of pictures.

`result` is the content of analysis.json; each figure takes its file's name from its subject.
"""
import itertools
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from numpy import ndarray

from common.analysis.inputs import CAMS
from common.analysis.scores import best_and_worst
from common.analysis.sentences import say
from common.files import Json
from common.metrics import wilson_interval
from common.plots import ACCENT, MAX_CLASSES, MUTED, TRAIN, VAL, new_figure
from common.words import shorten

Strip = tuple[list[tuple[str, ndarray]], str]  # pictures with words above each, words below
KINDS = {
    "hirescam": (CAMS["hirescam"], VAL),
    "gradcam": (CAMS["gradcam"], ACCENT),
    "chance": ("another image's map", MUTED),
    "centre": ("the centre first", TRAIN),
}
CAPTION = "T: {true} → P: {predicted} {confidence:%1}\n{place}"
HEADS = ("image", "true: {true}", "predicted: {predicted}")
CASES = {  # figure: (what it shows, strips a row, words above each picture, words below)
    "errors": (
        "The errors with the highest loss", 5, ("",), "T: {true} → P: {predicted}\n"
        "{confidence:%1}, {second} {second_confidence:%1}\n{place}, loss {loss:.2f}",
    ),
    "heat_right": ("Where it looks when it is right", 3, ("image", "heat", "both"), CAPTION),
    "heat_wrong": ("Where it looks when it is wrong", 2, HEADS, CAPTION),
    "heat_planes": ("Where it looks when it takes a plane for a ship", 2, HEADS, CAPTION),
    "heat_methods": ("Two kinds of heat maps", 3, ("image", *CAMS.values()), CAPTION),
}
MOST = 60  # strips in a figure
PX = 160  # side of a picture
UNIT = 165  # pixels of a picture with its margin
HOTTEST = 5  # times its image's average heat, where the scale of colours ends
HEAT_NOTE = (
    f"One scale of colours for all pictures: from no heat to {HOTTEST} times the average of the "
    "picture, or more."
)


def confusion(result: Json, folder: Path) -> None:
    """Saves the confusion matrix, rows true: counts, and the percent of the row beneath.

    Beyond 20 classes it shows the 20 that take part in the most errors.
    """
    counts = np.array(result["confusion"])
    classes = result["classes"]
    errors = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
    shown = np.sort(np.argsort(-errors, kind="stable")[:MAX_CLASSES])
    cells = np.ix_(shown, shown)
    share = (counts / counts.sum(1, keepdims=True).clip(1))[cells]
    counts = counts[cells]
    k = len(shown)
    names = [*shorten([classes[i] for i in shown], 18).values()]
    title = f"Confusion matrix{_part(k, len(classes))}\n{result['title']}"
    side = 2.2 + 0.62 * k
    with new_figure(folder / "confusion.png", title, (side, side),
                    "Images, and their percentage of all images of the true class.") as figure:
        axes = figure.subplots()
        # Stretched at the low end, so that single errors show.
        axes.imshow(share**0.4, cmap="Blues", vmin=0, vmax=1)
        for (y, x), part in np.ndenumerate(share):
            if part:
                words = f"{counts[y, x]:,}\n{100 * part:.1f} %"
                ink = "white" if part > 0.3 else "black"
                axes.text(x, y, words, ha="center", va="center", color=ink, fontsize=7)
        axes.set_xticks(range(k), names, rotation=40, ha="right")
        axes.set(xlabel="predicted class", ylabel="true class", yticks=range(k), yticklabels=names)
        axes.grid(False)


def reliability(result: Json, folder: Path) -> None:
    """Saves the reliability diagram over the counts of its bins."""
    table = result["calibration"]
    used = np.flatnonzero(table["count"])
    count, confidence, accuracy = (
        np.array(table[key])[used] for key in ("count", "confidence", "accuracy"))
    ends = np.array([wilson_interval(share * n, n) for share, n in zip(accuracy, count)])
    title = f"Is it as accurate as it is confident?\n{result['title']}"
    with new_figure(folder / "reliability.png", title, (6.2, 6.4)) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], "--", color=MUTED, label="as accurate as confident")
        upper.errorbar(confidence, accuracy, np.abs(ends.T - accuracy), fmt="o-", color=VAL,
                       label="accuracy of a bin, at its mean confidence")
        upper.set(title=say("ECE {ece:%}, mean confidence {mean_confidence:%}", **table),
                  ylabel="accuracy, 95 % interval")
        upper.legend()
        lower.bar(confidence, count, 0.02, color=MUTED)
        lower.set(xlabel="confidence: the probability of the predicted class", ylabel="images",
                  yscale="log", ylim=(0.7, None))


def recall_and_precision(result: Json, folder: Path) -> None:
    """Saves recall of classes with 95 % intervals, and precision as a mark; best on top."""
    rows = best_and_worst(result["per_class"])
    recall, precision, ends = (
        100 * np.array([row[key] for row in rows], float)  # nan: a class that is never predicted
        for key in ("recall", "precision", "recall_interval_95"))
    at = range(len(rows))
    short = shorten([row["class"] for row in rows], 18)
    names = [say("{0}  {recall:%1}", short[row["class"]], **row) for row in rows]
    title = (f"How much of a class is found{_part(len(rows), len(result['per_class']))}\n"
             f"{result['title']}")
    with new_figure(folder / "per_class.png", title, (7, 1.6 + 0.33 * len(rows))) as figure:
        axes = figure.subplots()
        axes.errorbar(recall, at, xerr=np.abs(ends.T - recall), fmt="o", color=VAL,
                      label="recall, the share found, with its 95 % interval")
        axes.plot(precision, at, "|", color=ACCENT, ms=12, mew=3,
                  label="precision, the share of its predictions that is right")
        axes.set(xlabel="percent", yticks=at, yticklabels=names)
        axes.invert_yaxis()
        figure.legend(loc="outside lower center", ncols=2)


def _part(shown: int, classes: int) -> str:
    """How many of the classes a figure shows, where not all."""
    return f", {shown} of {classes:,} classes" if shown < classes else ""


def faithfulness(result: Json, folder: Path) -> None:
    """Saves deletion and insertion curves of every kind of map with their 95 % intervals."""
    curves = result["faithfulness"]["curves"]
    percents = 100 * np.array(result["faithfulness"]["shares"])
    note = say("Means over {faithfulness[images]:,} images, 95 % intervals. {heat_maps[where]}.",
               **result)
    title = f"Do the heat maps show what decides?\n{result['title']}"
    with new_figure(folder / "faithfulness.png", title, (8.4, 4.4), note) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, way, better in zip(panels, ("deletion", "insertion"), ("lower", "higher")):
            for kind, (label, colour) in KINDS.items():
                curve = curves[kind][way]
                # Ends that are None become nan, which is not drawn.
                mean, low, high = (np.array(curve[key], float) for key in ("mean", "low", "high"))
                axes.plot(percents, mean, ".-", color=colour, label=label)
                axes.fill_between(percents, low, high, color=colour, alpha=0.18)
            axes.set(title=f"{way}: {better} is better", xlabel="pixels changed, hottest first (%)",
                     ylim=(0, None))
        panels[0].set_ylabel("probability of the predicted class")
        panels[0].legend()


def cases(result: Json, folder: Path, figure: str, images: ndarray,
          maps: Sequence[Sequence[ndarray]]) -> None:
    """Saves one of CASES: the images of `result["shown"][figure]` with their heat maps.

    Args:
        images: (N, 3, H, W) uint8.
        maps: (N, h, w) in [0, 1] each: of "errors" none, of "heat_right" the evidence for the
            predicted class, of "heat_methods" that of each of CAMS; else the evidence for the true
            and for the predicted class.
    """
    what, columns, heads, caption = CASES[figure]
    names = shorten(result["classes"], 12)
    parts = []
    for row, image, *heats in zip(result["shown"][figure][:MOST], images, *maps):
        # The file's own name: beside its class the folder says nothing.
        file = Path(row["name"]).name[-20:]
        words = {**row, "place": f"index {file}" if file.isdecimal() else file}
        for key in ("true", "predicted", "second"):
            words[key] = names[row[key]]
        pictures = [enlarged(image), *(overlay(image, heat) for heat in heats)]
        if figure == "heat_right":
            pictures.insert(1, in_colours(heats[0]))
        said = [say(head, **words) for head in heads]
        parts.append(([*zip(said, pictures)], say(caption, **words)))
    note = f"{result['heat_maps']['where']}.\n{HEAT_NOTE}" if maps else ""
    strips(parts, columns, folder / f"{figure}.png", f"{what}\n{result['title']}", note)


def strips(parts: Sequence[Strip], columns: int, path: Path, title: str, note: str) -> None:
    """Saves strips of pictures, an inch each, with words above and below, in `columns`; with a
    `note`, which tells of heat, also the scale of its colours."""
    columns = min(columns, len(parts))
    rows = -(-len(parts) // columns)
    wide = int((0.3 + max(len(pictures) for pictures, _ in parts)) * UNIT)
    high = int(1.5 * UNIT)
    # One large picture: matplotlib takes long over a hundred small ones.
    canvas = np.full((rows * high, columns * wide, 3), 255, np.uint8)
    size = columns * wide / 150, rows * high / 150 + (1.2 if note else 0.5)
    with new_figure(path, title, size, note) as figure:
        axes = figure.subplots()
        for number, (pictures, caption) in enumerate(parts):
            top, left = number // columns * high, number % columns * wide
            axes.text(left, top + UNIT, caption, va="top", fontsize=7)
            for x, (head, picture) in zip(itertools.count(left, UNIT), pictures):
                canvas[top:top + PX, x:x + PX] = picture
                axes.text(x + PX / 2, top - 5, head, ha="center", fontsize=7)
        axes.imshow(canvas)
        axes.set(ylim=(rows * high - 15, -25))
        axes.axis("off")
        if note:
            colours = ScalarMappable(Normalize(0, HOTTEST), "inferno")
            bar = figure.colorbar(colours, ax=axes, location="bottom", aspect=40, shrink=0.5,
                                  pad=0.01)
            bar.set_label("heat, in averages of its picture", fontsize=7)
            bar.ax.tick_params(labelsize=7)


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
    share = 0.75 * np.minimum(1, 1.2 * warmth(heat))[:, :, None]
    return ((1 - share) * grey + share * in_colours(heat)).astype(np.uint8)
