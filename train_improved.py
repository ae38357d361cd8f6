"""Phase 2: BatchNorm, augmentation and a cosine schedule; and SE-ResNet18, its failure and the cure.

    python train_improved.py                                       # ImprovedCNN, 50 epochs: about 89 % test accuracy
    python train_improved.py --recipe report                       # the report's settings: about 87 % test accuracy
    python train_improved.py --model se_resnet18 --stem imagenet   # the failure: 32 px shrink to a 1x1 map, 86 to 87 %
    python train_improved.py --model se_resnet18 --stem cifar      # the cure: a 4x4 map
    python train_improved.py --smoke                               # the whole path on drawn images, offline, under a minute

With ten times the parameters the failing network ends below ImprovedCNN. The report's ImprovedCNN reached
84.05 % on test; its SE-ResNet18 with the ImageNet stem stayed at 83.6 % on val.
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
CNN = replace(
    REPORT_CNN,
    lr=0.1,
    nesterov=True,
    decay_all=False,
    normalization="data",
    warmup_epochs=2,
    label_smoothing=0.1,
    jitter=0.1,
)
REPORT_RESNET = replace(REPORT_CNN, model="se_resnet18", random_erasing=0.2)
RESNET = replace(
    REPORT_RESNET,
    batch_size=125,
    lr=0.1,
    nesterov=True,
    decay_all=False,
    normalization="data",
    warmup_epochs=5,
    label_smoothing=0.1,
    jitter=0.0,
    random_erasing=0.25,
    dropout=0.2,
)
RECIPES = {"default": CNN, "report": REPORT_CNN, "se_resnet18 default": RESNET, "se_resnet18 report": REPORT_RESNET}
SMOKE = {
    "improved_cnn": dict(synthetic=True, train_limit=3000, val_size=500, epochs=5, warmup_epochs=0.5),
    "se_resnet18": dict(synthetic=True, train_limit=600, val_size=200, epochs=2, batch_size=50, warmup_epochs=0.5),
}
FLAGS = ("model", "stem", "dropout", "label_smoothing", "random_erasing", "pretrained", "weights")


def pick(given: argparse.Namespace, name: str) -> str:
    """Key of the recipe for the chosen model."""
    return f"se_resnet18 {name}" if getattr(given, "model", None) == "se_resnet18" else name


def train(recipe: Recipe, runtime: Runtime) -> dict | None:
    """One stage and the one read of test; returns the content of result.json, or None if the run was finished before."""
    from common.training.session import begin, finish  # after the command line has been read: torch takes seconds to import

    work = begin("train_improved", recipe, runtime)
    if work is None:
        return None
    work.fit(Stage("train", recipe.epochs, recipe.lr, recipe.schedule, recipe.warmup_epochs))
    return finish(work)


def main() -> None:
    recipe, runtime = parse(__doc__, RECIPES, SMOKE, FLAGS, pick)
    train(recipe, runtime)


if __name__ == "__main__":
    run_script(main)
