"""What a network costs: memory and latency, whatever ran before in the process.

`measure` works on eager copies of the model. The model, its mode and the random state stay
as they were.

Memory is the peak of images, weights, activations, gradients and optimiser state in one
training step (the state made beforehand), or of images, weights and activations in one
forward pass. On CUDA it is what the allocator counts above what was held before,
`allocated` in tensors and `reserved` in whole segments; an unmeasured round makes the
workspaces of cuBLAS and cuDNN first, then the cache is emptied. A CPU's resident set keeps
pages of earlier work, so there the bytes of live tensors are counted at each operation: the
same every time, without a kernel's scratch space, and with no `reserved`.

Latency is one forward pass in inference mode, from idle device to idle device, after a
warm-up.
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

from common.files import Json

MEMORY_METHOD = {
    "cpu": "live tensor bytes counted at each operation, without kernel scratch space",
    "cuda": "allocator peak above what was held before, cache emptied and workspaces made first",
}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that live at the same time while it is entered: `live`
    now, `peak` at most."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.storages: dict[int, weakref.ref] = {}

    def add(self, nest: Any) -> None:
        """Count each new storage in a nest of tensors, until it is freed."""
        for tensor in tree_leaves(nest):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self.storages:
                self.storages[key] = weakref.ref(storage, partial(self._drop, key, size))
                self.live += size
        self.peak = max(self.peak, self.live)

    def _drop(self, key: int, size: int, _: weakref.ref) -> None:
        """Take a freed storage off the count."""
        del self.storages[key]
        self.live -= size

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run an operation and count what it made."""
        made = func(*args, **(kwargs or {}))
        self.add(made)
        return made


def peak_memory(name: str, prepare: Callable, work: Callable, device: torch.device) -> Json:
    """Peak megabytes (10^6) of `work(*prepare())`: `<name>_memory_mb` allocated, and on
    CUDA `<name>_reserved_mb`.

    `prepare` gives model and images.
    """
    gc.collect()
    if device.type != "cuda":
        model, images = prepare()
        with LiveBytes() as counter:
            counter.add([images, *model.parameters(), *model.buffers()])
            work(model, images)
        return {f"{name}_memory_mb": counter.peak / 1e6}
    cuda = torch.cuda
    work(*prepare())
    gc.collect()
    cuda.synchronize()
    cuda.empty_cache()
    cuda.reset_peak_memory_stats()
    allocated, reserved = cuda.memory_allocated(), cuda.memory_reserved()
    work(*prepare())
    cuda.synchronize()
    return {
        f"{name}_memory_mb": (cuda.max_memory_allocated() - allocated) / 1e6,
        f"{name}_reserved_mb": (cuda.max_memory_reserved() - reserved) / 1e6,
    }


def latency(
    name: str, forward: Callable[[], Any], device: torch.device, samples: int, seconds: float
) -> Json:
    """Milliseconds of `forward()`: the median as `latency_ms_<name>`, and its 90th and 99th
    percentile.

    Args:
        samples: to take after a warm-up of a tenth as many.
        seconds: limit of the sampling, after which three samples suffice.
    """
    taken: list[float] = []
    warm_up = samples // 10 + 1
    end = time.perf_counter() + seconds
    enough, limit = warm_up + 3, warm_up + samples
    while len(taken) < enough or len(taken) < limit and time.perf_counter() < end:
        started = time.perf_counter()
        forward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append((time.perf_counter() - started) * 1e3)
    ranks = torch.tensor([0.5, 0.9, 0.99])
    values = torch.tensor(taken[warm_up:]).quantile(ranks).tolist()
    keys = (f"latency_ms_{name}{rank}" for rank in ("", "_p90", "_p99"))
    return dict(zip(keys, values))


def measure(
    model: nn.Module,
    input_size: tuple[int, int, int],
    batch_size: int,
    device: torch.device,
    amp: torch.dtype | None = None,
    quick: bool = False,
) -> Json:
    """The costs of a classifier, ready for JSON: megabytes and milliseconds, see
    `peak_memory` and `latency`.

    Args:
        input_size: (3, H, W) of one image.
        batch_size: of the memory and of the second latency; the first is of one image.
        amp: dtype of autocast; None stays in float32.
        quick: four images a batch at most, three samples, a tenth of a second: for a smoke run.
    """
    if quick:
        batch_size = min(batch_size, 4)
    samples, seconds = (3, 0.1) if quick else (100, 3.0)

    def prepare(n: int, training: bool) -> tuple[nn.Module, torch.Tensor]:
        twin = copy.deepcopy(model).to(device, memory_format=torch.channels_last)
        images = torch.rand(n, *input_size, device=device)
        images = images.to(memory_format=torch.channels_last)
        return twin.requires_grad_(True).train(training), images

    def forward(twin: nn.Module, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, amp, enabled=amp is not None):
            return twin(images)

    def train(twin: nn.Module, images: torch.Tensor) -> None:
        optimizer = torch.optim.AdamW(twin.parameters())
        for parameter in twin.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # makes its state, which belongs to the peak of every later step
        optimizer.zero_grad()
        labels = torch.zeros(len(images), dtype=torch.long, device=device)
        F.cross_entropy(forward(twin, images).float(), labels).backward()
        optimizer.step()

    infer = torch.inference_mode()(forward)
    costs: Json = {"batch_n": batch_size, "memory_method": MEMORY_METHOD[device.type]}
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        costs |= peak_memory("train", partial(prepare, batch_size, True), train, device)
        costs |= peak_memory("inference", partial(prepare, batch_size, False), infer, device)
        for name, n in (("1", 1), ("n", batch_size)):
            work = partial(infer, *prepare(n, False))
            costs |= latency(name, work, device, samples, seconds)
    return costs
