"""The training step: index, augment, forward, backward, update; on a GPU, all in one CUDA graph.

Every random number of an epoch comes from generators seeded by (seed, epoch): there is no generator
state to save, and a resumed run repeats exactly what the uninterrupted one does.
"""
import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from common.config import Recipe
from common.data.augment import Preprocess
from common.data.splits import Split
from common.training.graph import Work, capture, first_reason

STEPS_AN_EPOCH = 20  # at least, where that leaves SMALLEST_BATCH images for each
SMALLEST_BATCH = 8  # BatchNorm's statistics of fewer images are noise


def seed_epoch(seed: int, epoch: int) -> int:
    """Seed of every generator in `epoch` (1-based across stages) of a run with `seed`."""
    return seed * 1_000_003 + epoch


def fit_batch_size(images: int, batch_size: int) -> int:
    """Images a step: at most `batch_size`, fewer on a small set, and the same in every step.

    An epoch then has at least 20 steps, where batches of 8 images allow that.
    """
    wanted = min(STEPS_AN_EPOCH, images // SMALLEST_BATCH)
    steps = max(wanted, math.ceil(images / batch_size))
    return math.ceil(images / steps)


def fit_lr(lr: float, images: int, recipe: Recipe) -> float:
    """The learning rate for a set so small that its batches are smaller than the recipe's.

    In proportion to the batch for SGD (Goyal et al. 2017, arXiv:1706.02677), to its square root
    for AdamW (Malladi et al. 2022, arXiv:2205.10782).
    """
    share = fit_batch_size(images, recipe.batch_size) / recipe.batch_size
    return lr * (share if recipe.optimizer == "sgd" else math.sqrt(share))


def epoch_order(images: int, batch_size: int, seed: int) -> Tensor:
    """Positions (steps, batch_size) int64 of an epoch's batches; on the CPU, as on every device.

    A CUDA graph knows one batch size, so a last batch that is not full is filled from the order's
    beginning: every image is shown, a few of them twice, others each epoch. A batch holds at most
    all images.
    """
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    batch_size = min(batch_size, images)
    steps = math.ceil(images / batch_size)
    return order.repeat(2)[: steps * batch_size].view(steps, batch_size)


def make_optimizer(model: nn.Module, recipe: Recipe, device: torch.device) -> Optimizer:
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


def set_train_mode(model: nn.Module) -> None:
    """Training mode, but for modules that are frozen whole: their statistics stay still."""
    model.train()
    for module in model.modules():
        own = list(module.parameters())
        if own and not any(p.requires_grad for p in own):
            module.eval()


def training_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0,
                  class_weights: Tensor | None = None, mixed: Tensor | None = None) -> Tensor:
    """Mean cross-entropy against smoothed labels (Szegedy et al. 2016, arXiv:1512.00567), ().

    The same as F.cross_entropy's, whose smoothing takes two dozen launches where this takes eight.

    Args:
        logits: (N, K), any floating dtype.
        labels: (N,) int64.
        class_weights: (K,) float32.
        mixed: (N,) float32, the part of each image that is its predecessor's, and takes its label.
    """
    images, classes = logits.shape
    log_probs = F.log_softmax(logits.float(), dim=1)
    # Smoothed labels share a part of each image's unit among all classes.
    share = label_smoothing / classes
    own = 1 - label_smoothing + share
    targets = torch.full_like(log_probs, share).scatter_(1, labels[:, None], own)  # (N, K)
    if mixed is not None:
        targets = torch.lerp(targets, targets.roll(1, 0), mixed[:, None])
    if class_weights is not None:
        # Divided by the batch's mean weight, as torch does: the loss keeps its scale.
        targets = targets * (class_weights / class_weights[labels].mean())
    return (log_probs * targets).sum() / -images


@contextlib.contextmanager
def counted_at_once(model: nn.Module) -> Iterator[None]:
    """BatchNorm layers that train count their batches in one launch at the end, not in one each.

    Nothing reads the counts; they are kept because published state dicts have them.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    counts = [norm.num_batches_tracked for norm in norms]
    for norm in norms:
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, count in zip(norms, counts):
            norm.num_batches_tracked = count
    if counts:
        torch._foreach_add_(counts, 1)


class CastTogether(torch.autograd.Function):
    """Copies of many tensors in another precision, made in a few launches, as are their gradients.

    Autocast casts the weights of a step one by one. Rounding happens at the same places, so losses
    and weights stay equal to the last bit, as long as no layer is used twice in a step.
    """

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.like = weights
        copies = [torch.empty_like(weight, dtype=dtype) for weight in weights]
        torch._foreach_copy_(copies, weights)
        return tuple(copies)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        copies = [torch.empty_like(weight) for weight in ctx.like]
        torch._foreach_copy_(copies, grads)
        return None, *copies


def cast_weights(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Name → low-precision copy of each trainable weight that autocast would cast."""
    weights = {}
    for name, layer in model.named_modules():
        # Not BatchNorm's, which autocast leaves in fp32; and frozen weights have no gradients to
        # bring back: autocast casts them.
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            for key, p in layer.named_parameters(recurse=False):
                if p.requires_grad:
                    weights[f"{name}.{key}"] = p
    copies = CastTogether.apply(dtype, *weights.values())
    return dict(zip(weights, copies))


@dataclass(eq=False)
class TrainStep:
    """One optimiser update on a device-resident split: index, augment, forward, backward, update.

    Everything that changes from step to step lies in tensors on the device (order, learning rates,
    a cursor), so the step needs nothing from the host and can be captured whole as a CUDA graph.
    `losses` (steps,) and `preds` (steps, batch_size) are the epoch's record.
    """

    model: nn.Module
    split: Split
    prepare: Preprocess
    optimizer: Optimizer
    batch_size: int
    label_smoothing: float = 0.0
    amp: torch.dtype | None = None
    class_weights: Tensor | None = None  # (K,) float32
    graph: torch.cuda.CUDAGraph | None = None

    def __post_init__(self) -> None:
        self.device = self.split.labels.device
        self.order = epoch_order(len(self.split), self.batch_size, 0).to(self.device)
        self.steps, self.batch_size = self.order.shape
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp == torch.float16)
        self.generator = torch.Generator(self.device)
        with self.device:
            self.preds = torch.zeros_like(self.order)
            self.losses, self.lrs = torch.zeros(2, self.steps)
            self.cursor = torch.zeros(1, dtype=torch.int64)
            self.lr = torch.zeros(())
        # The scaler makes its state at its first use, which is not to lie inside a graph.
        self.scaler.scale(self.lr)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
            # AdamW's promise to count its steps on the device; a resumed run's may be a CPU's.
            group["capturable"] = self.device.type == "cuda"

    def start_epoch(self, seed: int, lrs: list[float]) -> None:
        """Draw a new order, seed the generators, load the learning rates and clear the record."""
        torch.manual_seed(seed)
        self.generator.manual_seed(seed)
        self.order.copy_(epoch_order(len(self.split), self.batch_size, seed))
        self.lrs.copy_(torch.tensor(lrs))
        self.cursor.zero_()
        self.losses.zero_()

    def top1(self) -> float:
        """Fraction of the epoch's images that were recognised, each as its step saw it."""
        return float((self.preds == self.split.labels[self.order]).double().mean())

    def __call__(self) -> None:
        """Do the next step of the epoch."""
        if self.graph is not None:
            self.graph.replay()
        else:
            self._step()

    def _step(self) -> None:
        """The step itself; nothing in it waits for the device, so it can be captured."""
        at = self.order.index_select(0, self.cursor).squeeze(0)  # (batch_size,)
        torch.index_select(self.lrs, 0, self.cursor, out=self.lr.view(1))
        images, mixed = self.prepare.train(self.split.images.index_select(0, at), self.generator)
        labels = self.split.labels.index_select(0, at)

        # None, not zeros: the backward pass then writes gradients and need not add.
        self.optimizer.zero_grad(set_to_none=True)
        logits = self._forward(images)  # (batch_size, K)
        loss = training_loss(logits, labels, self.label_smoothing, self.class_weights, mixed)
        self.scaler.scale(loss).backward()
        # Fused: where fp16 gave a gradient that is not finite, the update is skipped on the device.
        self.scaler.step(self.optimizer)
        self.scaler.update()

        # The record is read after the epoch: reading it here would wait for the device.
        self.losses.index_copy_(0, self.cursor, loss.detach().view(1))
        self.preds.index_copy_(0, self.cursor, logits.argmax(1).view(1, -1))
        self.cursor += 1

    def _forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of the network in training."""
        mixed = self.amp is not None
        weights = cast_weights(self.model, self.amp) if mixed else {}
        # No cache of casts: a graph would keep those of the step that filled it.
        with (torch.autocast(self.device.type, self.amp, enabled=mixed, cache_enabled=False),
              counted_at_once(self.model)):
            return torch.func.functional_call(self.model, weights, images, tie_weights=False)

    def capture(self) -> str | None:
        """Make the step a CUDA graph, checked against the eager step; None, or why it stays eager.

        Weights, BatchNorm statistics, optimiser and scaler are afterwards as they were before; the
        generators are seeded anew by the next epoch.
        """
        try:
            self.graph = capture(self._step, self._trial, self._state, self.generator)
        except RuntimeError as error:
            return f"the step cannot be captured as a CUDA graph ({first_reason(error)})"
        return None

    def _trial(self, step: Work) -> float:
        """Summed loss of two steps of a fixed epoch: the second sees what the first updated."""
        self.start_epoch(0, [1e-3] * self.steps)
        for _ in range(min(2, self.steps)):
            step()
        # A graph has gradients of its own: these would only take memory beside them.
        self.optimizer.zero_grad(set_to_none=True)
        return float(self.losses.sum())

    def _state(self) -> Iterator[Tensor]:
        """Every tensor that a step changes, beside the epoch's own."""
        yield from self.model.parameters()
        yield from self.model.buffers()
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))
        if self.scaler.is_enabled():
            yield from (self.scaler._scale, self.scaler._growth_tracker)
