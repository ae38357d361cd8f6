"""Can this machine compile, and are all packages free of Rust?

    python -m common.toolchain

One table: versions, torch.compile, an extension of our own built, run and compared with PyTorch,
and a search of all compiled files that requirements.txt leads to, of the CUDA build 5 GB in 30 s.
Exit code 1 where a check raises an exception, whose line makes the row.
"""
import mmap
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from common.config import Parser
from common.errors import run_script
from common.words import count

SOURCE = Path(__file__).with_name("confusion.cpp")
REQUIREMENTS = Path(__file__).parents[1] / "requirements.txt"
# A stripped Rust binary keeps paths of its library's panics, or rustc's line in .comment.
# `rust_eh_personality` is no mark: every copy of LLVM holds that string.
MARKS = (b"/rustc/", b"rustc version ", b"library/core/src/", b"library/std/src/",
         b".cargo/registry/", b"rust_begin_unwind")
# How ELF, archives, Windows files, LLVM bitcode and Mach-O (one or several architectures) begin.
COMPILED = (b"\x7fELF", b"!<arch>\n", b"MZ", b"BC\xc0\xde", b"\xcf\xfa\xed\xfe",
            b"\xca\xfe\xba\xbe")


def output(*command: str | Path) -> str:
    """What a command prints; RuntimeError with its complaints where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace",
                          env={**os.environ, "LC_ALL": "C"})
    if done.returncode:
        raise RuntimeError(done.stderr or f"{command[0]} fails and does not say why")
    return done.stdout


def check_compile() -> str:
    """Compiles a function for the GPU, or else for the CPU, and runs it."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.compile(lambda x: x + 1)(torch.zeros(1, device=device))
    return f"works on {device}"


def check_extension() -> str:
    """Builds the extension with the compiler that PyTorch takes, runs it, and compares."""
    import torch
    from torch.utils.cpp_extension import include_paths, library_paths

    compiler = shlex.split(os.environ.get("CXX") or "c++")
    if not shutil.which(compiler[0]):
        raise RuntimeError(f"{compiler[0]} is not on PATH: install it, or name another with CXX")
    version = output(*compiler, "--version").partition("\n")[0]
    libraries = library_paths()[0]
    # The run path leads at::parallel_for to PyTorch's OpenMP, not to a second one.
    flags = ["-std=c++20", "-fopenmp", "-shared", "-fPIC", "-ltorch_cpu", "-lc10",
             f"-L{libraries}", f"-Wl,-rpath,{libraries}",
             *(f"-isystem{path}" for path in include_paths())]
    with tempfile.TemporaryDirectory() as folder:
        output(*compiler, SOURCE, *flags, "-o", f"{folder}/confusion.so")
        torch.ops.load_library(f"{folder}/confusion.so")
    labels, preds = torch.randint(10, (2, 99_999))
    expected = torch.bincount(10 * labels + preds, minlength=100).view(10, 10)
    if not torch.ops.cifar10_study.confusion(labels, preds, 10).equal(expected):
        raise RuntimeError(f"{SOURCE.name} was built, but differs from PyTorch")
    return f"{version}; {SOURCE.name} built, equals PyTorch"


def closure(lines: list[str]) -> dict[str, metadata.Distribution]:
    """Installed distributions that requirement lines lead to, by name; optional ones only through
    extras."""
    found, seen, todo = {}, set(), [(line, "") for line in lines]
    for line, extras in todo:  # which grows
        name, wanted, rest = re.match(r"\s*([\w.-]*)\s*(\[.*?\])?([^#]*)", line).groups("")
        if not name or name + wanted in seen or "extra" in rest and not extras:
            continue
        seen.add(name + wanted)
        with suppress(metadata.PackageNotFoundError):
            package = metadata.distribution(name)
            found[package.name] = package
            todo += [(more, wanted) for more in package.requires or ()]
    return found


def rust_marks(path: Path) -> list[str]:
    """Rust's marks in a file, which is mapped, not loaded; none where it is no compiled code."""
    with open(path, "rb") as file:
        if not file.read(8).startswith(COMPILED):
            return []
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return [mark.decode() for mark in MARKS if content.find(mark) >= 0]


def check_packages() -> str:
    """How much was searched; names every distribution that holds Rust or cannot be searched."""
    lines = REQUIREMENTS.read_text().splitlines()
    packages, problems = closure([*lines, "opencv-python-headless"]), []
    for name, package in packages.items():
        if package.files is None:
            problems.append(f"{name} has no list of its files: install it again")
        for path in map(package.locate_file, package.files or ()):
            if path.is_file() and (marks := rust_marks(path)):
                problems.append(f"{name} is built with Rust ({path.name}: {', '.join(marks)})")
    if problems:
        raise RuntimeError("; ".join(problems))
    return f"{count(len(packages), 'package')}, no Rust"


def check_versions() -> str:
    """Python, PyTorch and its CUDA, and the GPU with its driver where there is one."""
    import torch

    gpu = "no GPU in reach"
    if torch.cuda.is_available():
        driver = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        gpu = f"driver {driver.split()[0]}, {torch.cuda.get_device_name()}"
    return (f"Python {platform.python_version()}, PyTorch {torch.__version__}, "
            f"CUDA {torch.version.cuda}, {gpu}")


def main() -> int:
    """Prints the table, row by row; 0 where every row is ok, else 1."""
    Parser(prog="python -m common.toolchain", description=__doc__.partition("\n")[0]).parse_args()
    failed = 0
    for check in (check_versions, check_compile, check_extension, check_packages):
        try:
            verdict, words = "ok", check()
        except Exception as error:
            text = str(error)
            lines = [*re.findall(".*error: .*", text), *text.splitlines(), repr(error)]
            verdict, words, failed = "FAIL", lines[0], 1
        print(f"{verdict:4}  {check.__name__.removeprefix('check_'):9}  {words}", flush=True)
    return failed


if __name__ == "__main__":
    run_script(main)
