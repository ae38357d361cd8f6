"""Epochs and evaluation: `fit` runs one stage."""
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from common.config import Recipe, Stage
from common.data.augment import Preprocess
from common.data.splits import Split, Splits
from common.errors import Interrupted, RunError, deferred_signals
from common.training.graph import Forward, captured_forward, eager_forward
from common.training.run import Run
from common.training.schedule import epoch_lrs
from common.training.step import TrainStep, make_optimizer, seed_epoch, set_train_mode

EVAL_BATCH = 500  # divides 5,000, 10,000 and 45,000


def predict(model: nn.Module, images: torch.Tensor, prepare: Preprocess, batch_size: int = EVAL_BATCH, amp: torch.dtype | None = None,
            progress: Callable[[int], None] = lambda done: None, forward: Forward | None = None) -> torch.Tensor:
    """Logits (N, K) float32 of (N, 3, H, W) uint8 images, on their device, in eval mode; `progress` hears each batch's size."""
    model.eval()
    forward = forward or eager_forward(model, prepare, amp)
    logits = []
    for start in range(0, len(images), batch_size):
        logits.append(forward(images[start : start + batch_size]))
        progress(len(logits[-1]))
    return torch.cat(logits)


def evaluate(model: nn.Module, split: Split, prepare: Preprocess, amp: torch.dtype | None = None, forward: Forward | None = None) -> tuple[float, float]:
    """(mean cross-entropy, top-1 fraction) on a split, without augmentation or smoothing."""
    logits = predict(model, split.images, prepare, amp=amp, forward=forward)
    return float(F.cross_entropy(logits, split.labels)), float((logits.argmax(1) == split.labels).double().mean())


def train_one_epoch(step: TrainStep, seed: int, lrs: list[float], check: Callable[[str], None], title: str,
                    announce: Callable[[float], None] | None = None) -> tuple[float, float]:
    """(mean loss, top-1 fraction) over one epoch of steps, measured under augmentation, smoothing and dropout.

    Args:
        check: called after each step with where it was; raises to stop.
        announce: on a CPU, called once with the seconds of a step, as soon as five are done.

    Raises:
        RunError: the loss became NaN or infinite; names the step.
        Interrupted: a signal came; the step under way is finished first.
    """
    step.start_epoch(seed, lrs)
    on_cpu, start = step.device.type == "cpu", time.perf_counter()
    for i in tqdm(range(step.steps), title, unit="step", leave=False, disable=None):
        step()
        check(f"in {title.lower()}, step {i + 1}")
        if on_cpu and announce and i == 4:
            announce((time.perf_counter() - start) / 5)
        if on_cpu and not torch.isfinite(step.losses[i]):  # free on a CPU; on a GPU the only read-back is the one after the epoch
            break
    losses = step.losses.cpu().double()
    if len(bad := torch.isfinite(losses).logical_not().nonzero()):
        raise RunError(f"the loss is not finite in {title.lower()}, step {int(bad[0]) + 1}: lower --lr, or use --amp off; best.pt is untouched")
    return float(losses.mean()), int(step.hits.sum()) / (step.steps * step.batch_size)


def fit(model: nn.Module, splits: Splits, stage: Stage, recipe: Recipe, prepare: Preprocess, run: Run, *,
        amp: torch.dtype | None = None, total_epochs: int | None = None) -> None:
    """Train the unfrozen parameters for one stage; the run's history, best and last checkpoints are the result.

    Continues inside the stage if the run was resumed there, and returns at once if the stage is complete.

    Args:
        splits: on the model's device.
        total_epochs: of all stages, for the epoch line.

    Raises:
        RunError: non-finite loss, or out of memory (with a batch size to try).
        Interrupted: Ctrl-C or SIGTERM; last.pt is written first.
    """
    done, before = run.epochs_done(stage.name), len(run.history) - run.epochs_done(stage.name)
    finished = done >= stage.epochs or stage.patience and run.stalled(stage.name) >= stage.patience
    if finished or run.resumed_stage not in (None, stage.name) and done:
        return
    device = splits.train.labels.device
    optimizer = make_optimizer(model, recipe, device)
    if done and run.optimizer_state is not None:
        optimizer.load_state_dict(run.optimizer_state)
        for group in optimizer.param_groups:
            if "capturable" in group:  # as this device needs it, not as the run's last one did
                group["capturable"] = device.type == "cuda"
    step = TrainStep(model, splits.train, prepare, optimizer, recipe.batch_size, recipe.label_smoothing, amp)
    set_train_mode(model)
    forward = None
    try:
        with deferred_signals() as check:
            if device.type == "cuda":  # evaluation first: a capture that fails would disturb the random numbers of a graph made before
                forward = captured_forward(model, prepare, amp, splits.val.images[:EVAL_BATCH])
                if problem := step.capture():
                    print(f"eager steps: {problem}")
            _epochs(model, splits, stage, recipe, prepare, run, step, check, forward, amp, done, before, total_epochs or before + stage.epochs)
    except (Interrupted, RunError):
        run.save(force=True)
        raise
    except torch.cuda.OutOfMemoryError:
        raise RunError(f"out of GPU memory at --batch-size {recipe.batch_size}: try --batch-size {max(1, recipe.batch_size // 2)}") from None
    except RuntimeError as error:
        if "not enough memory" in str(error) or "can't allocate memory" in str(error):
            raise RunError(f"out of memory at --batch-size {recipe.batch_size}: try --batch-size {max(1, recipe.batch_size // 2)}") from None
        raise


def _epochs(model: nn.Module, splits: Splits, stage: Stage, recipe: Recipe, prepare: Preprocess, run: Run, step: TrainStep,
            check: Callable[[str], None], forward: Forward | None, amp: torch.dtype | None, done: int, before: int, total: int) -> None:
    """The epochs of a stage that are still to do: train, evaluate on val, print, save, stop early."""
    if not run.history:
        run.keep(model, step.optimizer, stage.name)
        run.save(force=True)  # finds an unwritable folder before the first epoch, and lets --resume work from the start
    for epoch in range(done, stage.epochs):
        number = before + epoch + 1
        start = time.perf_counter()
        set_train_mode(model)
        lrs = epoch_lrs(stage, epoch, step.steps)
        announce = (lambda seconds: _announce(seconds * step.steps * (stage.epochs - done), step.device)) if epoch == done else None
        train_loss, train_top1 = train_one_epoch(step, seed_epoch(recipe.seed, number), lrs, check, f"Epoch {number}/{total}", announce)
        train_seconds = time.perf_counter() - start
        val_loss, val_top1 = evaluate(model, splits.val, prepare, amp, forward)
        seconds, rate = time.perf_counter() - start, step.steps * step.batch_size / train_seconds
        run.history.append({"stage": stage.name, "epoch": number, "train_loss": train_loss, "train_top1": train_top1, "val_loss": val_loss,
                            "val_top1": val_top1, "lr": lrs[0], "seconds": seconds, "images_per_s": rate})
        run.keep(model, step.optimizer, stage.name)
        print(f"Epoch {number}/{total} | Train Loss: {train_loss:.4f} Acc: {train_top1:.2%} | Val Loss: {val_loss:.4f} Acc: {val_top1:.2%} | "
              f"LR {lrs[0]:.1e} | {seconds:.1f}s {rate:,.0f} img/s", flush=True)
        stop = stage.patience and run.stalled(stage.name) >= stage.patience
        run.save(force=stop or epoch + 1 == stage.epochs)
        if stop:
            print(f"stopped early: no better val accuracy for {stage.patience} epochs")
            return
        if epoch == done and epoch + 1 < stage.epochs and step.device.type != "cpu":
            _announce(seconds * (stage.epochs - done - 1), step.device)
        check(f"after epoch {number}")


def _announce(left: float, device: torch.device) -> None:
    """Say how long the stage will take (`left` in seconds), and on a slow machine how to make it shorter."""
    hint = "; a CPU is slow for this: --smoke shows the whole path, --train-limit N trains on fewer images" if device.type == "cpu" and left > 1800 else ""
    shown = f"{left / 3600:.1f} h" if left > 5400 else f"{left / 60:.1f} min" if left > 90 else f"{left:.0f} s"
    print(f"about {shown} of training left in this stage{hint}", flush=True)
