"""Phase 2: BatchNorm, augmentation and a cosine schedule; and SE-ResNet18, its failure and cure.

    python train_improved.py                                       # ImprovedCNN, about 90 % on test
    python train_improved.py --recipe report                       # the report's settings: 87 %
    python train_improved.py --model se_resnet18 --stem imagenet   # the failure: 86 to 87 %
    python train_improved.py --model se_resnet18 --stem cifar      # the cure, a 4x4 map: 94.5 %
    python train_improved.py --smoke                               # drawn images, offline, a minute

The stem made for ImageNet shrinks 32 px to a 1x1 map: with ten times the parameters the network
ends below ImprovedCNN. In the report: ImprovedCNN 84.05 % on test; that network 83.6 % on val.
"""
import argparse
from dataclasses import replace

from common.config import Recipe, Runtime, Stage, parse
from common.errors import run_script

REPORT_CNN = Recipe(
    model="improved_cnn",
    epochs=50,
    batch_size=128,
    optimizer="sgd",
    lr=1e-2,
    momentum=0.9,
    weight_decay=5e-4,
    decay_all=True,
    schedule="cosine",
    normalization="half",
    crop_padding=4,
    flip=True,
    jitter=0.2,
)
CNN = replace(  # chosen on val: docs/results, "Runs"
    REPORT_CNN,
    epochs=300,
    lr=0.1,
    nesterov=True,
    decay_all=False,
    normalization="data",
    warmup_epochs=2,
    label_smoothing=0.1,
    jitter=0.0,
    cutmix=0.5,
)
REPORT_RESNET = replace(REPORT_CNN, model="se_resnet18", random_erasing=0.2)
RESNET = replace(
    CNN,
    model="se_resnet18",
    epochs=50,
    batch_size=125,
    warmup_epochs=5,
    cutmix=0.0,
    random_erasing=0.25,
    dropout=0.2,
)
RECIPES = {
    "default": CNN,
    "report": REPORT_CNN,
    "se_resnet18 default": RESNET,
    "se_resnet18 report": REPORT_RESNET,
}
DRAWN = dict(synthetic=True, warmup_epochs=0.5)
SMOKE = {
    "improved_cnn": dict(DRAWN, train_limit=3000, val_size=500, epochs=5),
    "se_resnet18": dict(DRAWN, train_limit=600, val_size=200, epochs=2, batch_size=50),
}
FLAGS = ("model", "stem", "dropout", "warmup_epochs", "momentum", "label_smoothing",
         "crop_padding", "flip", "rotation", "jitter", "random_erasing", "cutmix", "pretrained",
         "weights")


def pick(given: argparse.Namespace, name: str) -> str:
    """Key of the recipe for the chosen model."""
    return f"se_resnet18 {name}" if getattr(given, "model", None) == "se_resnet18" else name


def train(recipe: Recipe, runtime: Runtime) -> None:
    """Data, network, run, one stage, and the one read of test, in this order."""
    # After the command line has been read: torch takes seconds to import.
    from common.data.sources import load_splits
    from common.training.lifecycle import build_model, finish, load_start, open_run
    from common.training.loop import fit
    from common.training.runtime import set_up

    device = set_up(runtime, recipe.seed, tune=not runtime.smoke)
    splits = load_splits(recipe, runtime).to(device)
    model = build_model(recipe, splits)
    run = open_run("train_improved", recipe, runtime, splits, model)
    if run.finished:
        return
    load_start(run)  # pretrained weights, random ones, or where an earlier process stopped
    fit(run, Stage("train", recipe.epochs, recipe.lr, recipe.schedule, recipe.warmup_epochs))
    finish(run)


def main() -> None:
    train(*parse(__doc__, RECIPES, SMOKE, FLAGS, pick))


if __name__ == "__main__":
    run_script(main, "lower --batch-size, --image-size or --train-limit")
