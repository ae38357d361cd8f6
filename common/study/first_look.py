"""The first ten minutes on a GPU: all that only one can answer, part by part.

    python -m common.study.bench --first-look 2>&1 | tee first-look.txt

Each part is a process of its own under a time limit, so that one that hangs or dies takes
no other with it.
"""
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
# A graph of a thousand one-element additions, and a gibibyte to copy.
GRAPH = """import torch
x, graph = torch.zeros(1, device="cuda"), torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    [x.add_(1) for _ in range(1000)]"""
SOURCE = "import torch; source = torch.empty(2**30, dtype=torch.uint8, device='cuda')"
BENCH = "-m common.study.bench --device cuda --batch-sizes 125"
STEPS = f"{BENCH} 500 --models simple_cnn efficientnet_b2 --quick --amp"
COMPILED = f"{BENCH} --models improved_cnn --quick --compile"
SMOKE = "train_effnet.py --resize 2 --smoke --device cuda --out {runs}"


class Part(NamedTuple):
    """A question, the command that answers it (after `python`), and the seconds it may take."""

    name: str
    command: Sequence[str]
    limit: int


PARTS = (
    Part(
        "1,000 launches",
        ("-m", "timeit", "-s", GRAPH, "graph.replay(); torch.cuda.synchronize()"),
        60,
    ),
    Part(
        "copy of 1 GiB",
        ("-m", "timeit", "-s", SOURCE, "source.clone(); torch.cuda.synchronize()"),
        60,
    ),
    Part("tests that need a GPU", "-m pytest -q -m cuda".split(), 180),
    *(Part(f"steps in {amp}", f"{STEPS} {amp}".split(), 120) for amp in ("bf16", "fp16", "off")),
    Part("kernels of a step", f"{BENCH} --parts profile".split(), 90),
    Part("saving, keeping, finishing", f"-m cProfile -s cumtime {SMOKE}".split(), 90),
    Part("compiled, cold", COMPILED.split(), 120),
    Part("compiled, warm", COMPILED.split(), 60),
)


def look(parts: Sequence[Part] = PARTS) -> None:
    """Run every part; what it prints goes where ours goes, one that fails is named and passed
    over."""
    for part in parts:
        print(f"\n== {part.name}, at most {part.limit} s", flush=True)
        with TemporaryDirectory() as runs:  # of a run that is only timed
            command = [sys.executable, *(word.format(runs=runs) for word in part.command)]
            try:
                code = subprocess.call(command, cwd=ROOT, timeout=part.limit)
                print(f"failed: exit {code}" if code else "done", flush=True)
            except subprocess.TimeoutExpired:
                print(f"failed: not done in {part.limit} s", flush=True)
