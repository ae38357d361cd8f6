"""Phase 1: a three-layer CNN without regularisation, to see what overfitting looks like.

    python train_baseline.py            # 50 epochs on CIFAR-10, fetched on first use
    python train_baseline.py --smoke    # the whole path on drawn images, offline, under a minute

SGD at 1e-3, momentum 0.9, batch 64, no augmentation, no decay. Expected: about 73 % test accuracy,
train accuracy near 100 %, and a val loss that turns upward long before the end.
"""
from common.config import Recipe, Runtime, Stage, parse
from common.errors import run_script

DEFAULT = Recipe(
    model="simple_cnn",
    epochs=50,
    batch_size=64,
    optimizer="sgd",
    lr=1e-3,
    momentum=0.9,
    weight_decay=0.0,
    schedule="constant",
    # To [-1, 1], as in the report: with the data's own statistics epoch 1 is already at 34 % val.
    normalization="half",
)
RECIPES = {"default": DEFAULT, "report": DEFAULT}  # the report's recipe is the point of this phase
SMOKE = {"simple_cnn": dict(synthetic=True, train_limit=3000, val_size=500, epochs=6, lr=1e-2)}
FLAGS = ("momentum",)


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
    run = open_run("train_baseline", recipe, runtime, splits, model)
    if run.finished:
        return
    load_start(run)  # pretrained weights, random ones, or where an earlier process stopped
    fit(run, Stage("train", recipe.epochs, recipe.lr, recipe.schedule))
    finish(run)


def main() -> None:
    train(*parse(__doc__, RECIPES, SMOKE, FLAGS))


if __name__ == "__main__":
    run_script(main, "lower --batch-size, --image-size or --train-limit")
