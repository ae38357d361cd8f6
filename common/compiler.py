"""Can torch.compile work here? It needs a C or C++ compiler that works, and Triton on CUDA."""
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

# What it needs: a module, the variable that names a compiler, those tried else, flags.
NEEDS = {"cpu": ("setuptools", "CXX", ("g++",), ["-fopenmp"]),
         "cuda": ("triton", "CC", ("gcc", "clang"), [])}


def find_compiler(variable: str = "CXX",
                  names: tuple[str, ...] = ("g++", "clang++", "c++")) -> list[str]:
    """The command that the environment `variable` names, else the first of `names` on PATH."""
    names = [os.environ[variable]] if os.environ.get(variable) else names
    for name, *flags in map(shlex.split, names):
        if path := shutil.which(name):
            return [path, *flags]
    raise RuntimeError(f"{' or '.join(names)} is not on PATH: install it, or set {variable}")


def output(*command: str | Path) -> str:
    """What a command prints; RuntimeError with its first complaint where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace",
                          env={**os.environ, "LC_ALL": "C"})
    if done.returncode:
        said = re.search(".*error.*", done.stderr) or re.search(".+", done.stderr)
        raise RuntimeError(f"{command[0]} fails: {said[0] if said else 'it says nothing'}")
    return done.stdout


def compile_ready(device_type: str) -> str | None:
    """None where torch.compile can work for "cpu" or "cuda", else one line saying why it cannot."""
    module, variable, names, flags = NEEDS[device_type]
    if importlib.util.find_spec(module) is None:
        return f"{module} is not installed: pip install {module}"
    try:
        with tempfile.TemporaryDirectory() as folder:
            header, target = f"{sysconfig.get_path('include')}/Python.h", f"{folder}/empty.so"
            output(*find_compiler(variable, names), *flags, "-shared", "-fPIC", "-include", header,
                   "-xc", os.devnull, "-o", target)
        from torch._dynamo import is_dynamo_supported
    except (RuntimeError, ImportError, OSError) as error:
        return str(error).partition("\n")[0]
    return None if is_dynamo_supported() else "PyTorch cannot compile under this Python"
