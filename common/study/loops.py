"""The plain loop of most tutorials and ours, as endless iterators that do one step each time.

Plain: PIL images in a DataLoader with workers, torchvision transforms, eager fp32, B2 as
its package has it. Ours: `TrainStep`, eager, captured as a CUDA graph, or compiled.
"""
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from efficientnet_pytorch import EfficientNet
from PIL import Image
from torch import nn
from torchvision import transforms as T

from common.config import Recipe, Runtime
from common.data.augment import Augmentation, Preprocess
from common.data.splits import Splits, make_splits
from common.data.synthetic import CLASSES, draw
from common.models.build import build
from common.study.rows import ROWS
from common.training.runtime import amp_dtype, precision
from common.training.step import TrainStep, make_optimizer, seed_epoch

# Network → the row whose recipe it is measured with; SimpleCNN's own has no augmentation.
RECIPE_OF = {
    "simple_cnn": "improved",
    "improved_cnn": "improved",
    "se_resnet18": "se-cifar",
    "efficientnet_b2": "b2",
}


@dataclass(frozen=True)
class Case:
    """What is measured: a recipe on drawn images (speed does not depend on what they show),
    and where."""

    recipe: Recipe
    splits: Splits
    device: torch.device
    amp: torch.dtype | None

    @property
    def about(self) -> dict[str, object]:
        """What stands beside each of its figures."""
        recipe = self.recipe
        return {
            "model": recipe.model,
            "batch_size": recipe.batch_size,
            "precision": precision(self.amp),
        }

    def __str__(self) -> str:
        return "{model}, batch {batch_size}, ours in {precision}".format(**self.about)

    @property
    def cuda(self) -> bool:
        """Whether it runs on a GPU."""
        return self.device.type == "cuda"


def make_case(
    model: str, batch_size: int, runtime: Runtime, device: torch.device, per_class: int = 1000
) -> Case:
    """A network with the recipe of its phase, on `per_class` drawn images of each class."""
    row = next(row for row in ROWS if row.key == RECIPE_OF[model])
    recipe = replace(Recipe(**row.recipe), model=model, batch_size=batch_size)
    splits = make_splits(*draw(per_class, seed=0), *draw(20, seed=1), CLASSES, "synthetic")
    return Case(recipe, splits.to(device), device, amp_dtype(runtime, device, model))


class Pictures(torch.utils.data.Dataset):
    """Training images as PIL pictures through a chain of transforms, with their labels."""

    def __init__(self, case: Case) -> None:
        recipe, splits = case.recipe, case.splits
        jitter = [recipe.jitter] * 3
        # PIL takes (H, W, 3).
        self.images = splits.train.images.cpu().permute(0, 2, 3, 1).numpy()
        self.labels = splits.train.labels.tolist()
        self.transform = T.Compose([
            T.RandomCrop(splits.image_size, padding=recipe.crop_padding),
            T.RandomHorizontalFlip(),
            *([T.RandomRotation(recipe.rotation)] if recipe.rotation else []),
            T.ColorJitter(*jitter),
            *([T.Resize(splits.image_size * recipe.resize)] if recipe.resize > 1 else []),
            T.ToTensor(),
            T.Normalize(splits.mean, splits.std),
            *([T.RandomErasing(recipe.random_erasing)] if recipe.random_erasing else []),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[i])), self.labels[i]


def plain_data(case: Case) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of the plain data side, delivered to the device."""
    data = torch.utils.data
    pictures = Pictures(case)
    endless = data.RandomSampler(pictures, replacement=True, num_samples=10**9)
    loader = data.DataLoader(
        pictures, case.recipe.batch_size, sampler=endless, num_workers=min(8, os.cpu_count() or 1),
        pin_memory=case.cuda, multiprocessing_context="fork",
    )  # fmt: skip
    for images, labels in loader:
        yield images.to(case.device), labels.to(case.device)


def plain_model(case: Case) -> nn.Module:
    """The network as a tutorial has it: NCHW, fp32, B2 from the package untouched."""
    if case.recipe.model == "efficientnet_b2":
        return EfficientNet.from_name("efficientnet-b2", num_classes=10).to(case.device)
    return build(case.recipe.model).to(case.device)


def plain_train(case: Case) -> Iterator[float]:
    """Steps of the plain loop; yields each loss, which `loss.item()` reads as tutorials do."""
    recipe = case.recipe
    model = plain_model(case).train()
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.SGD
    optimizer = kind(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    for images, labels in plain_data(case):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        yield loss.item()


def our_preprocess(case: Case) -> Preprocess:
    """From uint8 to network input, as the training scripts do it."""
    splits, recipe = case.splits, case.recipe
    spec = Augmentation.of(recipe)
    return Preprocess(splits.mean, splits.std, recipe.resize, spec, case.device)


def our_step(case: Case, capture: bool = False, compiled: bool = False) -> TrainStep:
    """The training step of the scripts; a compiled one is captured as well on a GPU.

    Raises:
        RuntimeError: it cannot be captured, and why.
    """
    recipe = case.recipe
    model = build(recipe.model, dropout=recipe.dropout, bn_momentum=recipe.bn_momentum).train()
    model.to(case.device, memory_format=torch.channels_last)
    if compiled:
        model.compile(dynamic=False)
    optimizer = make_optimizer(model, recipe, case.device)
    step = TrainStep(
        model, case.splits.train, our_preprocess(case), optimizer, recipe.batch_size,
        recipe.label_smoothing, case.amp,
    )  # fmt: skip
    if capture or compiled and case.cuda:
        problem = step.capture()
        if problem:
            raise RuntimeError(problem)
    return step


def our_train(case: Case, capture: bool = False, compiled: bool = False) -> Iterator[None]:
    """Steps of ours; nothing is read back from the device."""
    step = our_step(case, capture, compiled)
    for epoch in itertools.count(1):
        step.start_epoch(seed_epoch(0, epoch), [case.recipe.lr] * step.steps)
        for _ in range(step.steps):
            step()
            yield


def our_data(case: Case) -> Iterator[None]:
    """Augmented batches of ours."""
    prepare, train = our_preprocess(case), case.splits.train
    generator = torch.Generator(case.device).manual_seed(0)
    while True:
        chosen = torch.randint(len(train), (case.recipe.batch_size,), device=case.device)
        prepare.train(train.images[chosen], generator)
        yield
