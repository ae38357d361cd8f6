"""Can this machine compile, and are all packages free of Rust?

    python -m common.toolchain

Prints one table: versions, whether `torch.compile` can work, a C++ extension of the project's own (`confusion.cpp`) built without
ninja, run and compared with PyTorch, and a search of every compiled file in the dependency closure of requirements.txt for Rust's
marks. Exit code 0: all well, 1: something is not. Nothing is skipped, so the CUDA build's 5 GB are read whole: about 25 s on two
cores the first time, 15 s later. What is wrong, and how to mend it, is raised as a RuntimeError of one line and makes a row.
"""
import argparse
import functools
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.metadata import Distribution
from pathlib import Path

SOURCE = Path(__file__).with_name("confusion.cpp")
REQUIREMENTS = Path(__file__).parents[1] / "requirements.txt"

# However a Rust binary was stripped, it keeps paths from its library's panic messages, or rustc's line in .comment.
# `rust_eh_personality` is no mark: every copy of LLVM (in Triton, NVRTC, cuDNN) holds that string.
MARKS = (b"/rustc/", b"rustc version ", b"library/core/src/", b"library/std/src/", b".cargo/registry/", b"rust_begin_unwind")
# How ELF, archives, Windows files, LLVM bitcode and Mach-O (one or several architectures) begin.
COMPILED = (b"\x7fELF", b"!<arch>\n", b"MZ", b"BC\xc0\xde", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
SOURCES = {".py", ".pyi", ".pyc", ".h", ".hpp", ".cuh"}


def find_compiler(variable: str = "CXX", names: tuple[str, ...] = ("g++", "clang++", "c++")) -> list[str]:
    """The command that the environment `variable` names, else the first of `names` on PATH; else RuntimeError."""
    named = shlex.split(os.environ.get(variable, ""))
    for command in [named] if named else [[name] for name in names]:
        if path := shutil.which(command[0]):
            return [path, *command[1:]]
    wanted = f"{variable}={named[0]}" if named else " or ".join(names)
    raise RuntimeError(f"{wanted} is not on PATH: install a compiler, or name one in {variable}")


def _run(command: list[str], output: Path | None = None) -> str:
    """What a command prints; RuntimeError with its first complaint where it fails or leaves `output` empty."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
    except OSError as error:
        raise RuntimeError(f"{command[0]} does not start: {error.strerror}") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["it says nothing"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise RuntimeError(f"{command[0]} fails with exit status {done.returncode}: {first}")
    if output and not (output.is_file() and output.stat().st_size):
        raise RuntimeError(f"{command[0]} ends well but compiles nothing: name a compiler in its place")
    return done.stdout


@functools.cache
def compile_ready(device_type: str) -> str | None:
    """None where `torch.compile` can work for "cpu" or "cuda", else one line saying why it cannot.

    Takes a second or two, and is remembered. A CPU needs the compiler that Inductor asks for ($CXX or g++), CUDA needs Triton,
    a GPU that Triton knows, and a C compiler for Triton's launchers; both need Python's headers.
    """
    import torch

    on_cuda = device_type == "cuda"
    module = "triton" if on_cuda else "setuptools"  # Inductor's C++ side cannot be imported without it
    if importlib.util.find_spec(module) is None:
        return f"{module} is not installed: pip install {module}"
    if on_cuda and torch.cuda.is_available() and torch.cuda.get_device_capability() < (7, 0):
        return f"Triton needs compute capability 7.0, {torch.cuda.get_device_name()} has less"
    try:
        compiler = find_compiler("CC", ("gcc", "clang")) if on_cuda else find_compiler("CXX", ("g++",))
        with tempfile.TemporaryDirectory() as folder:
            source, output = Path(folder, "probe.c" if on_cuda else "probe.cpp"), Path(folder, "probe.so")
            source.write_text(f"#include <{'math.h' if on_cuda else 'cmath'}>\n#include <Python.h>\nint probe;\n")
            flags = ["-shared", "-fPIC", f"-I{sysconfig.get_path('include')}", *([] if on_cuda else ["-fopenmp"])]
            _run([*compiler, str(source), "-o", str(output), *flags], output)
        from torch._dynamo import is_dynamo_supported
    except (RuntimeError, ImportError, OSError) as error:
        return str(error).partition("\n")[0]
    return None if is_dynamo_supported() else f"PyTorch {torch.__version__} cannot compile under this Python"


def build_extension() -> Path:
    """The extension's library, built unless the cache holds it for this source, PyTorch and compiler."""
    import torch

    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of nvcc without a GPU
    from torch.utils.cpp_extension import include_paths, library_paths

    compiler = find_compiler()
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    key = repr((SOURCE.read_text(), torch.__version__, abi, platform.machine(), _run([*compiler, "--version"])))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cifar10-study"
    library = cache / f"confusion-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if library.is_file():
        return library
    # the run path leads to torch/lib, so that at::parallel_for finds PyTorch's OpenMP there and not a second one
    flags = ["-shared", "-fPIC", "-O2", "-std=c++20", "-fopenmp", abi, *(f"-isystem{path}" for path in include_paths()),
             *(option + path for path in library_paths() for option in ("-L", "-Wl,-rpath,")), "-ltorch_cpu", "-lc10"]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            partial = Path(folder, library.name)
            _run([*compiler, str(SOURCE), "-o", str(partial), *flags], partial)
            return partial.replace(library)
    except OSError as error:
        raise RuntimeError(f"{cache} is not writable ({error.strerror}): set XDG_CACHE_HOME to a folder that is") from None


def check_extension() -> str:
    """Words on the extension once built, run and found equal to PyTorch; RuntimeError where it differs."""
    import torch

    started = time.perf_counter()
    torch.ops.load_library(library := build_extension())
    generator = torch.Generator().manual_seed(0)
    for n, k, dtype in ((0, 3, torch.int64), (1, 1, torch.uint8), (99_999, 10, torch.uint8), (99_999, 300, torch.int64)):
        labels, preds = torch.randint(k, (2, n), generator=generator).to(dtype)
        expected = torch.bincount(labels.long() * k + preds.long(), minlength=k * k).view(k, k)
        if not torch.equal(torch.ops.cifar10_study.confusion(labels, preds, k), expected):
            raise RuntimeError(f"{library} differs from PyTorch on {n} labels of {k} classes")
    return f"equals PyTorch, {time.perf_counter() - started:.1f} s, {library}"


def closure(lines: Iterable[str], extras: Iterable[str] = (), found: dict | None = None) -> dict[str, Distribution]:
    """Installed distributions that requirement lines lead to, by name with the extras asked for.

    Markers on Python or platform are taken as met: what they exclude is seldom installed, and if it is, it is searched. opencv-python
    may be installed as opencv-python-headless.
    """
    found = {} if found is None else found
    for line in lines:
        name, wanted, rest = re.match(r"\s*([\w.-]*)\s*(?:\[(.*?)\])?([^#]*)", line).groups()
        only = re.findall(r"extra\s*==\s*['\"](.*?)['\"]", rest)
        key = f"{name}[{wanted or ''}]"
        if not name or key in found or (only and not set(extras) & set(only)):
            continue
        try:
            found[key] = importlib.metadata.distribution(name)
            closure(found[key].requires or (), re.findall(r"[\w.-]+", wanted or ""), found)
        except importlib.metadata.PackageNotFoundError:
            closure(["opencv-python-headless"] if name == "opencv-python" else (), (), found)
    return found


def rust_marks(path: Path) -> list[str] | None:
    """Rust's marks in a compiled file, which is read whole; None for a file that is not compiled code."""
    marks, window = set(), b""
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            if not window and not block.startswith(COMPILED):
                return None
            window = window[-32:] + block
            marks.update(mark.decode() for mark in MARKS if mark in window)
    return sorted(marks) if window else None


def scan(distribution: Distribution) -> str:
    """What was searched in a distribution, executables included; RuntimeError where a file holds Rust's marks."""
    if distribution.files is None:
        raise RuntimeError("has no list of its files, so it cannot be searched: install it again with pip")
    paths = (Path(distribution.locate_file(entry)) for entry in distribution.files if entry.suffix not in SOURCES)
    marks = {path: found for path in paths if path.is_file() and (found := rust_marks(path)) is not None}
    if rust := [f"{path.name} ({', '.join(found)})" for path, found in marks.items() if found]:
        raise RuntimeError(f"built with Rust: {'; '.join(rust)}")
    megabytes = sum(path.stat().st_size for path in marks) / 1e6
    return f"{len(marks)} compiled files, {megabytes:.2f} MB, no Rust" if marks else "no compiled file"


def versions() -> str:
    """PyTorch's version, its CUDA and Triton, and the GPU with its driver where there is one."""
    import torch

    triton = importlib.import_module("triton").__version__ if importlib.util.find_spec("triton") else None
    words = f"{torch.__version__}, CUDA {torch.version.cuda}, Triton {triton}"
    if not torch.cuda.is_available():
        return f"{words}, no GPU in reach"
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = _run(asked).split()[0] if shutil.which(asked[0]) else "unknown"
    return f"{words}, driver {driver}, {torch.cuda.get_device_name()}"


def devices_ready() -> str:
    """The devices that `torch.compile` can serve here; RuntimeError where it cannot serve one that is present."""
    import torch

    reasons = {device: compile_ready(device) for device in ("cpu", "cuda")[: 1 + torch.cuda.is_available()]}
    if wrong := [f"not on {device}: {reason}" for device, reason in reasons.items() if reason]:
        raise RuntimeError("; ".join(wrong))
    return f"ready on {' and '.join(reasons)}"


def main() -> int:
    """Prints the table, row by row; 0 where every row is ok, else 1."""
    parser = argparse.ArgumentParser(description="Check the compiler, a C++ extension, and that no package holds Rust.")
    parser.add_argument("--requirements", type=Path, default=REQUIREMENTS, help="file whose closure is searched")
    requirements, started, failed = parser.parse_args().requirements, time.perf_counter(), []
    if not requirements.is_file():
        parser.error(f"--requirements {requirements} is not a file")
    lines = [line for line in requirements.read_text().splitlines() if re.match(r"\w", line)]
    checks: dict[str, Callable[[], str]] = {
        f"Python {platform.python_version()}": lambda: sys.executable,
        "PyTorch": versions,
        "C++ compiler": lambda: f"{_run([*find_compiler(), '--version']).partition(chr(10))[0]}, {find_compiler()[0]}",
        "torch.compile": devices_ready,
        "C++ extension": check_extension,
    }
    packages = sorted(closure(lines).values(), key=lambda package: package.name.lower())
    checks |= {f"{package.name} {package.version}": functools.partial(scan, package) for package in packages}
    for name, check in checks.items():
        try:
            verdict, found = "ok", check()
        except (RuntimeError, ImportError, OSError) as error:
            verdict, found = "FAIL", str(error).partition("\n")[0]
            failed.append(name)
        print(f"{verdict:4}  {name:30}  {found}", flush=True)
    absent = [line for line in lines if not closure([line])]
    print(f"{len(checks)} checks in {time.perf_counter() - started:.1f} s, failed: {', '.join(failed) or 'none'}"
          + (f"; not installed, so not searched: {', '.join(absent)}" if absent else ""))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
