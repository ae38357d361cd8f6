"""Device, seeds, mixed precision and the decision to compile."""
import ctypes
import os
import platform
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torchvision

from common import toolchain
from common.config import Runtime
from common.errors import InputError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
COMPILE_PAYS_AFTER = 5_000_000  # training images on a GPU: below it the compile time exceeds what faster steps save


def pick_device(runtime: Runtime) -> torch.device:
    """The device asked for; `auto` is CUDA where there is one.

    Raises:
        InputError: `--device cuda` without a usable GPU.
    """
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this torch sees no CUDA GPU; use --device cpu, or check the driver with nvidia-smi")
    if runtime.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def set_up(runtime: Runtime, seed: int) -> torch.device:
    """The device, after seeding every generator and setting determinism, TF32 and, on a CPU, how memory is kept."""
    device = pick_device(runtime)
    if device.type == "cpu":
        _keep_freed_memory()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = not runtime.deterministic
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not runtime.deterministic
    if runtime.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return device


def _keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one; by default large tensors go back to the system and return page by page.

    Without it about a fifth of the processor's time in a step of B2 at 64 px, batch 125, went into page faults. No effect but on glibc.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def amp_dtype(runtime: Runtime, device: torch.device, model: str) -> torch.dtype | None:
    """dtype of autocast for a network, None for plain fp32.

    `auto` on a CPU is bf16 where the processor computes in it, but for EfficientNet-B2: measured on an EPYC with AVX512-BF16
    (the benches in docs/results), 1.6 to 1.8 times as fast as fp32 for the other three, 0.6 times for B2.

    Raises:
        InputError: `--amp fp16` on a CPU.
    """
    if runtime.amp == "fp16" and device.type == "cpu":
        raise InputError("--amp fp16 needs a GPU: use --amp bf16 or --amp off on a CPU")
    if runtime.amp in ("bf16", "fp16"):
        return torch.bfloat16 if runtime.amp == "bf16" else torch.float16
    if runtime.amp == "off":
        return None
    if device.type == "cpu":
        return torch.bfloat16 if model != "efficientnet_b2" and _cpu_has_bf16() else None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def precision(amp: torch.dtype | None) -> str:
    """Name of what autocast computes in, float32 without it."""
    return str(amp or torch.float32).removeprefix("torch.")


def _cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 in hardware (AVX512-BF16 or AMX)."""
    return any(getattr(torch.cpu, name, lambda: False)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


def wants_compile(runtime: Runtime, device: torch.device, training_images: int) -> bool:
    """Whether to compile: `auto` only on a GPU and for a run long enough; never without a working compiler, and says so.

    What Inductor and Triton compile is kept beside the decoded images, unless $TORCHINDUCTOR_CACHE_DIR names another place.
    """
    wanted = runtime.compile == "on" or (runtime.compile == "auto" and device.type == "cuda" and training_images >= COMPILE_PAYS_AFTER)
    if wanted:
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(home / "cifar10-study" / "inductor"))  # the default is a folder that a reboot empties
    if wanted and (problem := toolchain.compile_ready(device.type)):
        print(f"not compiled: {problem}")
        return False
    return wanted


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, hardware and git commit, as they belong beside every figure."""
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {_cpu_name()}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    return {"hardware": hardware, "python": platform.python_version(), "torch": str(torch.__version__), "torchvision": torchvision.__version__,
            "numpy": np.__version__, "opencv": cv2.__version__, "cuda": torch.version.cuda if device.type == "cuda" else None,
            "platform": sys.platform, "git_commit": _git_commit()}


def peak_rss() -> int | None:
    """Largest resident set of this process so far in bytes, from Linux's /proc; None elsewhere.

    Not from getrusage: its figure starts at that of the process which launched this one.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    except (OSError, StopIteration):
        return None


def _cpu_name() -> str:
    """The processor's name as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def _git_commit() -> str | None:
    """Short hash of the project's commit, with `+` if files differ from it; None outside of git."""
    here = Path(__file__).parent
    try:
        ask = lambda *args: subprocess.run(["git", "-C", str(here), *args], capture_output=True, text=True, timeout=5, check=True).stdout.strip()  # noqa: E731
        return ask("rev-parse", "--short=12", "HEAD") + ("+" if ask("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
