"""Steps and runs on drawn images, small enough for tests, on any device."""
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Module

from common.config import Recipe, Runtime
from common.data.augment import Preprocess
from common.data.sources import DRAWN_CLASSES, draw
from common.data.splits import Splits, as_split, divide
from common.models.build import build
from common.training.loop import TrainStep, make_optimizer, set_train_mode
from common.training.run import Run

PLAIN = Recipe(model="simple_cnn", epochs=2, batch_size=20, lr=1e-2)
# Every augmentation but CutMix, which changes the labels, too.
AUGMENTED = dict(crop_padding=4, flip=True, rotation=15, jitter=0.2, random_erasing=0.2)


@cache
def drawn_splits(device: str = "cpu") -> Splits:
    """400 train / 100 val / 100 test drawn images, which no test changes."""
    pools = {"train": as_split(*draw(50, seed=0)), "test": as_split(*draw(10, seed=1))}
    splits = divide(pools, DRAWN_CLASSES, "synthetic", val_size=100)
    return splits.to(torch.device(device))


def new_model(recipe: Recipe = PLAIN, device: str = "cpu") -> Module:
    """The recipe's network as the scripts make it, its weights drawn by the recipe's seed."""
    torch.manual_seed(recipe.seed)
    return build(**arch_of(recipe)).to(device, memory_format=torch.channels_last)


def arch_of(recipe: Recipe) -> dict[str, object]:
    """Arguments of `build` for the drawn images."""
    return {"name": recipe.model, "input_size": 32 * recipe.resize, "stem": recipe.stem,
            "dropout": recipe.dropout, "bn_momentum": recipe.bn_momentum}


def make_step(recipe: Recipe = PLAIN, model: Module | None = None,
              amp: torch.dtype | None = None, device: str = "cpu") -> TrainStep:
    """A step of a fresh network, or of `model`, on the drawn images."""
    splits, model = drawn_splits(device), model or new_model(recipe, device)
    set_train_mode(model)
    prepare = Preprocess(splits.mean, splits.std, recipe, torch.device(device))
    optimizer = make_optimizer(model, recipe, torch.device(device))
    return TrainStep(model, splits.train, prepare, optimizer, recipe.batch_size,
                     recipe.label_smoothing, amp)


def do(step: TrainStep, steps: int, lr: float = 1e-2, epoch: int = 7,
       do_step: Callable[[], object] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """(losses, state dict) after the first steps of an epoch, each done by `do_step` or itself."""
    step.start_epoch(epoch, [lr] * step.steps)
    for _ in range(steps):
        (do_step or step)()
    return step.losses[:steps], step.model.state_dict()


def make_run(folder: Path, recipe: Recipe = PLAIN, splits: Splits | None = None,
             model: Module | None = None, amp: torch.dtype | None = None,
             device: str = "cpu") -> Run:
    """A run in `folder` that has not begun; what its checkpoints say of it is the least there is
    to say."""
    folder.mkdir(parents=True, exist_ok=True)
    splits, model = splits or drawn_splits(device), model or new_model(recipe, device)
    prepare = Preprocess(splits.mean, splits.std, recipe, torch.device(device))
    probe = prepare.clean(splits.val.images[:4]).cpu()
    card = {"arch": arch_of(recipe), "probe_inputs": probe}
    return Run("script", folder, recipe, Runtime(), splits, model, prepare, card, amp)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two state dicts are the same to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
