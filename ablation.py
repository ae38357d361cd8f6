"""Phase 4: five arms, each one variable away from the control, concluded honestly.

    python ablation.py --all                                  # five arms, seed 0
    python ablation.py --all --seeds 0 1 2                    # with intervals
    python ablation.py --all --weights lite2                  # from the weights that pip brings
    python ablation.py --arms EfficientNetB2_NoLS --seeds 0   # single arms, beside the control
    python ablation.py --all --seeds 0 1 2 --shard 2/5        # this machine's fifth of the runs
    python ablation.py --all --seeds 0 1 2 --collect          # merge what the shards wrote
    python ablation.py --all --smoke                          # on drawn images, two minutes

Every arm is train_effnet.py with --resize 2 and one change. A finished run is skipped, an
interrupted one goes on, a failed one is marked and leaves the others running.
"""
import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import train_effnet
from common.config import Parser, Recipe, Runtime, add_flags, checked, settle
from common.errors import InputError, RunError, run_script

CONTROL = "EfficientNetB2_Pretrained"
ARMS = {
    CONTROL: {},
    "EfficientNetB2_NoPretrain": {"pretrained": False},
    "EfficientNetB2_NoResize": {"resize": 1},
    "EfficientNetB2_NoLS": {"label_smoothing": 0.0},
    "EfficientNetB2_NoRE": {"random_erasing": 0.0},
}
FLAGS = ("synthetic", "train_limit", "val_size", "image_size", "fit", "class_weights", "epochs",
         "batch_size", "lr", "weight_decay", "head_epochs", "head_lr", "resize",
         "label_smoothing", "random_erasing", "cutmix", "patience", "weights")
# No --resume: a rerun goes on by itself.
RUNTIME_FLAGS = ("data_dir", "offline", "device", "amp", "compile", "deterministic", "out",
                 "run_name", "smoke")
SMOKE = {"efficientnet_b2": dict(synthetic=True, lr=2e-3, train_limit=200, val_size=100,
                                 head_epochs=1, epochs=1, batch_size=25)}


def parse() -> tuple[argparse.Namespace, Recipe, Runtime]:
    """What this script alone asks for, the control's recipe, and the runtime."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("ablation").add_argument
    add("--all", action="store_true", help="all five arms")
    add("--arms", nargs="+", choices=ARMS, metavar="ARM", help=f"some of: {', '.join(ARMS)}")
    add("--seeds", nargs="+", type=checked(int, 0, 2**31 - 1), default=[0], metavar="N",
        help="runs of each arm (default: 0)")
    add("--shard", metavar="I/N", help="run the I-th of N parts of arms × seeds, I from 1")
    add("--collect", action="store_true",
        help="train nothing: merge finished runs, name what is missing")
    add("--recipe", choices=("default", "report"), default="default", help="of train_effnet.py")
    add_flags(parser, replace(train_effnet.DEFAULT, resize=2), FLAGS)
    add_flags(parser, Runtime(), RUNTIME_FLAGS)
    given = parser.parse_args()
    if given.all == bool(given.arms):
        parser.error("choose --all, or --arms with one or more names")
    if len(set(given.seeds)) < len(given.seeds):
        parser.error("--seeds names a seed twice: name each once")
    # An effect is a difference to the control; an arm named twice is one arm.
    given.arms = [*dict.fromkeys([CONTROL, *(given.arms or ARMS)])]
    base = replace(train_effnet.RECIPES[given.recipe], resize=2)
    control, runtime = settle(given, base, SMOKE)
    if not runtime.name_given:  # a study is of many seeds
        runtime = replace(runtime, run_name=runtime.run_name.removesuffix("-seed0"))
    return given, control, runtime


def train(recipe: Recipe, runtime: Runtime, folder: Path) -> None:
    """Train in `folder`, or go on with what is there."""
    begun = (folder / "recipe.json").exists()
    own = replace(runtime, run_name=folder.name, resume=begun, smoke=False,
                  started=time.perf_counter())
    train_effnet.train(recipe, own, script=f"ablation/{folder.parent.name}", copy_best=False)


def run_job(job: tuple[str, int], control: Recipe, runtime: Runtime, study: Path) -> None:
    """Train one arm with one seed, unless it is finished, and measure its cost beside it.

    A run of other settings is a failure, too: two studies never mix in one folder."""
    from common.study.ablation import measure_cost
    from common.study.arms import attempt

    arm, seed = job
    folder = study / f"{arm}-seed{seed}"

    def work() -> None:
        train(replace(control, seed=seed, **ARMS[arm]), runtime, folder)
        measure_cost(folder, runtime, quick=runtime.smoke)

    attempt(folder, work)


def weights_for_smoke(control: Recipe, runtime: Runtime, study: Path) -> str:
    """Weights that need no network: the installed package's, else those of a tiny training
    run of its own."""
    from common.models.weights import lite2_file

    if lite2_file():
        return "lite2"
    folder = study / "pretraining"
    train(replace(control, pretrained=False, seed=1000), runtime, folder)
    return str(folder / "best.pt")


def refuse(study: Path, given: argparse.Namespace, gaps: dict[str, str]) -> NoReturn:
    """Say why there is no table."""
    if not given.collect:
        raise RunError(f"no run of {study} is finished: {'; '.join(map(': '.join, gaps.items()))}")
    others = ", ".join(path.name for path in sorted(study.parent.glob("*/")) if path.is_dir())
    raise InputError(f"{study} holds no finished run of these arms and seeds: give the --name of "
                     f"one that does; there: {others or 'none'}")


def main() -> int:
    from common.study.arms import share

    given, control, runtime = parse()
    jobs = [(arm, seed) for seed in given.seeds for arm in given.arms]
    mine = share(jobs, given.shard)
    study = Path(runtime.out) / "ablation" / runtime.run_name

    # After the command line has been read: torch takes seconds to import.
    from common.data.sources import load_splits
    from common.study import ablation as tables
    from common.training.console import next_line
    from common.training.folder import publish

    if not given.collect:
        study.mkdir(parents=True, exist_ok=True)
        load_splits(control, runtime)  # missing data ends the study at once, not arm by arm
        if runtime.smoke and control.weights is None:
            control = replace(control, weights=weights_for_smoke(control, runtime, study))
        left, started = "", time.monotonic()
        for done, (arm, seed) in enumerate(mine, 1):
            print(f"\n[{done}/{len(mine)}] {arm}, seed {seed}{left}", flush=True)
            run_job((arm, seed), control, runtime, study)
            pace = (time.monotonic() - started) / done
            left = f", about {pace * (len(mine) - done) / 60:.1f} min left"
    table = tables.collect(study, {arm: ARMS[arm] for arm in given.arms}, given.seeds, CONTROL)
    if not table["rows"]:
        refuse(study, given, table["gaps"])
    tables.write(table, study)
    print(f"\n{tables.page(table)}")
    best = tables.best_checkpoint(study)
    if best and not given.collect:
        best = publish(best, Path(runtime.out))
    if best:
        print(next_line(best))
    return int(any(f"{arm}-seed{seed}" in table["gaps"] for arm, seed in mine))


if __name__ == "__main__":
    run_script(main, "lower --batch-size, --resize, --image-size or --train-limit")
