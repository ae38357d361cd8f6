"""Pure functions from a step to its learning-rate factor: no scheduler object, so no scheduler state to lose."""
import math


from common.config import Stage


def lr_factor(step: int, total: int, schedule: str, warmup: int = 0) -> float:
    """Factor in [0, 1] of the peak learning rate at `step` of `total` (0-based; all in steps).

    Linear warm-up over the first `warmup` steps, then constant, or a half cosine that reaches 0 after the last step
    (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts).
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def epoch_lrs(stage: Stage, epoch: int, steps: int) -> list[float]:
    """Learning rate of each of the `steps` steps of `epoch` (0-based within the stage)."""
    total, warmup = stage.epochs * steps, round(stage.warmup_epochs * steps)
    return [stage.lr * lr_factor(epoch * steps + i, total, stage.schedule, warmup) for i in range(steps)]
