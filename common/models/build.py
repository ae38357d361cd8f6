"""Networks by name."""
from typing import Any

from torch import nn

from common.errors import InputError
from common.models.cnn import ImprovedCNN, SimpleCNN
from common.models.efficientnet import PADDING_IMAGE_SIZE, efficientnet_b2
from common.models.se_resnet import SEResNet18

HEADS = {"simple_cnn": "head", "improved_cnn": "head", "se_resnet18": "fc", "efficientnet_b2": "_fc"}


def build(name: str, num_classes: int = 10, *, input_size: int = 32, stem: str = "cifar", dropout: float = 0.5,
          bn_momentum: float = 0.1, padding_image_size: int = PADDING_IMAGE_SIZE) -> nn.Module:
    """A freshly initialised network by name; each takes the arguments that concern it and ignores the others.

    Args:
        input_size: height and width in pixels; fixes the first linear layer of the two small networks.

    Raises:
        InputError: an unknown name, or images too small for the network.
    """
    if name not in HEADS:
        raise InputError(f"unknown model {name!r}: choose one of {', '.join(HEADS)}")
    if name in ("simple_cnn", "improved_cnn"):
        if input_size < 8:
            raise InputError(f"{name} needs images of at least 8 px, got {input_size}: enlarge them")
        kind = SimpleCNN if name == "simple_cnn" else ImprovedCNN
        return kind(num_classes, input_size, bn_momentum=bn_momentum)
    if name == "se_resnet18":
        return SEResNet18(num_classes, stem, dropout, bn_momentum)
    return efficientnet_b2(num_classes, bn_momentum, padding_image_size, dropout)


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, frozen ones included."""
    return sum(p.numel() for p in model.parameters())


def freeze_all_but(model: nn.Module, head: str) -> None:
    """Freeze every parameter except those of the submodule `head`; `model.requires_grad_(True)` undoes it."""
    model.requires_grad_(False)
    model.get_submodule(head).requires_grad_(True)


def architecture(name: str, **arguments: Any) -> dict[str, Any]:
    """What a checkpoint stores so that `build(**architecture)` gives the same network: name and every argument of `build`."""
    defaults = dict(build.__kwdefaults__)
    return {"name": name, **defaults, **arguments}
