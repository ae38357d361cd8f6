"""The complete study in one command: every row of the result table, the ablation, the analysis and the bench, published.

    python -m common.study.reproduce                       # CIFAR-10 and the ImageNet weights are fetched on first use
    python -m common.study.reproduce --pretraining DIR     # B2 also pretrained here, on any larger class-folder set
    python -m common.study.reproduce --start-from own ...  # sizes and ablation start from those weights: no ImageNet needed
    python -m common.study.reproduce --list                # only the commands
    python -m common.study.reproduce --smoke               # every step on drawn images, to see that it would work here

Finished steps are skipped and interrupted ones go on, so the same command may be given again. A step that fails leaves the
others running, is named at the end, and the exit code is 1. At the end docs/results and README.md's tables are written anew.
"""
import argparse
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path


from common.config import Parser, Runtime, add_flags, collect, option
from common.errors import InputError, Interrupted, run_script
from common.study.bench import PARTS
from common.study.results import IMAGENET, OWN, PRETRAINING, ROWS, SIZES


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
    """One command of the study: its words after `python`, the file that shows it is finished (None: it sees for itself), and one it needs."""

    command: list[str]
    done: Path | None = None
    needs: Path | None = None

    def words(self) -> list[str]:
        """The command, going on with a run that was interrupted."""
        return self.command + ["--resume"] * bool(self.done and (self.done.parent / "recipe.json").exists())


def plan(options: Options, runtime: Runtime, seeds: Sequence[int]) -> list[Step]:
    """Every step but the analysis and the publishing, in the order in which they run.

    Raises:
        InputError: own weights are asked for without a set to pretrain on.
    """
    from common.study import results  # after the command line has been read: torch takes seconds to import

    pretrain = bool(options.pretraining or runtime.smoke)
    if options.start_from == "own" and not pretrain:
        raise InputError("--start-from own needs --pretraining DIR, the class-folder set to pretrain on")
    out, data, device = Path(runtime.out), _flags(runtime, "data_dir"), _flags(runtime, "device")
    shared = [*_flags(runtime, "out", "device"), *["--smoke"] * runtime.smoke]
    pretrained = out / "train_effnet" / "pretraining" / "result.json"
    own, imagenet = ["--weights", str(pretrained.with_name("best.pt"))], ["--weights", options.weights] if options.weights else []
    start, suffix, needed = (own, "-own", pretrained) if options.start_from == "own" else (imagenet, "", None)
    speed = out / "bench.json"
    steps = [Step(["-m", "common.study.bench", "--parts", *PARTS, *device, "--json", str(speed), *["--quick", "--models", "simple_cnn"] * runtime.smoke], speed)]
    for row in ROWS:
        if row is PRETRAINING:
            words = ["train_effnet.py", "--resize", str(_resize_to_64(options)), "--no-pretrained", *(["--data-dir", options.pretraining] if options.pretraining else [])]
            steps += [Step([*words, "--name", "pretraining", *shared], pretrained)] * pretrain
            continue
        if row is OWN and not pretrain or row is IMAGENET and options.start_from == "own":
            continue
        words, needs, name = row.command.split(), None, row.key
        if row is OWN:
            words, needs = [*words[:-2], *own], pretrained
        elif row is IMAGENET:
            words += imagenet
        elif row in SIZES:
            words, needs, name = [*words, *start], needed, name + suffix
        steps += [Step([*words, *data, "--seed", str(seed), "--name", f"{name}-seed{seed}", *shared], out / row.script / f"{name}-seed{seed}" / "result.json", needs)
                  for seed in seeds]
    return [*steps, Step(["ablation.py", "--all", "--seeds", *map(str, seeds), *start, *data, "--name", f"study{suffix}", *shared], None, needed)]


def _flags(runtime: Runtime, *names: str) -> list[str]:
    """The command-line words of those values that are not the defaults."""
    return [word for name in names if getattr(runtime, name) != getattr(Runtime(), name) for word in ("--" + name.replace("_", "-"), getattr(runtime, name))]


def _resize_to_64(options: Options) -> int:
    """The enlargement that brings the images of the pretraining set to 64 px or just above."""
    if not options.pretraining:
        return 2
    import cv2

    from common.data.folders import SUFFIXES

    first = next((path for path in Path(options.pretraining).glob("train/*/*") if path.suffix.lower() in SUFFIXES), None)
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


def best_checkpoint(steps: Sequence[Step]) -> Path | None:
    """best.pt of the study's finished run with the highest val accuracy, pretraining left out; test plays no part in the choice."""
    runs = [step.done for step in steps if step.done and step.done.name == "result.json" and step.done.is_file() and step.done.parent.name != "pretraining"]
    return max(runs, key=lambda path: json.loads(path.read_text())["val_top1"]).with_name("best.pt") if runs else None


def main() -> int:
    """Run what is not finished, analyse the best checkpoint, publish; 0, or 1 if a step failed."""
    parser = Parser(prog="python -m common.study.reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, Options())
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="one run of each row per seed (default: 0 1 2; with --smoke: 0)")
    parser.add_argument("--smoke", action="store_true", help="every step on drawn images: about ten minutes on two cores")
    add_flags(parser, Runtime(), ("data_dir", "device", "out"))
    given = parser.parse_args()
    options, runtime = collect(given, Options()), collect(given, Runtime())
    target, seeds = Path(options.target), given.seeds or ([0] if runtime.smoke else [0, 1, 2])
    if runtime.smoke:
        runtime = replace(runtime, out=str(Path(runtime.out) / "reproduce-smoke"))
        target = Path(runtime.out).with_name("reproduce-smoke-published")
    steps, failed = plan(options, runtime, seeds), []
    if options.list:
        print("\n".join(shlex.join(["python", *step.command]) for step in steps), "python analyze.py --ckpt BEST  # the best of them by val", sep="\n")
        return 0
    Path(runtime.out).mkdir(parents=True, exist_ok=True)

    def do(step: Step, place: str) -> None:
        if step.done and step.done.is_file():
            return
        text = shlex.join(["python", *step.words()])
        if step.needs and not step.needs.is_file():
            failed.append(f"not begun, since {step.needs} is missing: {text}")
            return
        print(f"\n[{place}] {text}", flush=True)
        code = run(step.words())
        if code in (130, 143):
            raise Interrupted(code - 128, "by a signal to a step")
        if code:
            failed.append(f"exit {code}: {text}")

    for number, step in enumerate(steps):
        do(step, f"{number + 1}/{len(steps)}")
    if best := best_checkpoint(steps):
        do(Step(["analyze.py", "--ckpt", str(best), *_flags(runtime, "data_dir", "out", "device")]), "analysis")
    from common.study import results

    print(f"{results.publish(Path(runtime.out), target, trials=runtime.smoke)} results published in {target}")
    print(*(["", "failed:", *failed] if failed else []), sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    run_script(main)
