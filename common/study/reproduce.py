"""The complete study in one command: every row, ablation, analysis and bench, published.

    python -m common.study.reproduce                  # fetches data and ImageNet weights
    python -m common.study.reproduce --weights lite2  # from the weights that pip brings
    python -m common.study.reproduce --list           # only the commands
    python -m common.study.reproduce --smoke          # every step on drawn images

Finished runs are skipped and interrupted ones go on, so the same command may be given
again; the bench, the analysis and the pages are made anew. A step that fails leaves the others
running, is named at the end, and the exit code is 1.
"""
import argparse
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from common.config import Parser, Runtime, add_flags, collect, flag_of, option
from common.errors import InputError, Interrupted, run_script
from common.study.bench import PARTS
from common.study.rows import ROWS, start


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


def plan(options: Options, runtime: Runtime, seeds: Sequence[int]) -> list[list[str]]:
    """Every command's words after `python`, in the order in which they run."""
    smoke = ["--smoke"] * runtime.smoke
    given = {}
    for name in ("data_dir", "out", "device"):
        value = getattr(runtime, name)
        given[name] = [flag_of(name), value] if value != getattr(Runtime, name) else []
    device, place = given["device"], sum(given.values(), [])
    weights = ["--weights", options.weights] if options.weights else []
    kind = start({"pretrained": True, "weights": options.weights})
    speed = ["--parts", *PARTS, "--json", f"{runtime.out}/bench.json", *device]
    quick = ["--quick", "--models", "simple_cnn"] * runtime.smoke
    commands = [["-m", "common.study.bench", *speed, *quick]]
    for row in ROWS:
        words, name = row.command.partition(" --weights ")[0].split(), row.key
        if row.starts != ("random",):
            if kind not in row.starts:
                continue
            words += weights
            name += f"-{kind}" * (len(row.starts) > 1)
        for seed in seeds:
            own = ["--seed", str(seed), "--name", f"{name}-seed{seed}", "--resume"]
            commands.append([*words, *own, *place, *smoke])
    arms = ["--all", "--seeds", *map(str, seeds), *weights, "--name", f"study-{kind}"]
    return [
        *commands,
        ["ablation.py", *arms, *place, *smoke],
        # The ablation leaves its best arm's checkpoint there.
        ["analyze.py", "--ckpt", "best.pt", *place],
        ["-m", "common.study.results", runtime.out, options.target],
    ]


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


def main() -> int:
    """Run what is not finished; 0, or 1 if a step failed."""
    parser = Parser(prog="python -m common.study.reproduce", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, Options())
    add_flags(parser, Runtime(), ("data_dir", "device", "out"))
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N",
                        help="one run of each row per seed (default: 0 1 2; with --smoke: 0)")
    parser.add_argument("--smoke", action="store_true",
                        help="every step on drawn images: about ten minutes on two cores")
    given = parser.parse_args()
    options, runtime = collect(given, Options()), collect(given, Runtime())
    if runtime.smoke:
        for name in {"data_dir", "target"} & vars(given).keys():
            raise InputError(f"{flag_of(name)} has no effect, as --smoke draws its images and "
                             "keeps apart what comes of them: leave it out")
        runtime = replace(runtime, out=f"{runtime.out}/reproduce-smoke")
        options = replace(options, target=f"{runtime.out}-published")
    failed = []
    for words in plan(options, runtime, given.seeds or ([0] if runtime.smoke else [0, 1, 2])):
        text = shlex.join(["python", *words])
        print(text, flush=True)
        code = 0 if options.list else run(words)
        if code in (130, 143):
            raise Interrupted(code - 128, "by a signal to a step")
        if code:
            failed.append(f"exit {code}: {text}")
    if failed:
        print("\nfailed:", *failed, sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    run_script(main)
