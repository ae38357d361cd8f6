"""The rows of the result table: what each one runs and which runs it counts, in one list.

Needs no torch, so that the commands that use it answer `--help` at once.
"""
import importlib
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from common.config import parse
from common.files import Json

PUBLISHED = "efficientnet-b2-8bb594d6.pth"  # B2's own ImageNet weights
STARTS = {
    "random": "random weights",
    "imagenet": "published ImageNet weights",
    "lite2": "ImageNet weights of EfficientNet-Lite2, transplanted",
    "own": "weights of an own run",
}
PRETRAINED = ("imagenet", "lite2", "own")
NETWORK = {"model", "stem", "resize"}  # what a row is about; all else is a setting
FREE = ("seed", "weights")  # neither is: seeds are repeats, and a path says nothing


def start(recipe: Json) -> str:
    """The weights that a recipe starts from, a key of STARTS."""
    if not recipe["pretrained"]:
        return "random"
    file = Path(recipe["weights"] or PUBLISHED).name
    if file == PUBLISHED:
        return "imagenet"
    return "lite2" if "lite2" in file else "own"


@dataclass(frozen=True)
class Row:
    """A line of the table: a key for folder names, a title, the report's percent, a
    command, the weights it may start from."""

    key: str
    title: str
    report: str
    command: str
    starts: tuple[str, ...] = ("random",)

    @cached_property
    def recipe(self) -> Json:
        """Every field of the recipe that the command gives."""
        script, *words = self.command.split()
        module = importlib.import_module(script.removesuffix(".py"))
        flags = getattr(module, "FLAGS", ())
        pick = getattr(module, "pick", lambda given, name: name)
        recipe, _ = parse("", module.RECIPES, module.SMOKE, flags, pick, words)
        return asdict(recipe)

    def changes(self, recipe: Json) -> Json:
        """The settings of a recipe that are not the command's."""
        own = self.recipe
        return {key: recipe[key] for key in own if key not in FREE and recipe[key] != own[key]}


def row_of(recipe: Json) -> Row | None:
    """The row that trains a recipe's network from weights of its kind: of those that do, the
    one it differs least from."""
    fitting = [row for row in ROWS if start(recipe) in row.starts
               and NETWORK.isdisjoint(row.changes(recipe))]
    return min(fitting, key=lambda row: len(row.changes(recipe)), default=None)


SE_RESNET = "train_improved.py --model se_resnet18"
B2 = "train_effnet.py --resize 2"
ROWS = (
    Row("baseline", "SimpleCNN", "val 73.30", "train_baseline.py"),
    Row(
        "improved-report",
        "ImprovedCNN, report's recipe",
        "84.05",
        "train_improved.py --recipe report",
    ),
    Row("improved", "ImprovedCNN", "–", "train_improved.py"),
    Row(
        "se-imagenet",
        "SE-ResNet18, ImageNet stem",
        "val 83.58",
        f"{SE_RESNET} --stem imagenet",
    ),
    Row("se-cifar", "SE-ResNet18, CIFAR stem", "–", SE_RESNET),
    Row(
        "b2-scratch", "EfficientNet-B2, 64 px, from scratch", "83.74", f"{B2} --no-pretrained"
    ),
    Row("b2", "EfficientNet-B2, 64 px, ImageNet weights", "93.77 to 93.81", B2, ("imagenet",)),
    Row(
        "b2-lite2",
        "EfficientNet-B2, 64 px, Lite2's weights",
        "–",
        f"{B2} --weights lite2",
        ("lite2",),
    ),
    Row(
        "b2-own", "EfficientNet-B2, 64 px, own weights", "–", f"{B2} --weights FILE", ("own",)
    ),
    Row(
        "b2-32px",
        "EfficientNet-B2, 32 px, pretrained",
        "85.99",
        "train_effnet.py --resize 1",
        PRETRAINED,
    ),
    Row(
        "b2-96px",
        "EfficientNet-B2, 96 px, pretrained",
        "–",
        "train_effnet.py --resize 3",
        PRETRAINED,
    ),
)
