"""The learning rate as a function of the step: no scheduler object, so no state of it to lose."""
import math

from common.config import Stage


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
