"""Figures of an analysis: confusions, calibration, classes, faithfulness, strips of pictures.

`result` is the content of analysis.json; each figure takes its file's name from its subject.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.colors import PowerNorm
from numpy import ndarray

from common.analysis.scores import best_and_worst
from common.files import Json
from common.plots import ACCENT, MAX_CLASSES, MUTED, TRAIN, VAL, new_figure, short
from common.words import percent

Strip = tuple[Sequence[ndarray], Sequence[str], str]  # pictures, words above each, words below
KINDS = {
    "gradcam": ("Grad-CAM", VAL),
    "random": ("random maps", MUTED),
    "centre": ("the centre first", TRAIN),
}
CASES = {  # figure: (what it shows, strips a row)
    "errors": ("The errors with the highest loss", 5),
    "gradcam_right": ("Where it looks when it is right: image, heat map, overlay", 3),
    "gradcam_wrong": ("Where it looks when it is wrong", 2),
    "gradcam_planes": ("Where it looks when it takes a plane for a ship", 2),
}
MOST = 60  # strips in a figure
EVEN = 0.1  # a map whose cells differ by less shows no place
HEAT_NOTE = (
    "Colours reach from each map's own weakest place to its strongest: compare places, not maps. "
    "Grey: no place holds more evidence than another, or none holds any."
)


def confusion(result: Json, folder: Path) -> None:
    """Saves the confusion matrix, rows true: counts, and the percent of the row beneath.

    Beyond 20 classes it shows the 20 that take part in the most errors.
    """
    counts, classes = np.array(result["confusion"]), result["classes"]
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    errors = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
    ranked = np.argsort(-errors, kind="stable")
    shown = np.sort(ranked[:MAX_CLASSES])
    cells = np.ix_(shown, shown)
    k, names = len(shown), [short(classes[i]) for i in shown]
    note = "Images, and their percentage of all images of the true class."
    title = f"Confusion matrix, {k} of {len(classes):,} classes\n{result['title']}"
    side = 2.2 + 0.62 * k
    with new_figure(folder / "confusion.png", title, (side, side), note) as figure:
        axes = figure.subplots()
        # Stretched at the low end, so that single errors show.
        axes.imshow(share[cells], cmap="Blues", norm=PowerNorm(0.4, 0, 100))
        for (y, x), part in np.ndenumerate(share[cells]):
            if part:
                words = f"{counts[cells][y, x]:,}\n{part:.1f} %"
                ink = "white" if part > 30 else "black"
                axes.text(x, y, words, ha="center", va="center", color=ink, fontsize=7)
        axes.set_xticks(range(k), names, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(k), names)
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.grid(False)
        axes.spines[:].set_visible(False)


def reliability(result: Json, folder: Path) -> None:
    """Saves the reliability diagram over the counts of its bins."""
    table = result["calibration"]
    used = np.flatnonzero(table["count"])
    left, count, confidence, accuracy = (
        np.array(table[key])[used] for key in ("edges", "count", "confidence", "accuracy"))
    ends = np.array([table["accuracy_interval_95"][i] for i in used])
    title = f"Is it as sure as it is right?\n{result['title']}"
    numbers = f"ECE {percent(table['ece'])}, mean confidence {percent(table['mean_confidence'])}"
    bars = {"width": 1 / table["bins"], "align": "edge", "edgecolor": "white"}
    with new_figure(folder / "reliability.png", title, (6.2, 6.4)) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], "--", color=MUTED, linewidth=1.2, label="as sure as right")
        upper.bar(left, accuracy, color="#BFDCEC", label="accuracy of a bin", **bars)
        reach = np.abs(ends.T - accuracy)
        upper.errorbar(confidence, accuracy, reach, fmt="o", color=VAL, capsize=2,
                       label="its 95 % interval, at its mean confidence")
        upper.set(title=numbers, ylabel="accuracy", ylim=(0, 1.02))
        lower.bar(left, count, color=MUTED, **bars)
        lower.set(xlabel="confidence: the probability of the predicted class", ylabel="images")
        lower.set(xlim=(0, 1), yscale="log", ylim=(0.7, None))
        figure.align_ylabels()
        figure.legend(loc="outside lower center", ncols=3, fontsize=8)


def recall_and_precision(result: Json, folder: Path) -> None:
    """Saves recall of classes with 95 % intervals, and precision as a mark; best on top."""
    rows = best_and_worst(result["per_class"])
    at = range(len(rows))
    recall, precision = (
        np.array([row[key] for row in rows], float)  # nan: a class that is never predicted
        for key in ("recall", "precision"))
    ends = np.array([row["recall_interval_95"] for row in rows])
    names = [f"{short(row['class'])}  {percent(row['recall'], 1)}" for row in rows]
    title = (f"How much of a class is found, {len(rows)} of {len(result['per_class']):,} classes\n"
             f"{result['title']}")
    with new_figure(folder / "per_class.png", title, (7, 1.6 + 0.33 * len(rows))) as figure:
        axes = figure.subplots()
        axes.errorbar(100 * recall, at, xerr=100 * np.abs(ends.T - recall), fmt="o", color=VAL,
                      capsize=2.5, label="recall, the share found, with its 95 % interval")
        axes.plot(100 * precision, at, "|", color=ACCENT, ms=12, mew=3,
                  label="precision, the share of its predictions that is right")
        axes.set(xlabel="percent")
        axes.set_yticks(at, names)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)


def faithfulness(result: Json, folder: Path) -> None:
    """Saves deletion and insertion curves of every kind of map with their 95 % intervals."""
    test = result["faithfulness"]
    percents = 100 * np.array(test["fraction"])
    note = f"Means over {test['images']:,} images, 95 % intervals. {result['gradcam']['where']}."
    better = {"deletion": "lower is better", "insertion": "higher is better"}
    title = f"Do the heat maps show what decides?\n{result['title']}"
    with new_figure(folder / "faithfulness.png", title, (8.4, 4.4), note) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (way, words) in zip(panels, better.items()):
            for kind, (label, colour) in KINDS.items():
                curve = test["curves"][kind][way]
                # Ends that are None become nan, which is not drawn.
                low, high = np.array(curve["low"], float), np.array(curve["high"], float)
                axes.plot(percents, curve["mean"], ".-", color=colour, label=label)
                axes.fill_between(percents, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.set(title=f"{way}: {words}", xlabel="pixels changed, hottest first (%)")
            axes.set(xlim=(0, 100), ylim=(0, None))
        panels[0].set_ylabel("probability of the predicted class")
        panels[0].legend(loc="upper right")


def cases(result: Json, folder: Path, figure: str, images: ndarray,
          maps: Sequence[ndarray]) -> None:
    """Saves one of CASES: the images of `result["shown"][figure]` with their heat maps.

    Args:
        images: (N, 3, H, W) uint8.
        maps: (N, h, w) in [0, 1] each, the evidence for the true and for the predicted class.
    """
    parts = []
    rows = result["shown"][figure][:MOST]
    for row, image, true_map, predicted_map in zip(rows, images, *maps):
        true, predicted = short(row["true"], 10), short(row["predicted"], 10)
        sure = percent(row["confidence"], 1)
        # The file's own name: beside its class the folder says nothing.
        file = Path(row["name"]).name[-20:]
        place = f"index {file}" if file.isdecimal() else file
        pictures, heads = explained(image, predicted_map), []
        words = f"T: {true} → P: {predicted} {sure}, {place}"
        if figure == "errors":
            pictures = pictures[:1]
            second = f"{short(row['second'], 10)} {percent(row['second_confidence'], 1)}"
            words = (f"T: {true} → P: {predicted}\n{sure}, {second}\n"
                     f"{place}, loss {row['loss']:.2f}")
        elif figure != "gradcam_right":
            pictures[1] = explained(image, true_map)[2]
            heads = ["image", f"{true}: true", f"{predicted}: predicted"]
        parts.append((pictures, heads, words))
    what, columns = CASES[figure]
    note = "" if figure == "errors" else f"{result['gradcam']['where']}.\n{HEAT_NOTE}"
    strips(parts, columns, folder / f"{figure}.png", f"{what}\n{result['title']}", note)


def strips(parts: Sequence[Strip], columns: int, path: Path, title: str, note: str = "") -> None:
    """Saves strips of pictures, an inch each, with words above and below, in `columns`."""
    columns = min(columns, len(parts))
    rows = -(-len(parts) // columns)
    wide = 0.35 + max(len(pictures) for pictures, _, _ in parts)
    lines = max(len(heads[:1]) + caption.count("\n") for _, heads, caption in parts)
    high = 1.25 + 0.14 * lines
    size = (1.1 * columns * wide, 1.1 * rows * high + (0.9 if note else 0.5))
    with new_figure(path, title, size, note) as figure:
        axes = figure.subplots()
        for number, (pictures, heads, caption) in enumerate(parts):
            row, column = divmod(number, columns)
            x, y = column * wide, row * high
            for i, picture in enumerate(pictures):
                axes.imshow(picture, extent=(x + i, x + i + 0.97, y + 0.97, y))
            for i, head in enumerate(heads):
                axes.text(x + i + 0.48, y - 0.03, head, ha="center", fontsize=7)
            axes.text(x, y + 1, caption, va="top", fontsize=7, linespacing=1.3)
        axes.set(xlim=(0, columns * wide), aspect="equal")
        axes.set_ylim(rows * high - 0.1, -0.15)
        axes.axis("off")


def explained(image: ndarray, heat: ndarray, px: int = 160) -> list[ndarray]:
    """Image, heat map and overlay, (px, px, 3) uint8 each; grey where no place stands out.

    In the overlay the picture fades where the map is hot. Heat counts from the map's weakest
    place, so that a map that is warm all over does not hide the picture.

    Args:
        image: (3, H, W) uint8; heat (h, w) in [0, 1].
    """
    # Lanczos, so that a small picture can be recognised.
    plain = cv2.resize(image.transpose(1, 2, 0), (px, px), interpolation=cv2.INTER_LANCZOS4)
    heat = cv2.resize(np.asarray(heat), (px, px))
    above = (heat - heat.min()).clip(0, 1)
    if above.max() < EVEN:
        grey = plain.mean(2, keepdims=True).repeat(3, 2).astype(np.uint8)
        return [plain, np.full_like(plain, 190), grey]
    colour = cv2.applyColorMap((255 * above).astype(np.uint8), cv2.COLORMAP_INFERNO)
    colour = colour[:, :, ::-1]  # OpenCV gives BGR
    share = 0.75 * above[:, :, None]
    return [plain, colour, ((1 - share) * plain + share * colour).astype(np.uint8)]
