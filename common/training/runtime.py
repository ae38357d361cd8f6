"""Device, seeds, mixed precision and the decision to compile."""
import ctypes
import gc
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision
from torch import backends, cuda

from common.config import Runtime
from common.errors import InputError, reason
from common.files import Json
from common.words import count

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
# Training images on a GPU below which compiling takes longer than faster steps save.
COMPILE_PAYS_AFTER = 5_000_000
TRIED_ALGORITHMS = 4  # of cuDNN for each convolution, of PyTorch's ten: a shorter first step


def pick_device(runtime: Runtime) -> torch.device:
    """The device asked for; `auto` is CUDA where there is one.

    Raises:
        InputError: `--device cuda` without a usable GPU.
    """
    if runtime.device != "cpu" and cuda.is_available():
        return torch.device("cuda", cuda.current_device())
    if runtime.device == "cuda":
        raise InputError("--device cuda: this torch sees no CUDA GPU; use --device cpu, or check "
                         "the driver with nvidia-smi")
    return torch.device("cpu")


def set_up(runtime: Runtime, seed: int, tune: bool = False) -> torch.device:
    """The device, after seeding torch and setting determinism, TF32 and, on a CPU, how memory is
    kept; what an earlier run of this process left on a GPU is freed.

    Args:
        tune: let cuDNN try several algorithms for each convolution. A step of B2 is then 1.4 times
            as fast (16,128 images/s on an H200 against 11,487), and its first one takes 31 s, not
            13 s: it pays in training that lasts a minute, at shapes that are few and stay.
    """
    device = pick_device(runtime)
    if device.type == "cpu":
        _keep_freed_memory()
    else:  # free what an earlier run left, so that no run's peak is another's
        gc.collect()  # a compiled model is a cycle of references
        torch._C._cuda_clearCublasWorkspaces()
        cuda.empty_cache()
        cuda.reset_peak_memory_stats()
    torch.manual_seed(seed)
    fast = not runtime.deterministic
    backends.cudnn.benchmark = fast and tune
    backends.cudnn.benchmark_limit = TRIED_ALGORITHMS
    backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = fast
    if runtime.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # Else every torch.empty is filled, in a launch of its own.
        torch.utils.deterministic.fill_uninitialized_memory = False
    return device


def _keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one.

    By default large tensors go back to the system and return page by page: a fifth of the
    processor's time in a step of B2 at 64 px, batch 125. No effect but on glibc.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def amp_dtype(runtime: Runtime, device: torch.device, model: str) -> torch.dtype | None:
    """dtype of autocast for a network, None for plain fp32.

    `auto` on a CPU is bf16 where the processor computes in it, but not for B2: on an EPYC with
    AVX512-BF16 (docs/results) it is 1.6 to 1.8 times as fast as fp32, with B2 0.6 times.

    Raises:
        InputError: `--amp fp16` on a CPU.
    """
    on_cpu = device.type == "cpu"
    if runtime.amp == "fp16" and on_cpu:
        raise InputError("--amp fp16 needs a GPU: use --amp bf16 or --amp off on a CPU")
    name = runtime.amp
    if name == "auto" and on_cpu:
        name = "bf16" if model != "efficientnet_b2" and _cpu_has_bf16() else "off"
    elif name == "auto":
        # Emulated bf16 of older GPUs is slower than their fp16.
        name = "bf16" if cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def precision(amp: torch.dtype | None) -> str:
    """Name of what autocast computes in, float32 without it."""
    return str(amp or torch.float32).removeprefix("torch.")


def _cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 in hardware (AVX512-BF16 or AMX)."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def wants_compile(runtime: Runtime, device: torch.device, training_images: int) -> bool:
    """Whether to compile; `auto`: a long run on a GPU; never without a compiler, and says so."""
    pays = device.type == "cuda" and training_images >= COMPILE_PAYS_AFTER
    if runtime.compile == "off" or runtime.compile == "auto" and not pays:
        return False
    if problem := compile_problem(device):
        print(f"not compiled: {problem}; python -m common.toolchain tells more")
        return False
    return True


def compile_problem(device: torch.device) -> str | None:
    """Why torch.compile fails on `device`, in one line; None where an addition compiles."""
    try:
        with torch._dynamo.config.patch(suppress_errors=False):
            torch.compile(lambda x: x + 1)(torch.zeros(1, device=device))
    except Exception as error:  # whatever a compiler, or the want of one, makes PyTorch raise
        return reason(error)
    return None


def environment(device: torch.device) -> Json:
    """Versions, hardware and git commit, as they belong beside every figure."""
    # The number of threads belongs to a CPU's figure as its name does.
    hardware = f"CPU {_cpu_name()}, {count(torch.get_num_threads(), 'thread')}"
    version = None
    if device.type == "cuda":
        hardware, version = cuda.get_device_name(device), torch.version.cuda
    return {
        "hardware": hardware, "python": platform.python_version(),
        "torch": str(torch.__version__), "torchvision": torchvision.__version__,
        "numpy": np.__version__, "opencv": cv2.__version__, "cuda": version,
        "platform": sys.platform, "git_commit": _git_commit(),
    }


def _cpu_name() -> str:
    """The processor's name as Linux gives it, elsewhere its architecture."""
    with suppress(OSError):
        if found := re.search(r"(?m)^model name\s*: (.+)", Path("/proc/cpuinfo").read_text()):
            return found[1]
    return platform.machine()


def _git_commit() -> str | None:
    """Short hash of the project's commit, with `+` if files differ from it; None outside of git."""
    words = ["git", "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"]
    here = Path(__file__).parent
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(words, cwd=here, timeout=5, capture_output=True, text=True)
        return done.stdout.strip() or None
    return None
