"""The first ten minutes on a GPU: all that only one can answer, command by command.

    python -m common.study.bench --first-look 2>&1 | tee first-look.txt

Each command is a process of its own under a time limit, so that one that hangs or dies takes no
other with it.
"""
import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
# Seconds that a command may take, and its words after `python`: a graph of a thousand one-element
# additions, the copy of a gibibyte, the tests, captured steps in each precision, kernels of a step,
# saving and finishing, compiling cold and warm.
COMMANDS = """\
60 -m timeit -s 'import torch; x, graph = torch.zeros(1, device="cuda"), torch.cuda.CUDAGraph()' \
-s 'with torch.cuda.graph(graph): [x.add_(1) for _ in range(1000)]' \
'graph.replay(); torch.cuda.synchronize()'
60 -m timeit -s 'import torch; source = torch.empty(2**30, dtype=torch.uint8, device="cuda")' \
'source.clone(); torch.cuda.synchronize()'
360 -m pytest -q -m cuda
180 {bench} 500 --models simple_cnn efficientnet_b2 --quick --amp bf16
180 {bench} 500 --models simple_cnn efficientnet_b2 --quick --amp fp16
180 {bench} 500 --models simple_cnn efficientnet_b2 --quick --amp off
90 {bench} --parts profile
90 -m cProfile -s cumtime train_effnet.py --resize 2 --smoke --device cuda --out {runs}
120 {bench} --models improved_cnn --quick --compile
60 {bench} --models improved_cnn --quick --compile
"""
BENCH = "-m common.study.bench --device cuda --batch-sizes 125"


def look(commands: str = COMMANDS) -> None:
    """Run every command; what it prints goes where ours goes, one that fails is named and passed
    over."""
    with TemporaryDirectory() as runs:
        for line in commands.format(bench=BENCH, runs=runs).splitlines():
            limit, *words = shlex.split(line)
            print(f"\n== at most {limit} s: python {shlex.join(words)}", flush=True)
            try:
                code = subprocess.call([sys.executable, *words], cwd=ROOT, timeout=int(limit))
                print("failed: exit" if code else "done: exit", code)
            except subprocess.TimeoutExpired:
                print(f"failed: not done in {limit} s")
