"""The picture on README's first page, from the files of the runs: what each step brings beside the
first study, and what a network sees in six test images.

    PYTHONPATH=. python docs/figures/overview.py CKPT    # of train_effnet.py; data as in training
"""
import json
import sys
from pathlib import Path
from statistics import fmean

import numpy as np

from common.analysis.figures import overlay
from common.analysis.inputs import heat_maps, open_splits, open_subject, read_device
from common.config import Runtime
from common.plots import ACCENT, MUTED, VAL, new_figure

RESULTS = Path("docs/results")
ARMS = "ablation/efficientnet_b2-x2-lite2-epochs7/EfficientNetB2_"
STEPS = (  # what it is called, its runs (a seed each), the first study's percent
    ("SimpleCNN", ["train_baseline/simple_cnn-seed0"], 73.30),
    ("+ BatchNorm, augmentation,\ncosine: ImprovedCNN",
     [f"train_improved/improved_cnn-seed{seed}" for seed in range(3)], 84.05),
    ("SE-ResNet18, ImageNet stem:\na 1×1 map", ["train_improved/se_resnet18-imagenet-seed0"], 83.58),
    ("SE-ResNet18, CIFAR stem:\na 4×4 map", ["train_improved/se_resnet18-cifar-seed0"], None),
    ("EfficientNet-B2, 64 px,\nfrom scratch, 8 epochs", [f"{ARMS}NoPretrain-seed0"], 83.74),
    ("from ImageNet, 32 px,\n8 epochs", [f"{ARMS}NoResize-seed0"], 85.99),
    ("from ImageNet, 64 px", ["train_effnet/b2-lite2-cutmix-60"], 93.81),
    ("from ImageNet, 96 px", ["train_effnet/b2-96px-lite2"], None),
)
CLASSES_SHOWN = ("bird", "cat", "deer", "horse", "ship", "truck")  # of each the first test image
