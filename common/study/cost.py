"""What a network costs: parameters, bytes, FLOPs, memory and latency, whatever ran before in the process.

`measure` works on eager copies of the model. The model, its mode and the random state stay as they were.

Memory is the peak of images, weights, activations, gradients and optimiser state in one training step (the state made beforehand), or
of images, weights and activations in one forward pass. On CUDA it is what the allocator counts above what was held before, `allocated`
in tensors and `reserved` in whole segments; an unmeasured round makes the workspaces of cuBLAS and cuDNN first, then the cache is
emptied. A CPU's resident set keeps pages of earlier work, so there the bytes of live tensors are counted at each operation: the same
every time, without a kernel's scratch space, and with no `reserved`.

Latency is one forward pass in inference mode, from idle device to idle device, after a warm-up.
"""
import copy
import gc
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


MEMORY_METHOD = {"cpu": "live tensor bytes counted at each operation, without kernel scratch space",
                 "cuda": "allocator peak above what was held before, cache emptied and workspaces made first"}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that live at the same time while it is entered: `live` now, `peak` at most."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.storages: dict[int, weakref.ref] = {}

    def add(self, nest: Any) -> None:
        """Counts each new storage in a nest of tensors, until it is freed."""
        for tensor in tree_leaves(nest):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self.storages:
                key, size = storage._cdata, storage.nbytes()
                self.storages[key] = weakref.ref(storage, partial(self._drop, key, size))
                self.live += size
        self.peak = max(self.peak, self.live)

    def _drop(self, key: int, size: int, _: weakref.ref) -> None:
        """Takes a freed storage off the count."""
        del self.storages[key]
        self.live -= size

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Runs an operation and counts what it made."""
        made = func(*args, **(kwargs or {}))
        self.add(made)
        return made


def peak_memory(prepare: Callable[[], tuple], work: Callable, device: torch.device) -> dict[str, int | None]:
    """Peak bytes, `allocated` and on CUDA `reserved`, of `work(*prepare())`, where `prepare` gives model and images."""
    gc.collect()
    if device.type != "cuda":
        model, images = prepare()
        with LiveBytes() as counter:
            counter.add([images, *model.parameters(), *model.buffers()])
            work(model, images)
        return {"allocated": counter.peak, "reserved": None}
    work(*prepare())
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    work(*prepare())
    torch.cuda.synchronize(device)
    return {"allocated": torch.cuda.max_memory_allocated(device) - allocated,
            "reserved": torch.cuda.max_memory_reserved(device) - reserved}


def activation_bytes(forward: Callable[[int], torch.Tensor]) -> int:
    """Bytes that one more image in a batch of `forward(N)` holds until the backward pass, image and logits included.

    The difference between four images and two: weights and batch statistics drop out, and BatchNorm accepts two.
    """
    def held(n: int) -> int:
        with LiveBytes() as counter:
            _logits = forward(n)
            return counter.live

    return (held(4) - held(2)) // 2


def latency(forward: Callable[[], Any], device: torch.device, samples: int, seconds: float) -> dict[str, Any]:
    """Milliseconds of `forward()`: p50, p90, p99 and the raw samples in the order taken.

    Args:
        samples: to take after a warm-up of a tenth as many.
        seconds: limit of the warm-up and of the sampling each, after which one round and three samples suffice.
    """
    def take(count: int, least: int) -> list[float]:
        taken, end = [], time.perf_counter() + seconds
        while len(taken) < least or (len(taken) < count and time.perf_counter() < end):
            started = time.perf_counter()
            forward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append((time.perf_counter() - started) * 1e3)
        return taken

    take(samples // 10, 1)
    taken = take(samples, 3)
    p50, p90, p99 = torch.tensor(taken, dtype=torch.float64).quantile(torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64)).tolist()
    return {"p50": p50, "p90": p90, "p99": p99, "samples": taken}


def measure(model: nn.Module, input_size: tuple[int, int, int], batch_size: int = 64, device: torch.device | str = "cpu", *,
            amp_dtype: torch.dtype | None = None, memory_format: torch.memory_format = torch.contiguous_format,
            make_optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
            samples: int = 100, seconds: float = 3.0, quick: bool = False) -> dict[str, Any]:
    """The costs of a classifier, ready for JSON: counts, bytes, and latencies in milliseconds.

    Args:
        input_size: (3, H, W) of one image.
        batch_size: of the memory measurements and of the second latency; the first is of one image.
        amp_dtype: autocast to bfloat16 or float16; None stays in float32.
        make_optimizer: from parameters to the optimiser whose state counts as training memory.
        samples, seconds: see `latency`.
        quick: four images a batch at most, three samples, a tenth of a second: for a smoke run.
    """
    device = torch.device(device)
    if quick:
        batch_size, samples, seconds = min(batch_size, 4), 3, 0.1

    def prepare(n: int, training: bool) -> tuple[nn.Module, torch.Tensor]:
        twin = copy.deepcopy(model).to(device, memory_format=memory_format).requires_grad_(True).train(training)
        return twin, torch.empty((n, *input_size), device=device, memory_format=memory_format).uniform_()

    def forward(twin: nn.Module, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):
            return twin(images)

    def train(twin: nn.Module, images: torch.Tensor) -> None:
        optimizer = make_optimizer(twin.parameters())
        for parameter in twin.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        labels = torch.zeros(len(images), dtype=torch.long, device=device)
        F.cross_entropy(forward(twin, images).float(), labels).backward()
        optimizer.step()

    infer = torch.inference_mode()(forward)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            forward(*prepare(1, training=False))
        return {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "checkpoint_bytes": sum(tensor.nbytes for tensor in model.state_dict().values()),
            "flops_per_image": flops.get_total_flops(),
            "activation_bytes_per_image": activation_bytes(lambda n: forward(*prepare(n, training=True))),
            "train_memory": peak_memory(partial(prepare, batch_size, True), train, device),
            "inference_memory": peak_memory(partial(prepare, batch_size, False), infer, device),
            "memory_method": MEMORY_METHOD[device.type],
            "latency_ms": {str(n): latency(partial(infer, *prepare(n, training=False)), device, samples, seconds) for n in (1, batch_size)},
            "input_size": list(input_size), "batch_size": batch_size, "device": str(device),
            "amp_dtype": str(amp_dtype or torch.float32).removeprefix("torch."), "quick": quick,
        }
