"""The training step: index, augment, forward, backward, update; eager anywhere, one CUDA graph on a GPU.

Every random number of an epoch comes from generators seeded by (seed, epoch): there is no generator state to save, and
a resumed run repeats exactly what the uninterrupted one does.
"""
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from common.config import Recipe
from common.data.augment import Preprocess
from common.data.splits import Split
from common.errors import reason
from common.training.graph import WARMUP_STEPS, record


def seed_epoch(seed: int, epoch: int) -> int:
    """Seed of every generator in `epoch` (1-based across stages) of a run with `seed`."""
    return seed * 1_000_003 + epoch


def epoch_order(images: int, batch_size: int, seed: int) -> torch.Tensor:
    """Positions (steps, batch_size) int64 of an epoch's batches, on the CPU: the same on every device.

    A short last batch would need a graph of its own and is left out; its images come in the next epoch.
    """
    steps = images // batch_size
    return torch.randperm(images, generator=torch.Generator().manual_seed(seed))[: steps * batch_size].view(steps, batch_size)


def make_optimizer(model: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """The recipe's optimiser over the trainable parameters, fused, its learning rate in a tensor on the device.

    BatchNorm parameters and biases are not decayed unless the recipe asks (Loshchilov & Hutter 2019 leave it open; He et al.
    2019, arXiv:1812.01187, measured it).
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trainable if recipe.decay_all or p.ndim > 1]
    plain = [p for p in trainable if not recipe.decay_all and p.ndim <= 1]
    groups = [{"params": group, "weight_decay": decay} for group, decay in ((decayed, recipe.weight_decay), (plain, 0.0)) if group]
    lr = torch.zeros((), device=device)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=True, capturable=device.type == "cuda")
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True)
    for p in trainable if recipe.momentum else []:  # the fused kernel leaves a new buffer unset when fp16 overflows in the first step
        optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


def set_train_mode(model: nn.Module) -> None:
    """Training mode, but for modules whose parameters are all frozen: their BatchNorm statistics and dropout stay still."""
    model.train()
    for module in model.modules():
        own = list(module.parameters())
        if own and not any(p.requires_grad for p in own):
            module.eval()


class TrainStep:
    """One optimiser update on a device-resident split: index, augment, forward, backward, update, count.

    Everything that changes from step to step lies in tensors on the device (order, learning rates, a cursor), so the step
    needs nothing from the host and can be captured whole as a CUDA graph. `losses` and `hits` hold the epoch's record: mean
    loss and number of correct predictions of each step.
    """

    def __init__(self, model: nn.Module, split: Split, prepare: Preprocess, optimizer: torch.optim.Optimizer, batch_size: int,
                 label_smoothing: float = 0.0, amp: torch.dtype | None = None) -> None:
        self.model, self.split, self.prepare, self.optimizer = model, split, prepare, optimizer
        self.device = split.labels.device
        self.label_smoothing, self.amp = label_smoothing, amp
        self.batch_size = min(batch_size, len(split))
        self.steps = len(split) // self.batch_size
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp == torch.float16)
        self.generator = torch.Generator(self.device)
        self.order = torch.zeros(self.steps, self.batch_size, dtype=torch.int64, device=self.device)
        self.lrs = torch.zeros(self.steps, device=self.device)
        self.cursor = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.losses = torch.zeros(self.steps, device=self.device)
        self.hits = torch.zeros(self.steps, dtype=torch.int64, device=self.device)
        self.lr = torch.zeros((), device=self.device)
        for group in optimizer.param_groups:
            group["lr"] = self.lr
        self.graph: torch.cuda.CUDAGraph | None = None

    def start_epoch(self, seed: int, lrs: list[float]) -> None:
        """Draw a new order, seed the generators, load the epoch's learning rates and clear its record."""
        torch.manual_seed(seed)
        self.generator.manual_seed(seed)
        self.order.copy_(epoch_order(len(self.split), self.batch_size, seed))
        self.lrs.copy_(torch.tensor(lrs))
        self.cursor.zero_()
        self.losses.zero_()
        self.hits.zero_()

    def __call__(self) -> None:
        """Do the next step of the epoch."""
        if self.graph is not None:
            self.graph.replay()
        else:
            self._step()

    def _step(self) -> None:
        """The step itself; no read-back from the device."""
        at = self.order.index_select(0, self.cursor).squeeze(0)
        self.lr.copy_(self.lrs.index_select(0, self.cursor).squeeze(0))
        images = self.prepare.train(self.split.images.index_select(0, at), self.generator)
        labels = self.split.labels.index_select(0, at)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None, cache_enabled=False):
            logits = self.model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)  # fused: on a non-finite gradient fp16 skips the update on the device
        self.scaler.update()
        self.losses.index_copy_(0, self.cursor, loss.detach().view(1))
        self.hits.index_copy_(0, self.cursor, (logits.argmax(1) == labels).sum().view(1))
        self.cursor += 1

    def capture(self) -> str | None:
        """Capture the step as a CUDA graph and check it against the eager step; None, or why the run stays eager.

        Weights, BatchNorm statistics, optimiser, scaler and generators are afterwards as they were before.
        """
        before = self._snapshot()
        try:
            self.start_epoch(0, [0.0] * self.steps)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARMUP_STEPS):
                    self.cursor.zero_()
                    self._step()
            torch.cuda.current_stream().wait_stream(stream)
            eager = self._trial(before, None)  # before the graph takes a second set of activations
            self._restore(before)
            self.optimizer.zero_grad(set_to_none=True)
            graph, _ = record(self._step, stream, self.generator)
            captured = self._trial(before, graph)
            self._restore(before)
        except RuntimeError as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            self._restore(before)
            return f"the step cannot be captured as a CUDA graph ({reason(error)})"
        tolerance = 1e-3 if self.amp is None else 2e-2
        if not math.isclose(eager, captured, rel_tol=tolerance):
            return f"the captured step differs from the eager one (loss {captured:.5f} and {eager:.5f})"
        self.graph = graph
        return None

    def _trial(self, before: list[tuple[torch.Tensor, torch.Tensor]], graph: "torch.cuda.CUDAGraph | None") -> float:
        """Summed loss of two steps from the state `before`, eager or replayed: the second sees what the first updated."""
        self._restore(before)
        lr = 1e-3
        self.start_epoch(0, [lr] * self.steps)
        for _ in range(min(2, self.steps)):
            graph.replay() if graph is not None else self._step()
        return float(self.losses.sum())

    def _tensors(self) -> Iterator[torch.Tensor]:
        """Every tensor that a step changes, beside the epoch's own buffers."""
        yield from self.model.parameters()
        yield from self.model.buffers()
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))
        if self.scaler.is_enabled() and self.scaler._scale is not None:
            yield from (self.scaler._scale, self.scaler._growth_tracker)

    def _snapshot(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(tensor, copy) of all that a step changes."""
        return [(tensor, tensor.detach().clone()) for tensor in self._tensors()]

    def _restore(self, before: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Put every tensor back in place, since a graph knows only addresses; state made since then starts at its initial value."""
        known = {id(tensor): value for tensor, value in before}
        with torch.no_grad():
            for tensor in self._tensors():
                if id(tensor) in known:
                    tensor.copy_(known[id(tensor)])
                elif self.scaler.is_enabled() and tensor is self.scaler._scale:
                    tensor.fill_(self.scaler._init_scale)
                else:
                    tensor.zero_()
