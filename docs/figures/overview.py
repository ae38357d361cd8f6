"""The picture on README's first page, from the files of the runs: what each step brings beside the
first study, and what a network sees in six test images.

    PYTHONPATH=. python docs/figures/overview.py CKPT    # a best.pt, and the data of its training
"""
import json
import sys
from pathlib import Path
from statistics import fmean

import torch

from common.analysis.figures import enlarged, overlay
from common.analysis.inputs import open_splits, open_subject
from common.config import Runtime
from common.plots import MUTED, VAL, new_figure

RESULTS = Path("docs/results")
STEPS = (  # what it is called, its runs (one a seed), the first study's percent
    ("SimpleCNN", [f"train_baseline/simple_cnn-seed{seed}" for seed in range(3)], 73.30),
    ("ImprovedCNN: BatchNorm,\naugmentation, cosine",
     [f"train_improved/improved_cnn-seed{seed}" for seed in range(3)], 84.05),
    ("SE-ResNet18, ImageNet stem:\nends in a 1×1 map",
     ["train_improved/se_resnet18-imagenet-seed0"], 83.58),
    ("SE-ResNet18, CIFAR stem:\nends in a 4×4 map", ["train_improved/se_resnet18-cifar-seed0"],
     None),
    ("EfficientNet-B2, 64 px,\nfrom scratch", ["train_effnet/b2-64px-scratch"], 83.74),
    ("… from ImageNet, 32 px", ["train_effnet/b2-32px-lite2-30"], 85.99),
    ("… 64 px", ["train_effnet/b2-lite2-cutmix-60"], 93.81),
    ("… 96 px", ["train_effnet/b2-96px-lite2"], None),
)
SHOWN = ("bird", "cat", "deer", "horse", "ship", "truck")  # of each the first test image


def main() -> None:
    """Save docs/figures/overview.png."""
    subject = open_subject(sys.argv[1])
    test = open_splits(subject, Runtime()).test
    some = [int((test.labels == subject.classes.index(name)).nonzero()[0]) for name in SHOWN]
    images = test.images[some]
    probs, preds = subject.probs(images).max(1)
    heat = subject.heat(images, preds)

    with new_figure(Path("docs/figures/overview.png"), "", (7.2, 7.6), layout=None) as figure:
        chart = figure.add_axes((0.34, 0.40, 0.54, 0.54))
        for y, (_, runs, first) in enumerate(STEPS):
            files = (RESULTS / run / "result.json" for run in runs)
            top1 = 100 * fmean(json.loads(file.read_text())["test_top1"] for file in files)
            if first:
                chart.plot([first, top1], [y, y], color=MUTED, lw=1.2, zorder=1)
                # Above the disc, which would hide it where the two studies agree.
                chart.plot(first, y, "D", color="white", markeredgecolor="black", markersize=8,
                           zorder=3)
            chart.plot(top1, y, "o", color=VAL, markersize=12)
            # Right of the axis, where no point can lie beneath.
            chart.text(104.8, y, f"{top1:.2f}", ha="right", va="center", color=VAL, fontsize=13,
                       fontweight="bold")
        chart.plot([], [], "o", color=VAL, markersize=12, label="this study")
        chart.plot([], [], "D", color="white", markeredgecolor="black", markersize=8,
                   label="the first study (SimpleCNN, SE-ResNet18: val)")
        chart.set_yticks(range(len(STEPS)), [name for name, *_ in STEPS], fontsize=11)
        chart.set(xlim=(70, 100), ylim=(len(STEPS) + 0.7, -0.5))
        chart.tick_params(axis="x", labelsize=11)
        chart.set_title("CIFAR-10: test accuracy (%) of each step", fontsize=14,
                        fontweight="bold", x=0.22)
        chart.legend(loc="lower left", fontsize=10)
        figure.text(0.02, 0.335, "What EfficientNet-B2 sees: evidence for the class it names",
                    fontsize=13, fontweight="bold")
        for column, (image, warm) in enumerate(zip(images.numpy(), heat.numpy())):
            for row, picture in enumerate((enlarged(image), overlay(image, warm))):
                place = figure.add_axes((0.02 + 0.162 * column, 0.152 - 0.148 * row, 0.15, 0.142))
                place.imshow(picture)
                place.axis("off")
                if row == 0:
                    words = f"{subject.classes[preds[column]]} {100 * probs[column]:.0f} %"
                    place.set_title(words, fontsize=11, color=MUTED, pad=3)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
