"""Our training core against a plain loop, in one run, on whatever machine this is.

    python -m common.study.bench                      # every network, every variant
    python -m common.study.bench --quick --json FILE  # fewer steps and repeats
    python -m common.study.bench --models efficientnet_b2 --batch-sizes 125 500 1000
    python -m common.study.bench --parts profile      # our step, kernel by kernel

*plain* is the loop of most tutorials: PIL images in a DataLoader with workers, torchvision
transforms, eager fp32 and, for B2, the package as it comes. *ours* is the step of the
training scripts, eager, captured as a CUDA graph, or compiled and captured. Figures are
medians over turns. On a CPU both keep freed memory. *Cold* is the time from nothing to the
end of the first step; the first variant also loads the device's libraries.
"""
from argparse import RawDescriptionHelpFormatter
from dataclasses import fields
from itertools import product
from pathlib import Path

from common.config import Parser, Recipe, Runtime, a_path, add_flags, collect
from common.errors import reason, run_script
from common.files import write_json

(MODELS,) = (one.metadata["allowed"] for one in fields(Recipe) if one.name == "model")
PARTS = ("rates", "profile")


def main() -> None:
    """Measure what the command line asks for."""
    parser = Parser(prog="python -m common.study.bench", description=__doc__,
                    formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument_group("bench").add_argument
    add("--quick", action="store_true", help="two short turns in place of five")
    add("--json", type=a_path, metavar="FILE",
        help="write all figures, raw samples included, to this file")
    add("--compile", action="store_true",
        help="measure torch.compile too (on a CPU B2 takes minutes to compile)")
    add("--models", nargs="+", choices=MODELS, default=MODELS, help="networks (default: all)")
    add("--parts", nargs="+", choices=PARTS, default=["rates"],
        help="rates of every variant, or kernels of our step (default: rates)")
    add("--batch-sizes", nargs="+", type=int, metavar="N",
        help="default: 125, and on a GPU 500 and 1000 too")
    add_flags(parser, Runtime(), ("device", "amp"))
    given = parser.parse_args()
    # After the command line has been read: torch takes seconds to import.
    from common.study.loops import make_case
    from common.study.rates import profile, rates
    from common.training.runtime import environment, set_up

    runtime = collect(given, Runtime())
    device = set_up(runtime, seed=0, tune=True)
    report = {"environment": environment(device), "results": [], "profiles": []}
    print("{hardware}, torch {torch}".format(**report["environment"]))
    turns, seconds = (2, 1.0) if given.quick else (5, 4.0)
    sizes = given.batch_sizes or ([125, 500, 1000] if device.type == "cuda" else [125])
    for name, batch_size in product(given.models, sizes):
        if given.json:
            # At first as well: a place that cannot be written is found at once.
            write_json(Path(given.json), report)
        case = make_case(name, batch_size, runtime, device)
        if "rates" in given.parts:
            report["results"] += rates(case, given.compile, turns, seconds)
        if "profile" in given.parts:
            try:
                report["profiles"].append(profile(case))
            except RuntimeError as error:
                print(f"{case}: no profile ({reason(error)})")
    if given.json:
        write_json(Path(given.json), report)


if __name__ == "__main__":
    run_script(main)
