"""Phase 3: EfficientNet-B2 with pretrained weights at 64 px, in two stages.

    python train_effnet.py --resize 2                  # CIFAR-10 and ImageNet weights are fetched on first use
    python train_effnet.py --resize 2 --smoke          # the whole path on drawn images, offline, under a minute
    python train_effnet.py --resize 2 --weights FILE   # other weights: a file, or a best.pt of this project
    python train_effnet.py --resize 2 --no-pretrained  # random weights: one stage, a higher learning rate, warmed up

Stage 1 trains the head on a frozen backbone; stage 2 trains everything at a tenth of that learning rate. The study's
report reached 93.8 % test accuracy with this recipe.
"""
import argparse
from dataclasses import replace

from common.config import Recipe, Runtime, Stage, parse
from common.errors import run_script

DEFAULT = Recipe(
    model="efficientnet_b2",
    pretrained=True,
    normalization="imagenet",
    dropout=0.3,
    batch_size=125,         # divides 45,000 and 4,500: no image is left out of an epoch
    optimizer="adamw",
    head_epochs=3,
    head_lr=1e-3,
    epochs=30,
    lr=1e-4,
    weight_decay=1e-2,
    schedule="cosine",
    label_smoothing=0.1,
    patience=10,
    crop_padding=4,
    flip=True,
    rotation=15,
    jitter=0.2,
    random_erasing=0.2,
)
# At 1e-4 random weights stay near chance for epochs, and a head has nothing to learn from a frozen random backbone.
SCRATCH = replace(DEFAULT, pretrained=False, lr=2e-3, warmup_epochs=1, head_epochs=0)
REPORT = replace(DEFAULT, batch_size=64, bn_momentum=0.01, decay_all=True)
RECIPES = {"default": DEFAULT, "scratch": SCRATCH, "report": REPORT}
SMOKE = {"efficientnet_b2": dict(synthetic=True, pretrained=False, lr=2e-3, train_limit=600, val_size=200, head_epochs=1, epochs=4, batch_size=30)}
FLAGS = ("resize", "head_epochs", "head_lr", "label_smoothing", "random_erasing", "patience", "weights", "pretrained")


def pick(given: argparse.Namespace, name: str) -> str:
    """Key of the recipe: `--no-pretrained` has one of its own, except among the report's settings."""
    return "scratch" if name == "default" and getattr(given, "pretrained", True) is False else name


def train(recipe: Recipe, runtime: Runtime, script: str = "train_effnet", publish: bool = True) -> dict | None:
    """Both stages and the one read of test; returns the content of result.json, or None if the run was finished before."""
    from common.models.build import HEADS, freeze_all_but
    from common.training.session import begin, finish  # after the command line has been read: torch takes seconds to import

    work = begin(script, recipe, runtime)
    if work is None:
        return None
    head = Stage("head", recipe.head_epochs, recipe.head_lr)
    tune = Stage("finetune", recipe.epochs, recipe.lr, recipe.schedule, recipe.warmup_epochs, recipe.patience)
    total = head.epochs + tune.epochs

    freeze_all_but(work.model, HEADS[recipe.model])
    work.fit(head, total)
    work.model.requires_grad_(True)
    work.fit(tune, total)
    return finish(work, publish)


def main() -> None:
    recipe, runtime = parse(__doc__, RECIPES, SMOKE, FLAGS, pick)
    train(recipe, runtime)


if __name__ == "__main__":
    run_script(main)
