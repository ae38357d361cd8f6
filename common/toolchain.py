"""Can this machine compile, and are all packages free of Rust?

    python -m common.toolchain

Prints one table: versions, whether `torch.compile` can work, a C++ extension of the project's own
(`confusion.cpp`) built without ninja, run and compared with PyTorch, and a search of every compiled
file in the dependency closure of requirements.txt for Rust's marks. Exit code 0: all well, 1:
something is not. Nothing is skipped, so the CUDA build's 5 GB are read whole: about 30 s on two
cores. What is wrong, and how to mend it, is raised as a RuntimeError of one line and makes a row.
"""
import functools
import importlib.util
import logging
import mmap
import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from common.config import Parser, a_path
from common.errors import run_script
from common.words import count

SOURCE = Path(__file__).with_name("confusion.cpp")
REQUIREMENTS = Path(__file__).parents[1] / "requirements.txt"

REQUIREMENT = re.compile(r"\s*([\w.-]*)\s*(?:\[(.*?)\])?([^#]*)")  # name, extras, the rest
# However a Rust binary was stripped, it keeps paths from its library's panic messages, or rustc's
# line in .comment. `rust_eh_personality` is no mark: every copy of LLVM holds that string.
MARKS = (b"/rustc/", b"rustc version ", b"library/core/src/", b"library/std/src/",
         b".cargo/registry/", b"rust_begin_unwind")
# How ELF, archives, Windows files, LLVM bitcode and Mach-O (one or several architectures) begin.
COMPILED = (b"\x7fELF", b"!<arch>\n", b"MZ", b"BC\xc0\xde", b"\xcf\xfa\xed\xfe",
            b"\xca\xfe\xba\xbe")
# What compiling for a device takes: a module, the variable that may name the compiler, the
# compilers that are tried else, and their flags.
NEEDS = {
    "cpu": ("setuptools", "CXX", ("g++",), ["-fopenmp"]),
    "cuda": ("triton", "CC", ("gcc", "clang"), []),
}
LIBRARY = ("-shared", "-fPIC", "-o")


def find_compiler(variable: str = "CXX",
                  names: tuple[str, ...] = ("g++", "clang++", "c++")) -> list[str]:
    """The command that the environment `variable` names, else the first of `names` on PATH; else
    RuntimeError."""
    if named := os.environ.get(variable):
        names = (named,)
    for name, *flags in map(shlex.split, names):
        if path := shutil.which(name):
            return [path, *flags]
    raise RuntimeError(f"{' or '.join(names)} is not on PATH: install a compiler, or name one in "
                       f"{variable}")


def _run(*command: str | Path) -> str:
    """What a command prints; RuntimeError with its first complaint where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace",
                          env={**os.environ, "LC_ALL": "C"})
    if done.returncode:
        lines = done.stderr.splitlines() or ["it says nothing"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise RuntimeError(f"{command[0]} fails: {first}")
    return done.stdout


@functools.cache
def compile_ready(device_type: str) -> str | None:
    """None where `torch.compile` can work for "cpu" or "cuda", else one line saying why it cannot.

    Takes a second or two, and is remembered. A CPU needs the compiler that Inductor asks for ($CXX
    or g++), CUDA needs Triton and a C compiler for its launchers; both need Python's headers.
    """
    module, variable, names, flags = NEEDS[device_type]
    if importlib.util.find_spec(module) is None:
        return f"{module} is not installed: pip install {module}"
    try:
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder, "probe.c")
            probe.write_text("#include <Python.h>\nint probe;\n")
            flags = [f"-I{sysconfig.get_path('include')}", *flags, *LIBRARY, f"{probe}.so"]
            _run(*find_compiler(variable, names), probe, *flags)
        from torch._dynamo import is_dynamo_supported
    except (RuntimeError, ImportError, OSError) as error:
        return str(error).partition("\n")[0]
    return None if is_dynamo_supported() else "PyTorch cannot compile under this Python"


def check_extension() -> str:
    """Builds the extension, runs it and compares it with PyTorch; RuntimeError where they
    differ."""
    import torch

    from common.metrics import confusion_matrix

    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # nvcc without a GPU
    from torch.utils.cpp_extension import include_paths, library_paths

    flags = ["-O2", "-std=c++20", "-fopenmp", "-ltorch_cpu", "-lc10"]
    flags += [f"-isystem{path}" for path in include_paths()]
    for path in library_paths():
        # The run path leads at::parallel_for to PyTorch's OpenMP, not to a second one.
        flags += [f"-L{path}", f"-Wl,-rpath,{path}"]
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/confusion.so"
        _run(*find_compiler(), SOURCE, *flags, *LIBRARY, library)
        torch.ops.load_library(library)
    labels, preds = torch.randint(10, (2, 99_999))
    counts = torch.ops.cifar10_study.confusion(labels, preds, 10)
    if not counts.equal(confusion_matrix(preds, labels, 10)):
        raise RuntimeError(f"{SOURCE.name} was built, but differs from PyTorch")
    return f"{SOURCE.name} built, equals PyTorch"


def closure(lines: Iterable[str]) -> dict[str, Distribution]:
    """Installed distributions that requirement lines lead to, by name with the extras asked for.

    Markers on Python or platform are taken as met: what they exclude is seldom installed, and if it
    is, it is searched. opencv-python may be installed as opencv-python-headless.
    """
    found, todo = {}, [(line, ()) for line in lines]  # with the extras that were asked for
    for line, extras in todo:  # which grows
        name, wanted, rest = REQUIREMENT.match(line).groups(default="")
        only = re.findall(r"extra\s*==\s*['\"](.*?)['\"]", rest)
        key = f"{name}[{wanted}]"
        if not name or key in found or only and not {*extras} & {*only}:
            continue
        try:
            found[key] = distribution(name)
            asked = re.findall(r"[\w.-]+", wanted)
            todo += [(line, asked) for line in found[key].requires or ()]
        except PackageNotFoundError:
            if name == "opencv-python":
                todo.append(("opencv-python-headless", ()))
    return found


def rust_marks(path: Path) -> list[str] | None:
    """Rust's marks in a compiled file, which is read whole; None for a file that is not compiled
    code."""
    with open(path, "rb") as file:
        if not file.read(8).startswith(COMPILED):
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return [mark.decode() for mark in MARKS if content.find(mark) >= 0]


def scan(distributions: Iterable[Distribution]) -> str:
    """How much was searched for Rust's marks, executables included; RuntimeError naming every
    distribution that holds some or cannot be searched."""
    packages = {package.name: package for package in distributions}
    searched, problems = 0, []
    for name, package in packages.items():
        if package.files is None:
            problems.append(f"{name} has no list of its files: install it again")
        for entry in package.files or ():
            path = Path(package.locate_file(entry))
            marks = rust_marks(path) if path.is_file() else None
            searched += marks is not None
            if marks:
                problems.append(f"{name} is built with Rust ({path.name}: {', '.join(marks)})")
    if problems:
        raise RuntimeError("; ".join(problems))
    return f"{count(len(packages), 'package')}, {count(searched, 'compiled file')}, no Rust"


def check_packages(requirements: Path) -> str:
    """What `scan` says of the closure of a list of requirements."""
    return scan(closure(Path(requirements).read_text().splitlines()).values())


def versions() -> str:
    """Python, PyTorch and its CUDA, and the GPU with its driver where there is one."""
    import torch

    words = (f"Python {platform.python_version()}, PyTorch {torch.__version__}, "
             f"CUDA {torch.version.cuda}")
    if not torch.cuda.is_available():
        return f"{words}, no GPU in reach"
    driver = _run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return f"{words}, driver {driver.split()[0]}, {torch.cuda.get_device_name()}"


def check_compile() -> str:
    """The devices that `torch.compile` can serve here; RuntimeError where it cannot serve one that
    is present."""
    import torch

    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    for device in devices:
        if problem := compile_ready(device):
            raise RuntimeError(f"not on {device}: {problem}")
    return f"ready on {' and '.join(devices)}"


def main() -> int:
    """Prints the table, row by row; 0 where every row is ok, else 1."""
    parser = Parser(prog="python -m common.toolchain", description=__doc__.partition("\n")[0])
    parser.add_argument("--requirements", type=a_path, default=REQUIREMENTS, metavar="FILE",
                        help="list of the packages to search (default: requirements.txt)")
    requirements = parser.parse_args().requirements
    checks = {
        "versions": versions,
        "C++ compiler": lambda: _run(*find_compiler(), "--version").partition("\n")[0],
        "torch.compile": check_compile,
        "C++ extension": check_extension,
        "packages": lambda: check_packages(requirements),
    }
    failed = 0
    for name, check in checks.items():
        try:
            verdict, words = "ok", check()
        except (RuntimeError, ImportError, OSError) as error:
            verdict, words = "FAIL", str(error).partition("\n")[0]
            failed = 1
        print(f"{verdict:4}  {name:13}  {words}", flush=True)
    return failed


if __name__ == "__main__":
    run_script(main)
