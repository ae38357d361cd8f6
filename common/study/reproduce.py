"""The complete study in one command: every row, ablation, analysis and bench, published.

    python -m common.study.reproduce                  # fetches data and ImageNet weights
    python -m common.study.reproduce --weights lite2  # from the weights that pip brings
    python -m common.study.reproduce --list           # only the commands
    python -m common.study.reproduce --smoke          # every step on drawn images

Finished steps are skipped and interrupted ones go on, so the same command may be given
again. A step that fails leaves the others running, is named at the end, and the exit code
is 1. At the end docs/results and the guides' tables are written anew.
"""
import argparse
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.config import Parser, Runtime, add_flags, collect, flag_of, option
from common.errors import InputError, Interrupted, run_script
from common.study.bench import PARTS
from common.study.rows import PRETRAINED, ROWS, start


@dataclass(frozen=True)
class Options:
    """What the study starts from, and where it goes."""

    weights: str | None = option(
        None,
        "weights of pretrained rows and arms: a file, or lite2 (default: ImageNet's, downloaded)",
        "study",
    )
    list: bool = option(False, "say what would run, and run nothing", "study")
    target: str = option("docs/results", "folder to publish in", "study")


@dataclass(frozen=True)
class Step:
    """One command of the study, its words after `python`, and the file that shows it is
    finished (None: it sees for itself)."""

    command: list[str]
    done: Path | None = None

    def words(self) -> list[str]:
        """The command, going on with a run that was interrupted."""
        begun = self.done and (self.done.parent / "recipe.json").exists()
        return [*self.command, "--resume"] if begun else self.command


def plan(options: Options, runtime: Runtime, seeds: Sequence[int]) -> list[Step]:
    """Every step, in the order in which they run; the ablation leaves the best arm's
    checkpoint at best.pt."""
    out = Path(runtime.out)
    kind = start({"pretrained": True, "weights": options.weights})
    weights = ["--weights", options.weights] if options.weights else []
    shared = [*_flags(runtime, "data_dir", "out", "device"), *["--smoke"] * runtime.smoke]
    speed = out / "bench.json"
    bench = [
        "-m",
        "common.study.bench",
        "--parts",
        *PARTS,
        "--json",
        str(speed),
        *_flags(runtime, "device"),
    ]
    steps = [Step([*bench, *["--quick", "--models", "simple_cnn"] * runtime.smoke], speed)]
    for row in ROWS:
        if row.starts != ("random",) and kind not in row.starts:
            continue
        words = row.command.partition(" --weights ")[0].split()
        words += weights if row.starts != ("random",) else []
        for seed in seeds:
            name = (
                f"{row.key}-{kind}-seed{seed}"
                if row.starts == PRETRAINED
                else f"{row.key}-seed{seed}"
            )
            done = out / words[0].removesuffix(".py") / name / "result.json"
            steps.append(Step([*words, "--seed", str(seed), "--name", name, *shared], done))
    arms = [
        "ablation.py",
        "--all",
        "--seeds",
        *map(str, seeds),
        *weights,
        "--name",
        f"study-{kind}",
        *shared,
    ]
    # The ablation leaves its best arm's checkpoint there.
    analysis = [
        "analyze.py",
        "--ckpt",
        "best.pt",
        *_flags(runtime, "data_dir", "out", "device"),
    ]
    return [
        *steps,
        Step(arms),
        Step(analysis),
        Step(["-m", "common.study.results", str(out), options.target]),
    ]


def _flags(runtime: Runtime, *names: str) -> list[str]:
    """The command-line words of those values that are not the defaults."""
    words = []
    for name in names:
        value = getattr(runtime, name)
        if value != getattr(Runtime(), name):
            words += [f"--{name.replace('_', '-')}", value]
    return words


def run(words: Sequence[str]) -> int:
    """Exit code of one command, whose output goes where ours goes; a SIGTERM is passed on,
    a Ctrl-C reaches it by itself."""
    process = subprocess.Popen([sys.executable, *words])
    try:
        return process.wait()
    except Interrupted as stop:
        if stop.signum == signal.SIGTERM:
            process.terminate()
        process.wait()
        raise


def attempt(step: Step) -> str | None:
    """Run a step unless it is finished; what failed, or None.

    Raises:
        Interrupted: the step was ended by a signal.
    """
    if step.done and step.done.is_file():
        return None
    text = shlex.join(["python", *step.words()])
    print(f"\n{text}", flush=True)
    code = run(step.words())
    if code in (130, 143):
        raise Interrupted(code - 128, "by a signal to a step")
    return f"exit {code}: {text}" if code else None


def main() -> int:
    """Run what is not finished; 0, or 1 if a step failed."""
    parser = Parser(
        prog="python -m common.study.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser, Options())
    add_flags(parser, Runtime(), ("data_dir", "device", "out"))
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        metavar="N",
        help="one run of each row per seed (default: 0 1 2; with --smoke: 0)",
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="every step on drawn images: about ten minutes on two cores",
    )
    given = parser.parse_args()
    options, runtime = collect(given, Options()), collect(given, Runtime())
    if runtime.smoke:
        for name in {"data_dir", "target"} & vars(given).keys():
            raise InputError(f"{flag_of(name)} has no effect, as --smoke draws its images and "
                             "keeps apart what comes of them: leave it out")
        runtime = replace(runtime, out=f"{runtime.out}/reproduce-smoke")
        options = replace(options, target=f"{runtime.out}-published")
    steps = plan(options, runtime, given.seeds or ([0] if runtime.smoke else [0, 1, 2]))
    if options.list:
        print("\n".join(shlex.join(["python", *step.command]) for step in steps))
        return 0
    failed = [problem for problem in map(attempt, steps) if problem]
    if failed:
        print("\nfailed:", *failed, sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    run_script(main)
