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
from itertools import product
from pathlib import Path

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
# From random weights, which need no network; with --weights from those.
SMOKE = {"efficientnet_b2": dict(synthetic=True, pretrained=False, lr=2e-3, train_limit=200,
                                 val_size=100, head_epochs=1, epochs=1, batch_size=25)}


def shard(text: str) -> tuple[int, int]:
    """I and N of `I/N`, I from 1 to N; anything else is a ValueError."""
    index, shards = map(int, text.split("/"))
    if not 1 <= index <= shards:
        raise ValueError
    return index, shards


def parse() -> tuple[argparse.Namespace, Recipe, Runtime]:
    """What this script alone asks for, the control's recipe, and the runtime."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_argument_group("ablation")
    which = group.add_mutually_exclusive_group(required=True)
    which.add_argument("--all", action="store_true", help="all five arms")
    which.add_argument("--arms", nargs="+", choices=ARMS, metavar="ARM",
                       help=f"some of: {', '.join(ARMS)}")
    add = group.add_argument
    add("--seeds", nargs="+", type=checked(int, 0, 2**31 - 1), default=[0], metavar="N",
        help="runs of each arm (default: 0)")
    add("--shard", type=shard, default=(1, 1), metavar="I/N",
        help="run the I-th of N parts of arms × seeds, I from 1")
    add("--collect", action="store_true",
        help="train nothing: merge finished runs, name what is missing")
    add("--recipe", choices=("default", "report"), default="default", help="of train_effnet.py")
    add_flags(parser, replace(train_effnet.DEFAULT, resize=2), FLAGS)
    add_flags(parser, Runtime(), RUNTIME_FLAGS)
    given = parser.parse_args()
    # An effect is a difference to the control; an arm or a seed named twice is one.
    given.arms = {arm: ARMS[arm] for arm in (CONTROL, *(given.arms or ARMS))}
    given.seeds = [*dict.fromkeys(given.seeds)]
    base = replace(train_effnet.RECIPES[given.recipe], resize=2)
    control, runtime = settle(given, base, SMOKE)
    if not runtime.name_given:  # a study is of many seeds
        runtime = replace(runtime, run_name=runtime.run_name.removesuffix("-seed0"))
    return given, control, runtime


def run_job(arm: str, seed: int, control: Recipe, runtime: Runtime, study: Path) -> None:
    """Train one arm with one seed, or go on with it, unless it is finished, and measure its cost
    beside it; a failure is said and marked, a success takes the mark away.

    A run of other settings is a failure, too: two studies never mix in one folder."""
    from common.study.ablation import measure_cost

    folder, mark = study / f"{arm}-seed{seed}", study / f"{arm}-seed{seed}.FAILED"
    own = replace(runtime, run_name=folder.name, resume=(folder / "recipe.json").exists(),
                  smoke=False, started=time.perf_counter())
    try:
        train_effnet.train(replace(control, seed=seed, **ARMS[arm]), own,
                           script=f"ablation/{study.name}", copy_best=arm == CONTROL)
        measure_cost(folder, runtime)
        mark.unlink(missing_ok=True)
    except Exception as error:  # the other runs go on; a signal is no Exception and stops them all
        print(f"FAILED {folder.name}: {error}", flush=True)
        mark.write_text(f"{type(error).__name__}: {error}\n")


def main() -> int:
    given, control, runtime = parse()
    index, shards = given.shard
    # Dealt in turn, so that every shard gets every kind of arm.
    mine = [*product(given.seeds, given.arms)][index - 1 :: shards]
    study = Path(runtime.out) / "ablation" / runtime.run_name

    # After the command line has been read: torch takes seconds to import.
    from common.data.sources import load_splits
    from common.study import ablation as tables

    if not given.collect:
        study.mkdir(parents=True, exist_ok=True)
        load_splits(control, runtime)  # missing data ends the study at once, not arm by arm
        for done, (seed, arm) in enumerate(mine, 1):
            print(f"\n[{done}/{len(mine)}] {arm}, seed {seed}", flush=True)
            run_job(arm, seed, control, runtime, study)
    table = tables.collect(study, given.arms, given.seeds, CONTROL)
    gaps = table["gaps"]
    if not table["rows"]:
        failure = InputError if given.collect else RunError
        raise failure(f"{study} holds no finished run of these arms and seeds: "
                      f"{'; '.join(map(': '.join, gaps.items()))}")
    tables.write(table, study)
    print(f"\n{tables.page(table)}")
    return int(any(f"{arm}-seed{seed}" in gaps for seed, arm in mine))


if __name__ == "__main__":
    run_script(main, "lower --batch-size, --resize, --image-size or --train-limit")
