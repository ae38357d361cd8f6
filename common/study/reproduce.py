"""The complete study in one command: every row, ablation, analysis and bench, published.

    python -m common.study.reproduce                  # fetches data and ImageNet weights
    python -m common.study.reproduce --weights lite2  # from the weights that pip brings
    python -m common.study.reproduce --list           # only the commands
    python -m common.study.reproduce --smoke          # every step on drawn images

Finished runs are skipped and interrupted ones go on, so the same command may be given
again; the bench, the analysis and the pages are made anew. A step that fails leaves the others
running, is named at the end, and the exit code is 1.
"""
import shlex
import signal
import subprocess
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from shlex import quote

from common.config import Parser, Runtime, add_flags, collect, flag_of, option
from common.errors import InputError, Interrupted, run_script
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


# Analysed is what the ablation leaves at best.pt, its best arm's checkpoint.
STUDY = """\
-m common.study.bench --parts rates profile --json {out}/bench.json {device} {quick}
{training}ablation.py --all --seeds {seeds} {weights} --name study-{kind} {place} {smoke}
analyze.py --ckpt best.pt {place}
-m common.study.results {out} {target}"""
TRAINING = "{command} --seed {seed} --name {name}-seed{seed} --resume {place} {smoke}\n"


def plan(options: Options, runtime: Runtime, seeds: Sequence[int]) -> list[list[str]]:
    """Every command's words after `python`, in the order in which they run."""
    given = {}
    for name in ("data_dir", "out", "device"):
        value = getattr(runtime, name)
        is_default = value == getattr(Runtime, name)
        given[name] = "" if is_default else f"{flag_of(name)} {quote(value)}"
    kind = start({"pretrained": True, "weights": options.weights})
    values = {
        "out": quote(runtime.out),
        "target": quote(options.target),
        "device": given["device"],
        "place": " ".join(given.values()),
        "weights": f"--weights {quote(options.weights)}" if options.weights else "",
        "kind": kind,
        "smoke": "--smoke" * runtime.smoke,
        "quick": "--quick --models simple_cnn" * runtime.smoke,
    }
    training = ""
    for row in ROWS:
        command, name = row.command.partition(" --weights ")[0], row.key
        if row.starts != ("random",):
            if kind not in row.starts:
                continue
            command += " {weights}".format(**values)
            name += f"-{kind}" * (len(row.starts) > 1)
        for seed in seeds:
            training += TRAINING.format(command=command, name=name, seed=seed, **values)
    text = STUDY.format(training=training, seeds=" ".join(map(str, seeds)), **values)
    return list(map(shlex.split, text.splitlines()))


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
                    formatter_class=RawDescriptionHelpFormatter)
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
