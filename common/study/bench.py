"""Our training core against a plain loop, in one run, on whatever machine this is.

    python -m common.study.bench                      # every network, every variant
    python -m common.study.bench --quick --json FILE  # fewer steps and repeats
    python -m common.study.bench --models efficientnet_b2 --batch-sizes 125 500 1000

*plain* is the loop of most tutorials: PIL images in a DataLoader with workers, torchvision
transforms, eager fp32 and, for B2, the package as it comes. *ours* is the step of the
training scripts, eager, captured as a CUDA graph, or compiled and captured. Figures are
medians over turns. On a CPU both keep freed memory. *Cold* is the time from nothing to the
end of the first step; the first variant also loads the device's libraries.
"""
import os
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator
from functools import partial
from itertools import count, product
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

import torch
from efficientnet_pytorch import EfficientNet
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader, RandomSampler, default_collate
from torchvision import transforms as T
from torchvision.transforms.functional import to_pil_image

from common.config import Parser, Recipe, Runtime, a_path, add_flags, collect
from common.data.augment import Preprocess
from common.data.sources import DRAWN_CLASSES, draw
from common.data.splits import Splits, as_split, divide
from common.errors import reason, run_script
from common.files import Json, write_json
from common.models.build import NETWORKS, build
from common.study.cost import timed
from common.training.graph import capture
from common.training.loop import TrainStep, make_optimizer
from common.training.runtime import amp_dtype, environment, precision, set_up

# What bears on speed in the scripts' recipes, beside crop and flip.
RECIPES = {
    "se_resnet18": dict(random_erasing=0.25),
    "efficientnet_b2": dict(resize=2, optimizer="adamw", rotation=15, jitter=0.2,
                            random_erasing=0.2),
}
LINE = ("  {variant:<22}{images_per_s:>11,.0f} images/s{ratio_to_plain:>8.2f} x plain"
        "{cold_seconds:>8.2f} s cold")


class Case(NamedTuple):
    """What is measured: a recipe on drawn images (speed does not depend on what they show),
    and where."""

    recipe: Recipe
    splits: Splits
    prepare: Preprocess  # from uint8 to network input, as the training scripts do it
    device: torch.device
    amp: torch.dtype | None


def make_case(model: str, batch_size: int, runtime: Runtime, device: torch.device,
              per_class: int = 1000) -> Case:
    """A network with what of its recipe bears on speed, on `per_class` drawn images a class."""
    recipe = Recipe(model=model, batch_size=batch_size, crop_padding=4, flip=True,
                    **RECIPES.get(model, {"cutmix": 0.5}))
    pools = {"train": as_split(*draw(per_class, seed=0)), "test": as_split(*draw(20, seed=1))}
    splits = divide(pools, DRAWN_CLASSES, "synthetic")
    prepare = Preprocess(splits.mean, splits.std, recipe, device)
    return Case(recipe, splits.to(device), prepare, device, amp_dtype(runtime, device, model))


# What follows are endless iterators that do one step each time.


def plain_data(case: Case) -> Iterator[list[Tensor]]:
    """Batches of the plain data side, images and labels, delivered to the device; no CutMix."""
    recipe, train, size = case.recipe, case.splits.train, case.splits.image_size
    steps = [
        T.RandomCrop(size, padding=recipe.crop_padding),
        T.RandomHorizontalFlip(),
        T.ColorJitter(recipe.jitter, recipe.jitter, recipe.jitter),
        T.Resize(size * recipe.resize),
        T.ToTensor(),
        T.Normalize(case.splits.mean, case.splits.std),
        T.RandomErasing(recipe.random_erasing),
    ]
    if recipe.rotation:
        steps.insert(2, T.RandomRotation(recipe.rotation))
    chain = T.Compose(steps)
    pictures = list(zip(map(to_pil_image, train.images.cpu()), train.labels.tolist()))
    endless = RandomSampler(pictures, replacement=True, num_samples=10**9)
    # The cores that this process may use, which a cluster's scheduler limits; macOS knows no limit.
    affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count()))
    for batch in DataLoader(
            pictures, recipe.batch_size, sampler=endless, num_workers=min(8, len(affinity(0))),
            collate_fn=lambda some: default_collate([(chain(x), label) for x, label in some]),
            pin_memory=case.device.type == "cuda", multiprocessing_context="fork"):
        yield [part.to(case.device) for part in batch]


def plain_train(case: Case) -> Iterator[float]:
    """Steps of the plain loop, NCHW, fp32, B2 from the package untouched; yields each loss,
    which `loss.item()` reads as tutorials do."""
    recipe = case.recipe
    model = build(recipe.model)
    if recipe.model == "efficientnet_b2":
        model = EfficientNet.from_name("efficientnet-b2", num_classes=10)
    model.to(case.device).train()
    kind = AdamW if recipe.optimizer == "adamw" else SGD
    optimizer = kind(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    for images, labels in plain_data(case):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        yield loss.item()


def our_train(case: Case, way: str = "eager") -> Iterator[None]:
    """Steps of the scripts; nothing is read back from the device.

    Args:
        way: eager, captured, or compiled, which on a GPU is captured as well.

    Raises:
        RuntimeError: they cannot be captured, and why.
    """
    recipe = case.recipe
    model = build(recipe.model).train().to(case.device, memory_format=torch.channels_last)
    if way == "compiled":
        model.compile(dynamic=False)
    step = TrainStep(model, case.splits.train, case.prepare,
                     make_optimizer(model, recipe, case.device), recipe.batch_size, amp=case.amp)
    do_step = step
    if case.device.type == "cuda" and way != "eager":
        do_step = capture(step)
    for epoch in count(1):
        step.start_epoch(epoch, [recipe.lr] * step.steps)
        for _ in range(step.steps):
            yield do_step()


def our_data(case: Case) -> Iterator[Tensor]:
    """Augmented batches of ours."""
    train = case.splits.train
    generator = torch.Generator(case.device).manual_seed(0)
    while True:
        chosen = torch.randint(len(train), (case.recipe.batch_size,), device=case.device)
        yield case.prepare.augment(train.images[chosen], generator)[0]


def pace(steps: Iterator, seconds: float) -> float:
    """Seconds a step over about `seconds`, the first two not counted."""
    timed(steps.__next__, 2)
    blocks = []
    # Ten steps a block: reading the clock waits for the device.
    while sum(blocks) < seconds / 10:
        blocks.append(timed(steps.__next__, 10))
    return fmean(blocks)


def rates(case: Case, compiled: bool, turns: int, seconds: float) -> list[Json]:
    """Images/s of every variant that this machine can run, printed as a table.

    Variants take turns, so that a machine that slows down slows all; figures are medians over them.
    """
    about = {"model": case.recipe.model, "batch_size": case.recipe.batch_size,
             "precision": precision(case.amp)}
    print("\n{model}, batch {batch_size}, ours in {precision}".format(**about))
    variants = {"train plain": plain_train, "train ours eager": our_train}
    if case.device.type == "cuda":
        variants["train ours captured"] = partial(our_train, way="captured")
    if compiled:
        variants["train ours compiled"] = partial(our_train, way="compiled")
    variants |= {"data plain": plain_data, "data ours": our_data}
    running, plain = [], {}
    for variant, make in variants.items():
        steps = make(case)
        try:
            cold = timed(steps.__next__)
        except Exception as error:  # a variant that this machine cannot run is a result, too
            print(f"  {variant}: not measured ({reason(error)})")
            continue
        row = {**about, "variant": variant, "samples": [], "cold_seconds": cold}
        running.append((row, steps))
    for _, (row, steps) in product(range(turns), running):
        row["samples"].append(case.recipe.batch_size / pace(steps, seconds))
    for row, _ in running:
        rate = row["images_per_s"] = median(row["samples"])
        side = row["variant"].split()[0]
        row["ratio_to_plain"] = rate / plain.setdefault(side, rate)  # plain comes before ours
        print(LINE.format(**row), flush=True)
    return [row for row, _ in running]


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
    add("--models", nargs="+", choices=NETWORKS, default=[*NETWORKS],
        help="networks (default: all)")
    add("--batch-sizes", nargs="+", type=int, metavar="N",
        help="default: 125, and on a GPU 500 and 1000 too")
    add_flags(parser, Runtime(), ("device", "amp"))
    given = parser.parse_args()
    runtime = collect(given, Runtime())
    device = set_up(runtime, seed=0, tune=True)
    report = {"environment": environment(device), "results": []}
    print("{hardware}, torch {torch}".format(**report["environment"]))
    turns, seconds = (2, 1.0) if given.quick else (5, 4.0)
    sizes = given.batch_sizes or ([125, 500, 1000] if device.type == "cuda" else [125])
    for name, batch_size in product(given.models, sizes):
        case = make_case(name, batch_size, runtime, device)
        report["results"] += rates(case, given.compile, turns, seconds)
        if given.json:
            write_json(Path(given.json), report)


if __name__ == "__main__":
    run_script(main)
