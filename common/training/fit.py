"""Epochs and evaluation: `fit` runs one stage."""
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, dtype
from torch.nn import Module
from tqdm import tqdm

from common.config import Recipe, Stage
from common.data.augment import Preprocess
from common.data.splits import Split, Splits, class_weights
from common.errors import RunError, deferred_signals
from common.files import Json
from common.training.graph import Forward, captured_forward, eager_forward
from common.training.run import Run
from common.training.schedule import epoch_lrs
from common.training.step import (TrainStep, fit_batch_size, fit_lr, make_optimizer, seed_epoch,
                                  set_train_mode)
from common.words import duration

EVAL_BATCH = 500  # divides 5,000, 10,000 and 45,000
QUEUED_STEPS = 32  # a GPU's queue is looked after this often: Ctrl-C and the bar wait for no more
SLOW = 1800  # seconds of a stage on a CPU after which shorter ways are named
SHORTER = ("; a CPU is slow for this: --smoke shows the whole path, --train-limit N trains on fewer"
           " images")
EPOCH_LINE = ("{title} | Train Loss: {train_loss:.4f} Acc: {train_top1:.2%} | "
              "Val Loss: {val_loss:.4f} Acc: {val_top1:.2%} | "
              "LR {lr:.1e} | {seconds:.1f}s {images_per_s:,.0f} img/s")


def predict(model: Module, images: Tensor, prepare: Preprocess, batch_size: int = EVAL_BATCH,
            amp: dtype | None = None, progress: Callable[[int], None] = lambda done: None,
            forward: Forward | None = None) -> Tensor:
    """Logits (N, K) float32 of (N, 3, H, W) uint8 images, on their device, in eval mode.

    Args:
        progress: hears each batch's size when it is done.
        forward: of `eager_forward` or `captured_forward`; None makes the former.
    """
    model.eval()
    forward = forward or eager_forward(model, prepare, amp)
    logits = []
    for batch in images.split(batch_size):
        logits.append(forward(batch))
        progress(len(batch))
    return torch.cat(logits)


def evaluate(model: Module, split: Split, prepare: Preprocess, amp: dtype | None = None,
             forward: Forward | None = None) -> tuple[float, float]:
    """(mean cross-entropy, top-1 fraction) on a split; no augmentation, smoothing or weights."""
    logits = predict(model, split.images, prepare, amp=amp, forward=forward)
    hits = logits.argmax(1) == split.labels
    return float(F.cross_entropy(logits, split.labels)), float(hits.double().mean())


def train_one_epoch(step: TrainStep, seed: int, lrs: list[float], check: Callable[[str], None],
                    title: str, steps_left: int = 0) -> tuple[float, float]:
    """(mean loss, top-1 fraction) of an epoch, under augmentation, smoothing and dropout.

    Args:
        check: called after each step with where it was; raises to stop.
        steps_left: of the stage, this epoch's included, to say how long they will take; 0: do not.

    Raises:
        RunError: the loss became NaN or infinite; names the step.
        Interrupted: a signal came; the step under way is finished first.
    """
    set_train_mode(step.model)
    step.start_epoch(seed, lrs)
    on_cpu, start = step.device.type == "cpu", perf_counter()
    queue = None if on_cpu else torch.cuda.Event()
    for i in tqdm(range(step.steps), title, unit="step", leave=False, disable=None):
        step()
        check(f"in {title.lower()}, step {i + 1}")
        if queue and i % QUEUED_STEPS == 0:
            # Wait for the step 32 ago, not for this one: the device is never without work.
            queue.synchronize()
            queue.record()
        if steps_left and i == 4:
            # Reading a loss waits for the device; once a stage it may.
            float(step.losses[i])
            _announce((perf_counter() - start) / 5 * steps_left, on_cpu)
        # A GPU would have to be waited for in every step: there the epoch ends first.
        if on_cpu and not step.losses[i].isfinite():
            break
    losses = step.losses.cpu().double()
    if not losses.isfinite().all():
        first = losses.isfinite().int().argmin() + 1
        raise RunError(f"the loss is not finite in {title.lower()}, step {first}: lower --lr, or "
                       "use --amp off; best.pt is untouched")
    return float(losses.mean()), step.top1()


def fit(model: Module, splits: Splits, stage: Stage, recipe: Recipe, prepare: Preprocess,
        run: Run, *, amp: dtype | None = None, total_epochs: int = 0) -> None:
    """Train the unfrozen parameters for one stage; the run's history and checkpoints tell of it.

    Continues inside the stage if the run was resumed there, and returns at once if the stage is
    complete.

    Args:
        splits: on the model's device.
        amp: precision of training and of val, None: fp32.
        total_epochs: of all stages, for the epoch line; 0: this stage is the last.

    Raises:
        RunError: non-finite loss, or out of memory (with a batch size to try).
        Interrupted: Ctrl-C or SIGTERM; last.pt is written first.
    """
    done = len(run.val_top1(stage.name))
    if done >= stage.epochs:
        return
    # Epochs are numbered through all stages; `done` of this one's were trained before a resume.
    total = total_epochs or len(run.history) - done + stage.epochs
    stage = replace(stage, lr=fit_lr(stage.lr, len(splits.train), recipe))
    step = _make_step(model, splits, recipe, prepare, amp, run.optimizer_state if done else {})

    with deferred_signals() as check, _saved(run, step.batch_size):
        forward = _capture(step, splits.val.images)
        if not run.history:
            # Finds an unwritable folder before the first epoch, and lets --resume work at once.
            run.keep(model, step.optimizer)
        for epoch in range(done, stage.epochs):
            if _gave_up(run, stage):
                print(f"stopped early: no better val accuracy for {stage.patience} epochs")
                break
            run.save()
            number, start = len(run.history) + 1, perf_counter()
            title = f"Epoch {number}/{total}"
            lrs = epoch_lrs(stage, epoch, step.steps)
            steps_left = step.steps * (stage.epochs - done) if epoch == done else 0
            train_loss, train_top1 = train_one_epoch(step, seed_epoch(recipe.seed, number), lrs,
                                                     check, title, steps_left)
            trained = perf_counter()
            # Selection looks at val alone; test is read once, when all stages are done.
            val_loss, val_top1 = evaluate(model, splits.val, prepare, amp, forward)
            row = {
                "stage": stage.name, "epoch": number, "train_loss": train_loss,
                "train_top1": train_top1, "val_loss": val_loss, "val_top1": val_top1,
                "lr": lrs[0], "seconds": perf_counter() - start,
                "images_per_s": step.steps * step.batch_size / (trained - start),
            }
            run.keep(model, step.optimizer, row)
            print(EPOCH_LINE.format(title=title, **row), flush=True)
            check(f"after epoch {number}")


def _gave_up(run: Run, stage: Stage) -> bool:
    """Whether the stage has gone on for its patience without a better val accuracy."""
    values = run.val_top1(stage.name)
    return bool(values) and 0 < stage.patience < len(values) - values.index(max(values))


def _make_step(model: Module, splits: Splits, recipe: Recipe, prepare: Preprocess,
               amp: dtype | None, optimizer_state: Json) -> TrainStep:
    """The stage's step; its optimiser goes on from `optimizer_state` unless that is empty."""
    train = splits.train
    batch_size = fit_batch_size(len(train), recipe.batch_size)
    optimizer = make_optimizer(model, recipe, train.labels.device)
    if optimizer_state:
        # Momentum and the like of a resumed stage; the learning rate is the schedule's.
        optimizer.load_state_dict(optimizer_state)
    weights = class_weights(train.labels, len(splits.classes)) if recipe.class_weights else None
    return TrainStep(model, train, prepare, optimizer, batch_size, recipe.label_smoothing, amp,
                     weights)


def _capture(step: TrainStep, images: Tensor) -> Forward | None:
    """Make a CUDA graph of the step and one of val's forward pass, which is returned, on a GPU."""
    if step.device.type != "cuda":
        return None
    # Evaluation first: a capture that fails would disturb the random numbers of an earlier graph.
    forward = captured_forward(step.model, step.prepare, step.amp, images[:EVAL_BATCH])
    set_train_mode(step.model)
    if problem := step.capture():
        print(f"eager steps: {problem}")
    return forward


@contextmanager
def _saved(run: Run, batch_size: int) -> Iterator[None]:
    """Save the last whole epoch, however the stage ends; out of memory becomes one line."""
    try:
        yield
    except RuntimeError as error:
        # The GPU's words for it and the CPU's.
        if not re.search("out of memory|tried to allocate", str(error)):
            raise
        raise RunError(f"out of memory at --batch-size {batch_size}: "
                       f"try --batch-size {max(2, batch_size // 2)}") from None
    finally:
        run.save(force=True)


def _announce(seconds: float, on_cpu: bool) -> None:
    """Say how long the stage will take, and on a slow machine how to make it shorter."""
    hint = SHORTER * (on_cpu and seconds > SLOW)
    tqdm.write(f"this takes about {duration(seconds)}{hint}")
    print(end="", flush=True)
