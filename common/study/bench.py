"""Our training core against a plain loop, in one run, on whatever machine this is.

    python -m common.study.bench                      # every network, every variant
    python -m common.study.bench --quick --json FILE  # fewer steps and repeats
    python -m common.study.bench --models efficientnet_b2 --batch-sizes 125 500 1000
    python -m common.study.bench --parts profile      # our step, kernel by kernel
    python -m common.study.bench --first-look         # the first ten minutes on a GPU

*plain* is the loop of most tutorials: PIL images in a DataLoader with workers, torchvision
transforms, eager fp32 and, for B2, the package as it comes. *ours* is the step of the
training scripts, eager, captured as a CUDA graph, or compiled and captured. Figures are
medians over turns. On a CPU both keep freed memory. *Cold* is the time from nothing to the
end of the first step; the first variant also loads the device's libraries.
"""
import argparse
import itertools
from dataclasses import dataclass
from pathlib import Path

from common.config import Parser, Runtime, add_flags, collect, option
from common.errors import run_script
from common.files import Json

MODELS = ("simple_cnn", "improved_cnn", "se_resnet18", "efficientnet_b2")
PARTS = ("rates", "profile")


@dataclass(frozen=True)
class Options:
    """What to measure and where to write it."""

    quick: bool = option(False, "two short turns in place of five", "bench")
    json: str | None = option(
        None, "write all figures, raw samples included, to this file", "bench"
    )
    compile: bool = option(
        False, "measure torch.compile too (on a CPU B2 takes minutes to compile)", "bench"
    )
    first_look: bool = option(
        False,
        "everything that only a GPU can answer, part by part under a time limit",
        "bench",
    )


def parse() -> tuple[Options, Runtime, argparse.Namespace]:
    """Options, runtime, and the lists that the command line gives."""
    parser = Parser(
        prog="python -m common.study.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser, Options())
    add_flags(parser, Runtime(), ("device", "amp"))
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=MODELS, help="networks (default: all)"
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=["rates"],
        help="rates of every variant, or kernels of our step (default: rates)",
    )
    parser.add_argument(
        "--batch-sizes",
        nargs="+",
        type=int,
        metavar="N",
        help="default: 125, and on a GPU 500 and 1000 too",
    )
    given = parser.parse_args()
    return collect(given, Options()), collect(given, Runtime()), given


def main() -> None:
    """Measure what the command line asks for."""
    options, runtime, given = parse()
    if options.first_look:
        from torch.cuda import is_available

        from common.study.first_look import look

        look(Path(options.json or "first-look.json"), is_available())
        return
    from common.errors import reason
    # After the command line has been read: torch takes seconds to import.
    from common.files import write_json
    from common.study.loops import make_case
    from common.study.rates import profile, rates
    from common.training.runtime import environment, set_up

    device = set_up(runtime, seed=0)
    env = environment(device)
    report: Json = {"environment": env, "results": [], "profiles": []}
    print(f"{env['hardware']}, torch {env['torch']}")
    turns, seconds = (2, 1.0) if options.quick else (5, 4.0)
    sizes = given.batch_sizes or ([125, 500, 1000] if device.type == "cuda" else [125])
    for name, batch_size in itertools.product(given.models, sizes):
        if options.json:
            # At first as well: a place that cannot be written is found at once.
            write_json(Path(options.json), report)
        case = make_case(name, batch_size, runtime, device)
        if "rates" in given.parts:
            report["results"] += rates(case, options.compile, turns, seconds)
        if "profile" in given.parts:
            try:
                report["profiles"].append(profile(case))
            except RuntimeError as error:
                print(f"{case}: no profile ({reason(error)})")
    if options.json:
        write_json(Path(options.json), report)


if __name__ == "__main__":
    run_script(main)
