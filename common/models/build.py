"""Networks by name."""
import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from common.errors import InputError
from common.files import Json
from common.models.cnn import ImprovedCNN, SimpleCNN
from common.models.efficientnet import PADDING_IMAGE_SIZE, efficientnet_b2
from common.models.se_resnet import SEResNet18

HEADS = {
    "simple_cnn": "head",
    "improved_cnn": "head",
    "se_resnet18": "fc",
    "efficientnet_b2": "_fc",
}
# Pixels below which a stride or a pool finds nothing left to look at.
SMALLEST_INPUT = {"simple_cnn": 8, "improved_cnn": 8, "se_resnet18": 1, "efficientnet_b2": 4}


def build(name: str, num_classes: int = 10, *, input_size: int = 32, stem: str = "cifar",
          dropout: float = 0.5, bn_momentum: float = 0.1,
          padding_image_size: int = PADDING_IMAGE_SIZE) -> nn.Module:
    """A freshly initialised network by name; it takes the arguments that concern it.

    Args:
        input_size: height and width in pixels; fixes the first linear layer of the two small
            networks, and is checked for all.
        bn_momentum: weight of a new batch in BatchNorm's running statistics.

    Raises:
        InputError: an unknown name, or images too small for the network.
    """
    if name not in HEADS:
        raise InputError(f"unknown model {name!r}: choose one of {', '.join(HEADS)}")
    smallest = SMALLEST_INPUT[name]
    if input_size < smallest:
        raise InputError(f"{name} needs images of at least {smallest} px, "
                         f"not {input_size}: enlarge them with --image-size or --resize")
    if name == "se_resnet18":
        model = SEResNet18(num_classes, stem, dropout)
    elif name == "efficientnet_b2":
        model = efficientnet_b2(num_classes, padding_image_size, dropout)
    else:
        kind = SimpleCNN if name == "simple_cnn" else ImprovedCNN
        model = kind(num_classes, input_size)
    # Set here once, so that no block of any network has to hand it on.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = bn_momentum
    return model


def architecture(name: str, **arguments: Any) -> Json:
    """What a checkpoint stores: the name and every argument of `build`, defaults included.

    `build(**architecture(...))` gives the same network.
    """
    # Spelled out, so that a later change of a default does not change an old checkpoint.
    return {"name": name, **build.__kwdefaults__, **arguments}


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, frozen ones included."""
    return sum(p.numel() for p in model.parameters())


def freeze_all_but(model: nn.Module, head: str) -> None:
    """Freeze all parameters but those of the submodule `head`; `requires_grad_(True)` undoes it."""
    model.requires_grad_(False)
    model.get_submodule(head).requires_grad_(True)


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Inside the block the model is in eval mode and nothing is autocast; then each module gets
    its own mode back."""
    modes = {module: module.training for module in model.modules()}
    device = next(model.parameters(), torch.empty(0)).device
    try:
        # Set flag by flag, since a model may override `train()` to keep parts of it in eval mode.
        for module in modes:
            module.training = False
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
