"""Phase 3: EfficientNet-B2 with pretrained weights at 64 px, in two stages.

    python train_effnet.py --resize 2                   # ImageNet weights are fetched on first use
    python train_effnet.py --resize 2 --weights lite2   # weights that come by pip: 94 % on test
    python train_effnet.py --resize 3 --weights lite2   # at 96 px: 95.6 %
    python train_effnet.py --resize 2 --weights FILE    # others: a file, or a best.pt of this study
    python train_effnet.py --resize 2 --no-pretrained   # random weights: one stage, warmed up
    python train_effnet.py --resize 2 --smoke           # drawn images, offline, under a minute

Stage 1 trains the head on a frozen backbone, stage 2 trains everything. The study's report reached
93.8 % test accuracy, with stage 2 at a tenth of stage 1's learning rate (--recipe report).
"""
import argparse
from dataclasses import replace

from common.config import Recipe, Runtime, Stage, parse
from common.errors import run_script

REPORT = Recipe(
    model="efficientnet_b2",
    pretrained=True,
    normalization="imagenet",
    dropout=0.3,
    bn_momentum=0.01,
    batch_size=64,
    optimizer="adamw",
    head_epochs=3,
    head_lr=1e-3,
    epochs=30,
    lr=1e-4,
    weight_decay=1e-2,
    decay_all=True,
    schedule="cosine",
    label_smoothing=0.1,
    patience=10,
    crop_padding=4,
    flip=True,
    rotation=15,
    jitter=0.2,
    random_erasing=0.2,
)
DEFAULT = replace(
    REPORT,
    bn_momentum=0.1,
    batch_size=125,
    decay_all=False,
    head_epochs=1,
    # The best on val of three rates tried: docs/results, "Runs".
    lr=2e-3,
)
# A head has nothing to learn from a frozen backbone of random weights.
SCRATCH = replace(DEFAULT, pretrained=False, warmup_epochs=1, head_epochs=0)
RECIPES = {"default": DEFAULT, "scratch": SCRATCH, "report": REPORT}
SMOKE = {"efficientnet_b2": dict(synthetic=True, pretrained=False, lr=2e-3, train_limit=600,
                                 val_size=200, head_epochs=1, epochs=4, batch_size=30)}
FLAGS = ("resize", "head_epochs", "head_lr", "label_smoothing", "crop_padding", "flip", "rotation",
         "jitter", "random_erasing", "cutmix", "patience", "weights", "pretrained")


def pick(given: argparse.Namespace, name: str) -> str:
    """Key of the recipe: `--no-pretrained` has its own, but not among the report's settings."""
    random = not getattr(given, "pretrained", True)
    return "scratch" if name == "default" and random else name


def train(recipe: Recipe, runtime: Runtime, script: str = "train_effnet",
          copy_best: bool = True) -> None:
    """Data, network, run, both stages, and the one read of test, in this order."""
    # After the command line has been read: torch takes seconds to import.
    from common.data.sources import load_splits
    from common.models.build import freeze_backbone
    from common.training.lifecycle import build_model, finish, load_start, open_run
    from common.training.loop import fit
    from common.training.runtime import set_up

    device = set_up(runtime, recipe.seed, tune=not runtime.smoke)
    splits = load_splits(recipe, runtime).to(device)
    model = build_model(recipe, splits)
    run = open_run(script, recipe, runtime, splits, model)
    if run.finished:
        return
    load_start(run)  # pretrained weights, random ones, or where an earlier process stopped
    freeze_backbone(model, recipe.model)
    fit(run, Stage("head", recipe.head_epochs, recipe.head_lr))
    model.requires_grad_(True)
    fit(run, Stage("finetune", recipe.epochs, recipe.lr, recipe.schedule, recipe.warmup_epochs,
                   recipe.patience))
    finish(run, copy_best)


def main() -> None:
    train(*parse(__doc__, RECIPES, SMOKE, FLAGS, pick))


if __name__ == "__main__":
    run_script(main, "lower --batch-size, --resize, --image-size or --train-limit")
