"""The training step (eager anywhere, one CUDA graph on a GPU), evaluation, and `fit`, which runs one stage.

Every random number of an epoch comes from generators seeded by (seed, epoch): there is no generator state to save, and
a resumed run repeats exactly what the uninterrupted one does.
"""
import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from common.augment import Augmentation, augment, to_input
from common.config import Recipe, Stage
from common.data import Split, Splits
from common.errors import Interrupted, RunError, deferred_signals, reason
from common.runs import Run
from common.schedule import epoch_lrs

EVAL_BATCH = 500  # divides 5,000, 10,000 and 45,000
WARMUP_STEPS = 3  # before a capture: cuDNN picks its algorithms, the optimiser makes its state


class Preprocess:
    """How uint8 images become network input; `train` augments, `clean` only normalises and resizes."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], resize: int, spec: Augmentation, device: torch.device) -> None:
        self.mean, self.std = torch.tensor(mean, device=device), torch.tensor(std, device=device)
        self.resize, self.spec = resize, spec

    def train(self, images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """(N, 3, H, W) uint8 → augmented, normalised float32 at the network's size."""
        return augment(images, self.spec, self.mean, self.std, self.resize, generator)

    def clean(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) uint8 → normalised float32 at the network's size."""
        return to_input(images, self.mean, self.std, self.resize)


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
            graph, _ = _record(self._step, stream, self.generator)
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


def _record(work: Callable[[], Any], stream: "torch.cuda.Stream", *generators: torch.Generator) -> "tuple[torch.cuda.CUDAGraph, Any]":
    """`work` captured on `stream` as a CUDA graph that draws anew from `generators` at each replay, and what `work` returned.

    Each capture has a stream of its own, since PyTorch frees a stream's cuBLAS workspaces with any graph captured on it, and
    minds the CUDA calls of its own thread alone, since a loader's thread may pin memory meanwhile.
    A capture that fails leaves its own stream current and, in torch where graphs do not register generators by themselves, every
    generator in the middle of a capture, so that the next random number raises: both are put right before the error goes on.
    """
    graph, home = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    if hasattr(graph, "register_generator_state"):
        with warnings.catch_warnings():  # newer releases register by themselves and call this deprecated
            warnings.simplefilter("ignore")
            for generator in generators:
                graph.register_generator_state(generator)
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            result = work()
    except RuntimeError:
        torch.cuda.set_stream(home)
        for generator in (*generators, torch.cuda.default_generators[home.device_index]):
            generator.graphsafe_set_state(torch.Generator(generator.device).graphsafe_get_state())
        raise
    return graph, result


Forward = Callable[[torch.Tensor], torch.Tensor]  # (N, 3, H, W) uint8 → logits (N, K) float32


def eager_forward(model: nn.Module, prepare: Preprocess, amp: torch.dtype | None) -> Forward:
    """The eval-time pass from uint8 images to logits, for a model in eval mode."""
    def forward(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.autocast(images.device.type, amp, enabled=amp is not None, cache_enabled=False):
            return model(prepare.clean(images)).float()
    return forward


def captured_forward(model: nn.Module, prepare: Preprocess, amp: torch.dtype | None, example: torch.Tensor) -> Forward:
    """`eager_forward` as a CUDA graph for batches as large as `example`; other sizes, and a capture that fails, run eagerly."""
    eager = eager_forward(model, prepare, amp)
    mode = [(module, module.training) for module in model.modules()]
    model.eval()
    images = example.clone()
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUP_STEPS):
                expected = eager(images)
        torch.cuda.current_stream().wait_stream(stream)
        graph, logits = _record(lambda: eager(images), stream)
        graph.replay()
        if not torch.allclose(logits, expected, rtol=1e-2, atol=1e-2 * max(1.0, float(expected.abs().max()))):
            raise RuntimeError("the captured logits differ from the eager ones")
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        print(f"eager evaluation: it cannot be captured as a CUDA graph ({reason(error)})")
        return eager
    finally:
        for module, training in mode:
            module.training = training

    def forward(batch: torch.Tensor) -> torch.Tensor:
        if len(batch) != len(images):
            return eager(batch)
        images.copy_(batch)
        graph.replay()
        return logits.clone()
    return forward


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
