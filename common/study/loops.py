"""The plain loop of most tutorials and ours, as endless iterators that do one step each time.

Plain: PIL images in a DataLoader with workers, torchvision transforms, eager fp32, B2 as
its package has it. Ours: `TrainStep`, eager, captured as a CUDA graph, or compiled.
"""
import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from efficientnet_pytorch import EfficientNet
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms as T
from torchvision.datasets import CIFAR10

from common.config import Recipe, Runtime
from common.data.augment import Preprocess
from common.data.splits import Splits, make_splits
from common.data.synthetic import CLASSES, draw
from common.files import Json
from common.models.build import build
from common.training.runtime import amp_dtype, precision
from common.training.graph import capture
from common.training.loop import TrainStep, make_optimizer


class Case(NamedTuple):
    """What is measured: a recipe on drawn images (speed does not depend on what they show),
    and where."""

    recipe: Recipe
    splits: Splits
    device: torch.device
    amp: torch.dtype | None
    prepare: Preprocess  # from uint8 to network input, as the training scripts do it
    about: Json  # what stands beside each of its figures

    def __str__(self) -> str:
        return "{model}, batch {batch_size}, ours in {precision}".format(**self.about)

    @property
    def cuda(self) -> bool:
        """Whether it runs on a GPU."""
        return self.device.type == "cuda"


def short_recipe(model: str, batch_size: int) -> Recipe:
    """What of a network's recipe bears on its speed: augmentation, size and optimiser."""
    recipe = Recipe(model=model, batch_size=batch_size, crop_padding=4, flip=True, jitter=0.1)
    if model == "se_resnet18":
        return replace(recipe, jitter=0.0, random_erasing=0.25)
    if model == "efficientnet_b2":
        return replace(recipe, resize=2, optimizer="adamw", rotation=15, jitter=0.2,
                       random_erasing=0.2)
    return recipe


def make_case(model: str, batch_size: int, runtime: Runtime, device: torch.device,
              per_class: int = 1000) -> Case:
    """A network with what of its recipe bears on speed, on `per_class` drawn images a class."""
    recipe, amp = short_recipe(model, batch_size), amp_dtype(runtime, device, model)
    splits = make_splits(*draw(per_class, seed=0), *draw(20, seed=1), CLASSES, "synthetic")
    prepare = Preprocess(splits.mean, splits.std, recipe, device)
    about = {"model": model, "batch_size": batch_size, "precision": precision(amp)}
    return Case(recipe, splits.to(device), device, amp, prepare, about)


class Pictures(CIFAR10):
    """torchvision's data set, which gives PIL pictures through a chain of transforms, and their
    labels, with training images of ours."""

    def __init__(self, case: Case) -> None:
        recipe, splits = case.recipe, case.splits
        # PIL takes (H, W, 3).
        self.data = splits.train.images.cpu().permute(0, 2, 3, 1).numpy()
        self.targets = splits.train.labels.tolist()
        steps = (
            T.RandomCrop(splits.image_size, padding=recipe.crop_padding),
            T.RandomHorizontalFlip(),
            recipe.rotation and T.RandomRotation(recipe.rotation),
            T.ColorJitter(*[recipe.jitter] * 3),
            T.Resize(splits.image_size * recipe.resize),
            T.ToTensor(),
            T.Normalize(splits.mean, splits.std),
            T.RandomErasing(recipe.random_erasing),
        )
        self.transform = T.Compose([*filter(None, steps)])
        self.target_transform = None


def plain_data(case: Case) -> Iterator[list[Tensor]]:
    """Batches of the plain data side, images and labels, delivered to the device."""
    pictures = Pictures(case)
    endless = RandomSampler(pictures, replacement=True, num_samples=10**9)
    for batch in DataLoader(pictures, case.recipe.batch_size, sampler=endless,
                            num_workers=min(8, os.cpu_count()), pin_memory=case.cuda,
                            multiprocessing_context="fork"):
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
    optimizer = make_optimizer(model, recipe, case.device)
    step = TrainStep(model, case.splits.train, case.prepare, optimizer, recipe.batch_size,
                     amp=case.amp)
    do_step = step
    if case.cuda and way != "eager":
        do_step = capture(step, step.trial, step.state, step.generator).replay
    for epoch in itertools.count(1):
        step.start_epoch(epoch, [recipe.lr] * step.steps)
        for _ in range(step.steps):
            yield do_step()


def our_data(case: Case) -> Iterator[Tensor]:
    """Augmented batches of ours."""
    prepare, train = case.prepare, case.splits.train
    generator = torch.Generator(case.device).manual_seed(0)
    while True:
        chosen = torch.randint(len(train), (case.recipe.batch_size,), device=case.device)
        yield prepare.augment(train.images[chosen], generator)[0]
