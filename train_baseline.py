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


def train(recipe: Recipe, runtime: Runtime) -> None:
    """One stage and the one read of test."""
    # After the command line has been read: torch takes seconds to import.
    from common.training.session import begin, finish

    session = begin("train_baseline", recipe, runtime)
    if session is None:
        return
    session.fit(Stage("train", recipe.epochs, recipe.lr, recipe.schedule))
    finish(session)


def main() -> None:
    train(*parse(__doc__, RECIPES, SMOKE))


if __name__ == "__main__":
    run_script(main, "lower --batch-size, --image-size or --train-limit")
