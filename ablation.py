"""Phase 4: five arms, each one variable away from the control, measured fairly and concluded honestly.

    python ablation.py --all                                     # five arms, seed 0
    python ablation.py --all --seeds 0 1 2                       # mean, standard deviation, intervals
    python ablation.py --arms EfficientNetB2_NoLS --seeds 0      # single arms; the control is always needed for a Δ
    python ablation.py --all --seeds 0 1 2 --shard 2/5           # this machine's fifth of the runs
    python ablation.py --all --seeds 0 1 2 --collect             # no training: merge what the shards wrote
    python ablation.py --all --smoke                             # the whole path on drawn images, offline, two minutes

Every arm is train_effnet.py with --resize 2 and one change. A finished run is skipped, an interrupted one goes on, a
failed one is marked and leaves the others running.
"""
import argparse
import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import train_effnet
from common.config import Parser, Recipe, Runtime, add_flags, collect, difference, option
from common.errors import InputError, run_script

CONTROL = "EfficientNetB2_Pretrained"
ARMS = {
    CONTROL: {},
    "EfficientNetB2_NoPretrain": {"pretrained": False},
    "EfficientNetB2_NoResize": {"resize": 1},
    "EfficientNetB2_NoLS": {"label_smoothing": 0.0},
    "EfficientNetB2_NoRE": {"random_erasing": 0.0},
}
FLAGS = ("synthetic", "train_limit", "val_size", "epochs", "batch_size", "lr", "weight_decay", "head_epochs", "head_lr", "resize",
         "label_smoothing", "random_erasing", "patience", "weights")
RUNTIME_FLAGS = ("data_dir", "offline", "device", "amp", "compile", "deterministic", "out", "run_name", "smoke")  # a rerun resumes by itself
SMOKE = dict(train_effnet.SMOKE["efficientnet_b2"], train_limit=200, val_size=100, head_epochs=1, epochs=1, batch_size=25, pretrained=True)


@dataclass(frozen=True)
class Options:
    """What this script asks for beside the recipe and the runtime."""

    arms: tuple[str, ...] = tuple(ARMS)
    seeds: tuple[int, ...] = (0,)
    shard: str | None = option(None, "run the I-th of N parts of arms × seeds, as I/N with I from 1", "ablation")
    collect: bool = option(False, "train nothing: merge the finished runs and name what is missing", "ablation")


def parse() -> tuple[Options, Recipe, Runtime]:
    """Options, the control's recipe, and the runtime."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_argument_group("ablation")
    group.add_argument("--all", action="store_true", help="all five arms")
    group.add_argument("--arms", nargs="+", choices=list(ARMS), default=[], metavar="ARM", help=f"some of: {', '.join(ARMS)}")
    group.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="one run of each arm per seed (default: 0)")
    parser.add_argument("--recipe", choices=("default", "report"), default="default", help="recipe of train_effnet.py (default: default)")
    add_flags(parser, Options(), ("shard", "collect"))
    add_flags(parser, replace(train_effnet.DEFAULT, resize=2), FLAGS)
    add_flags(parser, Runtime(), RUNTIME_FLAGS)
    given = parser.parse_args()
    if given.all == bool(given.arms):
        parser.error("choose --all, or --arms with one or more names")
    if any(seed < 0 for seed in given.seeds) or len(set(given.seeds)) < len(given.seeds):
        parser.error("--seeds must be different whole numbers from 0")
    if given.arms and CONTROL not in given.arms:
        given.arms.insert(0, CONTROL)  # an effect is a difference to the control
    runtime = collect(given, Runtime())
    recipe = replace(train_effnet.RECIPES[given.recipe], resize=2, **(SMOKE if runtime.smoke else {}))
    options = replace(Options(), arms=tuple(given.arms or ARMS), seeds=tuple(given.seeds), shard=getattr(given, "shard", None),
                      collect=getattr(given, "collect", False))
    return options, collect(given, recipe), runtime


def share(jobs: list[tuple[str, int]], shard: str | None) -> list[tuple[str, int]]:
    """This shard's jobs, dealt in turn so that every shard gets every kind of arm."""
    if shard is None:
        return jobs
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"--shard {shard} must be I/N with I from 1 to N, as 2/5")
    return jobs[int(match[1]) - 1 :: int(match[2])]


def run_job(arm: str, seed: int, control: Recipe, runtime: Runtime, study: Path) -> None:
    """Train one arm with one seed, or go on with it, or skip it if it is finished; its cost is measured beside it."""
    from common.study.ablation import measure_cost

    recipe, name = replace(control, seed=seed, **ARMS[arm]), f"{arm}-seed{seed}"
    folder = study / name
    own = replace(runtime, run_name=name, resume=(folder / "recipe.json").exists(), smoke=False)
    failed = study / f"{name}.FAILED"
    try:
        train_effnet.train(recipe, own, script=f"{study.parent.name}/{study.name}", publish=False)
        measure_cost(folder, runtime, quick=runtime.smoke)
        failed.unlink(missing_ok=True)
    except Exception as error:  # whatever one arm dies of, the others go on; a signal is no Exception and stops them all
        print(f"FAILED {name}: {error}", flush=True)
        failed.write_text(f"{type(error).__name__}: {error}\n")


def refuse_other_recipes(jobs: list[tuple[str, int]], control: Recipe, study: Path) -> None:
    """Raise InputError if a run of the study was made with other settings: two studies never mix in one folder."""
    from common.files import read_json

    for arm, seed in jobs:
        card = study / f"{arm}-seed{seed}" / "recipe.json"
        if card.is_file() and (changes := difference(read_json(card)["recipe"], asdict(replace(control, seed=seed, **ARMS[arm])))):
            raise InputError(f"{card.parent} holds a run with other settings ({'; '.join(changes)}): restore them, or choose a new --name")


def pretrain_for_smoke(control: Recipe, runtime: Runtime, study: Path) -> Recipe:
    """The control with weights from a tiny training run of its own, so that a trial needs no network."""
    weights = study / "pretraining" / "best.pt"
    own = replace(runtime, run_name="pretraining", resume=(study / "pretraining" / "recipe.json").exists(), smoke=False)
    train_effnet.train(replace(control, pretrained=False, seed=1000), own, script=f"{study.parent.name}/{study.name}", publish=False)
    return replace(control, weights=str(weights))


def main() -> int:
    options, control, runtime = parse()
    jobs = [(arm, seed) for seed in options.seeds for arm in options.arms]
    mine = share(jobs, options.shard)
    study = Path(runtime.out) / "ablation" / (runtime.run_name or ("smoke-" if runtime.smoke else "") + control.name().replace("-seed0", ""))
    from common.study import ablation as tables
    from common.training.run import publish  # after the command line has been read: torch takes seconds to import
    from common.data.sources import load_splits

    if not options.collect:
        study.mkdir(parents=True, exist_ok=True)
        load_splits(control, runtime)  # missing data ends the study at once, not arm by arm
        if runtime.smoke and control.weights is None:
            control = pretrain_for_smoke(control, runtime, study)
        refuse_other_recipes(mine, control, study)
        started, left = time.monotonic(), len(mine)
        for done, (arm, seed) in enumerate(mine):
            pace = (time.monotonic() - started) / done if done else None
            eta = f", about {pace * (left - done) / 60:.1f} min left" if pace else ""
            print(f"\n[{done + 1}/{left}] {arm}, seed {seed}{eta}", flush=True)
            run_job(arm, seed, control, runtime, study)
    table = {**tables.collect(study, options.arms, options.seeds, CONTROL), "recipe": asdict(control)}
    tables.write(table, study)
    for line in tables.text(table):
        print(line)
    best = tables.best_checkpoint(table, study)
    if best is not None and not options.collect:
        print(publish(best))
    own_failed = table["failed"].keys() & {f"{arm}-seed{seed}" for arm, seed in mine}
    return 1 if own_failed or not options.shard and (table["missing"] or table["failed"]) else 0


if __name__ == "__main__":
    run_script(main)
