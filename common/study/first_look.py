"""The first ten minutes on a GPU: all that only one can answer, part by part, written as it goes.

    python -m common.study.bench --first-look --json FILE

Each part is a process of its own under a time limit, so that one that hangs or dies takes
no other with it.
"""
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from common.config import Runtime
from common.errors import reason
from common.files import Json, write_json
from common.study.loops import make_case, our_train
from common.study.rates import pace, timed
from common.training.graph import record

ROOT = Path(__file__).parents[2]
CODE = "from common.study import first_look; first_look.{}()"
BENCH = ("-m", "common.study.bench", "--device", "cuda", "--batch-sizes", "125")
COMPILED = (*BENCH, "--models", "improved_cnn", "--quick", "--compile")
SMOKE = ("train_effnet.py", "--resize", "2", "--smoke", "--device", "cuda")


class Part(NamedTuple):
    """A question, the command that answers it (after `python`), and the seconds it may take."""

    name: str
    command: Sequence[str]
    limit: float


PARTS = (
    Part("floor under all numbers", ("-c", CODE.format("floor")), 60),
    Part("tests that need a GPU", ("-m", "pytest", "-q", "-m", "cuda"), 180),
    Part("captured steps", ("-c", CODE.format("captured")), 240),
    Part("kernels of a step", (*BENCH, "--parts", "profile"), 90),
    Part("saving, keeping, finishing", ("-m", "cProfile", "-s", "cumtime", *SMOKE), 90),
    Part("compiled, cold", COMPILED, 120),
    Part("compiled, warm", COMPILED, 60),
)


def look(target: Path, gpu: bool, parts: Sequence[Part] = PARTS) -> None:
    """Run every part and write what it said to `target` after each; one that fails or has
    no GPU is named and passed over."""
    report = []
    for part in parts:
        print(f"\n== {part.name}, at most {part.limit:.0f} s", flush=True)
        answer = ask(part) if gpu else {"problem": "skipped: this torch sees no CUDA GPU"}
        print(answer["problem"] or "done", flush=True)
        report.append({"part": part.name, **answer})
        write_json(target, report)
    print(f"\nall answers: {target}")


def ask(part: Part) -> Json:
    """Output, seconds and problem (None if it went well) of one part; a run of its own goes
    into a folder that is removed."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, *part.command]
        if "--smoke" in command:
            command += ["--out", runs]
        try:
            done = subprocess.run(
                command, cwd=ROOT, stdout=output, stderr=output, timeout=part.limit
            )
            problem = f"failed: exit {done.returncode}" if done.returncode else None
        except subprocess.TimeoutExpired:
            problem = f"failed: not done in {part.limit:.0f} s"
        output.seek(0)
        lines = output.read().splitlines()[:200]  # a profile goes on for thousands
    print("\n".join(lines[-30:]))
    return {"problem": problem, "seconds": time.monotonic() - started, "output": lines}


def floor() -> None:
    """Print the microseconds of a one-element addition in a graph of 1,000, and the bytes/s
    of a large copy."""
    x = torch.zeros(1, device="cuda")
    graph, _ = record(lambda: [x.add_(1) for _ in range(1000)], torch.cuda.Stream())
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    copy = min(timed(source.clone) for _ in range(5))
    addition = 1e3 * timed(graph.replay, 20)
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}")
    print(f"{addition:.2f} µs an addition, copy {2**31 / copy / 1e9:.0f} GB/s")


def captured() -> None:
    """Print images/s of captured steps in each precision, and seconds to capture with and
    without cuDNN's search."""
    settings = itertools.product(
        ("simple_cnn", "efficientnet_b2"), (125, 500), ("bf16", "fp16", "off"), (True, False)
    )
    for model, batch_size, amp, search in settings:
        torch.backends.cudnn.benchmark = search
        case = make_case(model, batch_size, Runtime(amp=amp), torch.device("cuda"))
        steps = our_train(case, capture=True)
        try:
            cold = timed(lambda: next(steps))
            figures = f"{batch_size / pace(steps, 1):,.0f} images/s, {cold:.1f} s cold"
        except RuntimeError as error:
            figures = reason(error)
        print(f"{case}, cudnn.benchmark {search}: {figures}", flush=True)
