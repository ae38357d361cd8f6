"""The loop, read top to bottom: the step, an epoch, evaluation, a stage.

The step is plain PyTorch. What makes the same step cheaper stands apart: `models/launches.py`
computes the same in fewer launches, and `graph.py` records them all as one CUDA graph.
"""
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.optim import SGD, AdamW, Optimizer
from tqdm import tqdm

from common.config import Recipe, Stage
from common.data.augment import Preprocess
from common.data.splits import Split, class_weights
from common.errors import Interrupted, RunError, deferred_signals, out_of_memory
from common.models.launches import cast_weights, counted_at_once, training_loss
from common.training import display
from common.training.graph import Work, accelerate
from common.training.run import Run
from common.training.schedule import batch_size_for, epoch_lrs, epoch_order, epoch_seed, lr_for

EVAL_PIXELS = 500 * 64 * 64  # of network input in a batch: of 32 and 64 px 500 images, of 192 px 55
QUEUED_STEPS = 32  # a GPU's queue is looked after this often: Ctrl-C and the bar wait for no more


class TrainStep:
    """One optimiser update on a device-resident split: index, augment, forward, backward, update.

    What changes from step to step lies in tensors on the device, so a step needs nothing from the
    host, and one recorded launch by launch can be replayed for all others.

    Args and fields:
        model: in training mode, see `set_train_mode`.
        split: its images (N, 3, S, S) uint8 and labels (N,) on the model's device.
        prepare: whose `augment` makes network input of a batch.
        optimizer: with its state loaded; the step sets its rate, which loading later would undo.
        batch_size: images a step.
        amp: dtype of autocast, None: fp32. fp16 needs the `scaler`.
        class_weights: (K,) float32, or None.

    Fields of an epoch, which `start_epoch` sets:
        order: (steps, batch_size) int64, positions in the split; lrs: (steps,) float32.
        cursor: (1,) int64, the step that comes next.
        losses: (steps,) float32 and preds: (steps, batch_size) int64, the record.
    """

    def __init__(self, model: Module, split: Split, prepare: Preprocess, optimizer: Optimizer,
                 batch_size: int, label_smoothing: float = 0.0, amp: torch.dtype | None = None,
                 class_weights: Tensor | None = None) -> None:
        self.model, self.split, self.prepare, self.optimizer = model, split, prepare, optimizer
        self.label_smoothing, self.amp, self.class_weights = label_smoothing, amp, class_weights
        self.device = split.labels.device
        self.order = epoch_order(len(split), batch_size, 0).to(self.device)
        self.steps, self.batch_size = self.order.shape
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp == torch.float16)
        self.generator = torch.Generator(self.device)
        with self.device:
            self.preds = torch.zeros_like(self.order)
            self.losses, self.lrs = torch.zeros(2, self.steps)
            self.cursor = torch.zeros(1, dtype=torch.int64)
            self.lr = torch.zeros(())
        # The scaler makes its state at its first use, which is not to lie inside a graph.
        self.scaler.scale(self.lr)
        for group in optimizer.param_groups:
            group["lr"] = self.lr
            # AdamW's promise to count its steps on the device; a resumed run's may be a CPU's.
            group["capturable"] = self.device.type == "cuda"

    def __call__(self) -> None:
        """Do the next step of the epoch; nothing in it waits for the device."""
        # Not order[i]: a graph would keep the number i and replay one batch for ever. Not
        # order[cursor] either: for an index of one element PyTorch asks the device for its value.
        batch = self.order.index_select(0, self.cursor).squeeze(0)  # (batch_size,)
        torch.index_select(self.lrs, 0, self.cursor, out=self.lr.view(1))
        images = self.split.images.index_select(0, batch)  # (batch_size, 3, S, S) uint8
        labels = self.split.labels.index_select(0, batch)
        images, pasted = self.prepare.augment(images, self.generator)

        # None, not zeros: the backward pass then writes gradients and need not add.
        self.optimizer.zero_grad(set_to_none=True)
        logits = self._forward(images)  # (batch_size, K)
        loss = training_loss(logits, labels, self.label_smoothing, self.class_weights, pasted)
        self.scaler.scale(loss).backward()
        # Fused: where fp16 gave a gradient that is not finite, the update is skipped on the device.
        self.scaler.step(self.optimizer)
        self.scaler.update()

        # The record is read after the epoch: reading it here would wait for the device.
        self.losses.index_copy_(0, self.cursor, loss.detach().view(1))
        self.preds.index_copy_(0, self.cursor, logits.argmax(1).view(1, -1))
        self.cursor += 1

    def _forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of the network in training; without AMP this is `model(images)`."""
        weights = cast_weights(self.model, self.amp) if self.amp else {}
        # No cache of casts: a graph would keep those of the step that filled it.
        with (torch.autocast(self.device.type, self.amp, enabled=bool(self.amp),
                             cache_enabled=False),
              counted_at_once(self.model)):
            return torch.func.functional_call(self.model, weights, images, tie_weights=False)

    def start_epoch(self, seed: int, lrs: list[float]) -> None:
        """Draw a new order, seed the generators, load the learning rates and clear the record."""
        # Dropout and drop-connect draw from the global generator, augmentation from its own.
        torch.manual_seed(seed)
        self.generator.manual_seed(seed)
        self.order.copy_(epoch_order(len(self.split), self.batch_size, seed))
        self.lrs.copy_(torch.tensor(lrs))
        self.cursor.zero_()
        self.losses.zero_()

    def top1(self) -> float:
        """Fraction of the epoch's images that were recognised, each as its step saw it."""
        return float((self.preds == self.split.labels[self.order]).double().mean())

    def trial(self, step: Work) -> float:
        """Summed loss of two steps of a fixed epoch: the second sees what the first updated."""
        set_train_mode(self.model)
        self.start_epoch(0, [1e-3] * self.steps)
        for _ in range(min(2, self.steps)):
            step()
        # A graph has gradients of its own: these would only take memory beside them.
        self.optimizer.zero_grad(set_to_none=True)
        return float(self.losses.sum())

    def state(self) -> Iterator[Tensor]:
        """Every tensor that a step changes and an epoch does not set anew."""
        yield from self.model.parameters()
        yield from self.model.buffers()
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))
        if self.scaler.is_enabled():
            yield from (self.scaler._scale, self.scaler._growth_tracker)


def make_optimizer(model: Module, recipe: Recipe, device: torch.device) -> Optimizer:
    """The recipe's optimiser over the trainable parameters, fused; `TrainStep` sets its rate.

    BatchNorm parameters and biases are not decayed unless the recipe asks (Loshchilov & Hutter 2019
    leave it open; He et al. 2019, arXiv:1812.01187, measured it).
    """
    # Matrices and kernels have two axes or more; norms' scales and all biases have one.
    groups = []
    for decay, is_decayed in ((recipe.weight_decay, True), (0.0, False)):
        params = [p for p in model.parameters()
                  if p.requires_grad and (recipe.decay_all or p.ndim > 1) == is_decayed]
        if params:
            groups.append({"params": params, "weight_decay": decay})
    # A tensor, since a plain number would be fixed in a graph.
    lr = torch.zeros((), device=device)
    if recipe.optimizer == "adamw":
        return AdamW(groups, lr, fused=True)
    return SGD(groups, lr, recipe.momentum, nesterov=recipe.nesterov, fused=True)


def set_train_mode(model: Module) -> None:
    """Training mode, but for modules that are frozen whole: their statistics stay still."""
    model.train()
    for module in model.modules():
        own = list(module.parameters())
        if own and not any(p.requires_grad for p in own):
            module.eval()


def train_one_epoch(step: TrainStep, do_step: Work, seed: int, lrs: list[float],
                    check: Callable[[str], None], title: str,
                    steps_left: int = 0) -> tuple[float, float]:
    """(mean loss, top-1 fraction) of an epoch, under augmentation, smoothing and dropout.

    Args:
        do_step: `step` itself, or its graph's replay.
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
        do_step()
        check(f"in {title.lower()}, step {i + 1}")
        if queue and i % QUEUED_STEPS == 0:
            # Wait for the step 32 ago, not for this one: the device is never without work.
            queue.synchronize()
            queue.record()
        if steps_left and i == 4:
            # Reading a loss waits for the device; once a stage it may.
            float(step.losses[i])
            display.announce((perf_counter() - start) / 5 * steps_left, on_cpu)
        # A GPU would have to be waited for in every step: there the epoch ends first.
        if on_cpu and not step.losses[i].isfinite():
            break
    losses = step.losses.cpu().double()
    if not losses.isfinite().all():
        first = losses.isfinite().int().argmin() + 1
        ways = "a lower --lr or --amp off" if step.amp else "a lower --lr"
        raise RunError(f"the loss is not finite in {title.lower()}, step {first}: {ways} may help; "
                       "best.pt is untouched")
    return float(losses.mean()), step.top1()


def eval_batch_size(images: Tensor, prepare: Preprocess) -> int:
    """Images a batch where nothing is trained: memory follows the pixels that the network sees."""
    return max(1, min(500, EVAL_PIXELS // (images.shape[-1] * prepare.recipe.resize) ** 2))


def predict(model: Module, images: Tensor, prepare: Preprocess, amp: torch.dtype | None = None,
            title: str = "") -> Tensor:
    """Logits (N, K) float32 of (N, 3, H, W) uint8 images, on their device, in eval mode.

    Args:
        title: of a progress bar, if there is to be one.
    """
    model.eval()
    parts = images.split(eval_batch_size(images, prepare))
    bar = tqdm(parts, title, disable=None if title else True)
    with torch.no_grad(), torch.autocast(images.device.type, amp, enabled=bool(amp)):
        return torch.cat([model(prepare.clean(part)).float() for part in bar])


def evaluate(model: Module, split: Split, prepare: Preprocess,
             amp: torch.dtype | None = None) -> tuple[float, float]:
    """(mean cross-entropy, top-1 fraction) on a split; no augmentation, smoothing or weights."""
    logits = predict(model, split.images, prepare, amp)
    hits = logits.argmax(1) == split.labels
    return float(F.cross_entropy(logits, split.labels)), float(hits.double().mean())


def fit(run: Run, stage: Stage) -> None:
    """Train the unfrozen parameters for one stage; the run's history and checkpoints tell of it.

    Continues where a resumed run stopped in the stage; returns at once if the stage is complete.

    Raises:
        RunError: non-finite loss, or out of memory (with what helps).
        Interrupted: Ctrl-C or SIGTERM; last.pt is written first.
    """
    done = len(run.val_top1(stage.name))
    if done >= stage.epochs:
        return
    model, train, val, recipe = run.model, run.splits.train, run.splits.val, run.recipe
    stage = replace(stage, lr=lr_for(stage.lr, len(train), recipe))
    weights = class_weights(train.labels, len(run.splits.classes)) if recipe.class_weights else None
    optimizer = make_optimizer(model, recipe, train.labels.device)
    if done:  # momentum and the like of a resumed stage; the learning rate is the schedule's
        optimizer.load_state_dict(run.optimizer_state)
    batch_size = batch_size_for(len(train), recipe.batch_size)
    step = TrainStep(model, train, run.prepare, optimizer, batch_size, recipe.label_smoothing,
                     run.amp, weights)

    with deferred_signals() as check, _saved(run, batch_size):
        do_step = accelerate(step, run.compiles)
        if not run.history:
            # Finds an unwritable folder before the first epoch, and lets --resume work at once.
            run.keep(optimizer)
        for epoch in range(done, stage.epochs):
            if _gave_up(run, stage):
                print(f"stopped early: no better val accuracy for {stage.patience} epochs")
                break
            run.save()
            number, start = len(run.history) + 1, perf_counter()
            title = f"Epoch {number}/{recipe.head_epochs + recipe.epochs}"
            lrs = epoch_lrs(stage, epoch, step.steps)
            steps_left = step.steps * (stage.epochs - done) if epoch == done else 0
            train_loss, train_top1 = train_one_epoch(
                step, do_step, epoch_seed(recipe.seed, number), lrs, check, title, steps_left)
            trained = perf_counter()
            # Selection looks at val alone; test is read once, when all stages are done.
            val_loss, val_top1 = evaluate(model, val, run.prepare, run.amp)
            row = {
                "stage": stage.name, "epoch": number, "train_loss": train_loss,
                "train_top1": train_top1, "val_loss": val_loss, "val_top1": val_top1,
                "lr": lrs[0], "seconds": perf_counter() - start,
                "images_per_s": step.steps * step.batch_size / (trained - start),
            }
            run.keep(optimizer, row)
            print(display.EPOCH.format(title=title, **row), flush=True)
            check(f"after epoch {number}")


def _gave_up(run: Run, stage: Stage) -> bool:
    """Whether the stage has gone on for its patience without a better val accuracy."""
    values = run.val_top1(stage.name)
    return bool(values) and 0 < stage.patience < len(values) - values.index(max(values))


@contextmanager
def _saved(run: Run, batch_size: int) -> Iterator[None]:
    """Save the last whole epoch, however the stage ends; a want of memory becomes one line."""
    try:
        yield
    except Interrupted:
        print(display.resume_line(run.script, run.folder, run.runtime), flush=True)
        raise
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        remedy = f"try --batch-size {batch_size // 2}"
        if batch_size < 4:
            remedy = "use smaller images (--image-size)"
        raise RunError(f"out of memory at --batch-size {batch_size}: {remedy}") from None
    finally:
        run.save(force=True)
