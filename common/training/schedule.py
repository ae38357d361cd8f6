"""What an epoch is made of, as pure functions: batch size, order of the images, learning rates,
seeds. No scheduler object and no generator lives on, so there is no state of theirs to lose."""
import math

import torch
from torch import Tensor

from common.config import Recipe, Stage

STEPS_AN_EPOCH = 20  # at least, where that leaves SMALLEST_BATCH images for each
SMALLEST_BATCH = 8  # BatchNorm's statistics of fewer images are noise


def batch_size_for(images: int, asked: int) -> int:
    """Images a step: at most `asked`, fewer on a small set, and the same in every step.

    An epoch then has at least 20 steps, where batches of 8 images allow that.
    """
    wanted = min(STEPS_AN_EPOCH, images // SMALLEST_BATCH)
    steps = max(wanted, math.ceil(images / asked))
    return math.ceil(images / steps)


def lr_for(lr: float, images: int, recipe: Recipe) -> float:
    """The learning rate for a set so small that its batches are smaller than the recipe's.

    In proportion to the batch for SGD (Goyal et al. 2017, arXiv:1706.02677), to its square root
    for AdamW (Malladi et al. 2022, arXiv:2205.10782).
    """
    smaller = batch_size_for(images, recipe.batch_size) / recipe.batch_size
    return lr * (smaller if recipe.optimizer == "sgd" else math.sqrt(smaller))


def lr_factor(step: int, total: int, schedule: str, warmup: int = 0) -> float:
    """Factor in [0, 1] of the peak learning rate at `step` of `total` (0-based; all in steps).

    Linear warm-up over the first `warmup` steps, then constant, or a half cosine that reaches 0
    after the last step (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts).
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    # From 0 at the peak to 1 after the last step.
    progress = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


def epoch_lrs(stage: Stage, epoch: int, steps: int) -> list[float]:
    """Learning rate of each of the `steps` steps of `epoch` (0-based within the stage).

    A warm-up takes at most half of the stage; in a shorter one it would never reach the peak.
    """
    # Of the stage, not of the run: the second stage has a warm-up and a descent of its own.
    total, first = stage.epochs * steps, epoch * steps
    warmup = min(round(stage.warmup_epochs * steps), total // 2)
    return [stage.lr * lr_factor(step, total, stage.schedule, warmup)
            for step in range(first, first + steps)]


def epoch_seed(seed: int, epoch: int) -> int:
    """Seed of every generator in `epoch` (1-based across stages) of a run with `seed`.

    Each epoch is seeded anew, so a resumed run repeats what the uninterrupted one does.
    """
    return seed * 1_000_003 + epoch


def epoch_order(images: int, batch_size: int, seed: int) -> Tensor:
    """Positions (steps, batch_size) int64 of an epoch's batches; on the CPU, as on every device.

    A CUDA graph knows one batch size, so a last batch that is not full is filled from the order's
    beginning: every image is shown, a few of them twice, others each epoch.
    """
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    batch_size = min(batch_size, images)
    steps = math.ceil(images / batch_size)
    return order.repeat(2)[: steps * batch_size].view(steps, batch_size)
