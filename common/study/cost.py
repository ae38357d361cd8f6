"""What a network costs: memory and latency, whatever ran before in the process.

`measure` works on eager copies of the model, which stays as it was.

Memory is the peak of images, weights, activations, gradients and optimiser state in a
training step (the second, which finds the state made), or of images, weights and activations in one
forward pass. On CUDA it is what the allocator counts above what was held before,
`allocated` in tensors and `reserved` in new segments (none for a network so small that held
ones have room for it); an unmeasured round makes the workspaces of cuBLAS and cuDNN first,
then the cache is emptied. A CPU's resident set keeps pages of earlier work, so there the bytes
of live tensors are counted at each operation: the same every time, without a kernel's scratch
space, and with no `reserved`.

Latency is one forward pass in inference mode, from idle device to idle device, after ten as a
warm-up.
"""
import copy
import gc
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.files import Json

MEMORY_METHOD = {
    "cpu": "live tensor bytes counted at each operation, without kernel scratch space",
    "cuda": "allocator peak above what was held before, cache emptied and workspaces made first",
}
WARM_UP, SAMPLES = 10, 100  # forward passes, of one latency


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that live at the same time while it is entered: `live`
    now, `peak` at most."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.storages = weakref.WeakSet()

    def add(self, nest: Any) -> None:
        """Count each new storage in a nest of tensors, until it is freed."""
        for tensor in filter(torch.is_tensor, tree_leaves(nest)):
            storage = tensor.untyped_storage()
            if storage not in self.storages:
                self.storages.add(storage)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._drop, storage.nbytes())
        self.peak = max(self.peak, self.live)

    def _drop(self, size: int) -> None:
        """Take a freed storage off the count."""
        self.live -= size

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (),
                           kwargs: dict | None = None) -> Any:
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


def timed(work: Callable[[], Any], repeats: int = 1) -> float:
    """Seconds that `work` takes, the mean of `repeats`, from idle device to idle device."""
    sync = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    sync()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    sync()
    return (time.perf_counter() - started) / repeats


def latency(name: str, forward: Callable[[], Any], seconds: float) -> Json:
    """Milliseconds of `forward()`: the median as `latency_ms_<name>`, and its 90th and 99th
    percentile, after a warm-up; in so many seconds, or of three samples at least."""
    for _ in range(WARM_UP):
        forward()
    samples = []
    end = time.perf_counter() + seconds
    while len(samples) < 3 or len(samples) < SAMPLES and time.perf_counter() < end:
        samples.append(1e3 * timed(forward))
    values = np.percentile(samples, (50, 90, 99)).tolist()
    return dict(zip((f"latency_ms_{name}{rank}" for rank in ("", "_p90", "_p99")), values))


def measure(model: Module, input_size: Sequence[int], batch_size: int, device: torch.device,
            amp: torch.dtype | None = None, quick: bool = False) -> Json:
    """The costs of a classifier, ready for JSON: megabytes and milliseconds, see
    `peak_memory` and `latency`.

    Args:
        input_size: (3, H, W) of one image.
        batch_size: of the memory and of the second latency; the first is of one image.
        amp: dtype of autocast; None stays in float32.
        quick: four images a batch at most, for a tenth of a second: for a smoke run.
    """
    seconds = 3.0
    if quick:
        batch_size, seconds = min(batch_size, 4), 0.1
    # Both are decorators, too: every call of the network happens inside of them.
    forward = torch.autocast(device.type, amp, enabled=amp is not None)(Module.__call__)
    infer = torch.inference_mode()(forward)

    def prepare(n: int) -> tuple[Module, Tensor]:
        twin = copy.deepcopy(model).to(device, memory_format=torch.channels_last)
        images = torch.rand(n, *input_size).to(device, memory_format=torch.channels_last)
        return twin.eval(), images

    def train(twin: Module, images: Tensor) -> None:
        optimizer = torch.optim.AdamW(twin.train().parameters())
        labels = torch.zeros(len(images), dtype=torch.long, device=device)
        for _ in range(2):  # the first makes the optimiser's state, a part of every later peak
            optimizer.zero_grad()
            F.cross_entropy(forward(twin, images).float(), labels).backward()
            optimizer.step()

    some = partial(prepare, batch_size)
    return {
        "batch_n": batch_size,
        "memory_method": MEMORY_METHOD[device.type],
        **peak_memory("train", some, train, device),
        **peak_memory("inference", some, infer, device),
        **latency("1", partial(infer, *prepare(1)), seconds),
        **latency("n", partial(infer, *some()), seconds),
    }
