"""The complete study in one command: every row of the result table, the ablation, the analysis and the bench, published.

    python -m common.reproduce                       # CIFAR-10 and the ImageNet weights are fetched on first use
    python -m common.reproduce --pretraining DIR     # B2 also pretrained here, on any larger class-folder set
    python -m common.reproduce --start-from own ...  # sizes and ablation start from those weights: no ImageNet needed
    python -m common.reproduce --list                # only the commands
    python -m common.reproduce --smoke               # every step on drawn images, to see that it would work here

Finished steps are skipped and interrupted ones go on, so the same command may be given again. A step that fails leaves the
others running, is named at the end, and the exit code is 1. At the end docs/results and README.md's tables are written anew.
"""
import argparse
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2

from common import results
from common.config import Parser, Runtime, add_flags, collect, option
from common.data import SUFFIXES
from common.errors import InputError, Interrupted, run_script


@dataclass(frozen=True)
class Options:
    """What the study is made of, and where it goes."""

    pretraining: str | None = option(None, "class-folder set on which B2 is pretrained, as Tiny-ImageNet", "study")
    weights: str | None = option(None, "ImageNet weights of B2 fetched by hand (default: downloaded)", "study")
    start_from: str = option("imagenet", "weights of the input-size runs and of the ablation", "study", choices=("imagenet", "own"))
    list: bool = option(False, "say what would run, and run nothing", "study")
    target: str = option("docs/results", "folder to publish in", "study")


@dataclass(frozen=True)
class Step:
    """One command of the study: its words after `python`, and the file that shows it is finished (None: it sees for itself)."""

    command: list[str]
    done: Path | None = None

    def words(self) -> list[str]:
        """The command, going on with a run that was interrupted."""
        return self.command + ["--resume"] * bool(self.done and (self.done.parent / "recipe.json").exists())


def plan(options: Options, runtime: Runtime, seeds: Sequence[int]) -> list[Step]:
    """Every step but the analysis and the publishing, in the order in which they run.

    Raises:
        InputError: own weights are asked for without a set to pretrain on.
    """
    own_weights = bool(options.pretraining or runtime.smoke)
    if options.start_from == "own" and not own_weights:
        raise InputError("--start-from own needs --pretraining DIR, the class-folder set to pretrain on")
    out, data, device = Path(runtime.out), _flags(runtime, "data_dir"), _flags(runtime, "device")
    shared = [*_flags(runtime, "out", "device"), *["--smoke"] * runtime.smoke]
    imagenet = ["--weights", options.weights] if options.weights else []
    own = ["--weights", str(out / "train_effnet" / f"{results.PRETRAINING.key}-seed{seeds[0]}" / "best.pt")]
    start = own if options.start_from == "own" else imagenet
    changed = {
        results.PRETRAINING: ["train_effnet.py", "--resize", str(_resize_to_64(options)), "--no-pretrained",
                              *(["--data-dir", options.pretraining] if options.pretraining else [])],
        results.OWN: ["train_effnet.py", "--resize", "2", *own, *data],
        results.IMAGENET: ["train_effnet.py", "--resize", "2", *imagenet, *data],
        **{row: [*row.command.split(), *start, *data] for row in results.SIZES},
    }
    skipped = ([] if own_weights else [results.PRETRAINING, results.OWN]) + ([results.IMAGENET] if options.start_from == "own" else [])
    steps = [Step(["-m", "common.bench", *device, "--json", str(out / "bench.json"), *["--quick"] * runtime.smoke], out / "bench.json")]
    for row in (row for row in results.ROWS if row not in skipped):
        for seed in seeds[:1] if row is results.PRETRAINING else seeds:
            name = f"{row.key}-seed{seed}"
            command = [*changed.get(row, [*row.command.split(), *data]), "--seed", str(seed), "--name", name, *shared]
            steps.append(Step(command, out / row.script / name / "result.json"))
    return [*steps, Step(["ablation.py", "--all", "--seeds", *map(str, seeds), *start, *data, "--name", "study", *shared])]


def _flags(runtime: Runtime, *names: str) -> list[str]:
    """The command-line words of those values that are not the defaults."""
    return [word for name in names if getattr(runtime, name) != getattr(Runtime(), name) for word in ("--" + name.replace("_", "-"), getattr(runtime, name))]


def _resize_to_64(options: Options) -> int:
    """The enlargement that brings the images of the pretraining set to 64 px or just above."""
    if not options.pretraining:
        return 2
    first = next((path for path in sorted(Path(options.pretraining).glob("train/*/*")) if path.suffix.lower() in SUFFIXES), None)
    image = cv2.imread(str(first)) if first else None
    if image is None:
        raise InputError(f"--pretraining {options.pretraining} holds no train/<class>/<image>: give the folder of a class-folder set")
    return -(-64 // image.shape[0])


def run(words: Sequence[str]) -> int:
    """Exit code of one command, whose output goes where ours goes; a SIGTERM is passed on, a Ctrl-C reaches it by itself."""
    process = subprocess.Popen([sys.executable, *words])
    try:
        return process.wait()
    except Interrupted as stop:
        if stop.signum == signal.SIGTERM:
            process.terminate()
        process.wait()
        raise


def best_checkpoint(out: Path) -> Path | None:
    """best.pt of the finished ten-class run with the highest val accuracy; test plays no part in the choice."""
    runs = [found for found in results.find(out) if found.result["classes"] == results.CIFAR_CLASSES and found.script.startswith("train_")]
    return max(runs, key=lambda found: found.result["val_top1"]).folder / "best.pt" if runs else None


def main() -> int:
    """Run what is not finished, analyse the best checkpoint, publish; 0, or 1 if a step failed."""
    parser = Parser(prog="python -m common.reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, Options())
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="one run of each row per seed (default: 0 1 2)")
    add_flags(parser, Runtime(), ("data_dir", "device", "out", "smoke"))
    given = parser.parse_args()
    options, runtime = collect(given, Options()), collect(given, Runtime())
    target = Path(options.target)
    if runtime.smoke:
        runtime = replace(runtime, out=str(Path(runtime.out) / "reproduce-smoke"))
        target = Path(runtime.out) / "published"
    steps, failed = plan(options, runtime, given.seeds), []
    if options.list:
        print("\n".join(shlex.join(["python", *step.command]) for step in steps))
        return 0
    Path(runtime.out).mkdir(parents=True, exist_ok=True)

    def do(step: Step, place: str) -> None:
        if step.done and step.done.is_file():
            return
        text = shlex.join(["python", *step.words()])
        print(f"\n[{place}] {text}", flush=True)
        code = run(step.words())
        if code in (130, 143):
            raise Interrupted(code - 128, "by a signal to a step")
        if code:
            failed.append(f"exit {code}: {text}")

    for number, step in enumerate(steps):
        do(step, f"{number + 1}/{len(steps)}")
    if best := best_checkpoint(Path(runtime.out)):
        do(Step(["analyze.py", "--ckpt", str(best), *_flags(runtime, "data_dir", "out", "device")]), "analysis")
        print(f"{results.publish(Path(runtime.out), target, None if runtime.smoke else Path('README.md'))} results published in {target}")
    print(*(["", "failed:", *failed] if failed else []), sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    run_script(main)
