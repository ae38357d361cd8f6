"""Networks by name: one table of them, and what may be done with any."""
import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from common.errors import InputError
from common.models.networks import (PADDING_IMAGE_SIZE, ImprovedCNN, SEResNet18, SimpleCNN,
                                    efficientnet_b2)


class Network(NamedTuple):
    """All that the project knows of a network beside its layers."""

    head: str  # its submodule that knows the classes; the rest is the backbone
    smallest_input: int  # pixels below which a stride or a pool finds nothing left to look at
    # Published ImageNet weights, named after their sha256; none where empty.
    weights_url: str = ""
    # Keys (patterns) that other weights may lack → what these are called; the head always may.
    fresh: Mapping[str, str] = {}


# A network is added here, in `build`, and to the choices of --model in config.py.
NETWORKS = {
    "simple_cnn": Network(head="head", smallest_input=8),
    "improved_cnn": Network(head="head", smallest_input=8),
    "se_resnet18": Network(
        head="fc", smallest_input=1,
        weights_url="https://download.pytorch.org/models/resnet18-f37072fd.pth",
        # A plain ResNet-18 has no gates, and another kernel than the stem for CIFAR.
        fresh={"conv1.*": "first convolution", "*.se.*": "gates"}),
    "efficientnet_b2": Network(
        head="_fc", smallest_input=4,
        weights_url="https://github.com/lukemelas/EfficientNet-PyTorch/releases/download/1.0/"
                    "efficientnet-b2-8bb594d6.pth"),
}


def build(name: str, num_classes: int = 10, *, input_size: int = 32, stem: str = "cifar",
          dropout: float = 0.5, bn_momentum: float = 0.1,
          padding_image_size: int = PADDING_IMAGE_SIZE) -> nn.Module:
    """A freshly initialised network by name; it takes the arguments that concern it.

    Args:
        input_size: height and width in pixels; fixes the small networks' first linear layer.
        bn_momentum: weight of a new batch in BatchNorm's running statistics.

    Raises:
        InputError: images too small for the network.
    """
    smallest = NETWORKS[name].smallest_input
    if input_size < smallest:
        raise InputError(f"{name} needs images of at least {smallest} px, not {input_size}: choose "
                         "larger ones")
    if name == "efficientnet_b2":
        model = efficientnet_b2(num_classes, padding_image_size, dropout)
    elif name == "se_resnet18":
        model = SEResNet18(num_classes, stem, dropout)
    else:
        make = ImprovedCNN if name == "improved_cnn" else SimpleCNN
        model = make(num_classes, input_size)
    # Set here once, so that no block of any network has to hand it on.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = bn_momentum
    return model


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, frozen ones included."""
    return sum(p.numel() for p in model.parameters())


def freeze_backbone(model: nn.Module, name: str) -> None:
    """Freeze all parameters but those of the head; `requires_grad_(True)` undoes it."""
    model.requires_grad_(False)
    model.get_submodule(NETWORKS[name].head).requires_grad_(True)


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """In the block eval mode and no autocast; then each module gets its own mode back."""
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


def named_maps(model: nn.Module, image_size: int) -> dict[str, tuple[int, int, int]]:
    """Name -> (C, h, w) of every module that gives one 4-D output a forward pass, as they finish.

    These are the layers that Grad-CAM can look at. Left out: a module that runs more than once,
    such as a shared activation, the pooling at the end, after which no place is left, and one that
    only passes on or pads: padded maps lie shifted against the image.

    Raises:
        ValueError: a part of the model is compiled.
    """
    # Hooks would be silently skipped.
    if any(hasattr(m, "_orig_mod") or m._compiled_call_impl for m in model.modules()):
        raise ValueError("hooks need the eager model, but this one is compiled; load the "
                         "checkpoint uncompiled")
    weight = next(model.parameters(), torch.empty(0))
    names = {module: name for name, module in model.named_modules()}
    shapes = defaultdict(list)

    def note(module: nn.Module, _inputs: tuple, output: object) -> None:
        """Append the output's (C, h, w), or nothing's for what is no tensor."""
        if not isinstance(module, (nn.AdaptiveAvgPool2d, nn.Identity, nn.ZeroPad2d)):
            shapes[names[module]].append(tuple(getattr(output, "shape", ()))[1:])

    with in_eval_mode(model), torch.no_grad(), register_module_forward_hook(note):
        model(weight.new_zeros(1, 3, image_size, image_size))
    return {name: found[0] for name, found in shapes.items() if [*map(len, found)] == [3]}


def describe(model: nn.Module, size: int) -> list[str]:
    """What a run says of its network: parameters, sizes of its maps, and a warning."""
    channels, heights, _ = zip(*named_maps(model, size).values())
    lines = [
        f"{type(model).__name__}: {count_parameters(model):,} parameters",
        # Each size once: maps only shrink.
        f"feature maps: {' → '.join(map(str, dict.fromkeys([size, *heights])))} px "
        f"({channels[-1]:,} channels at the end)",
    ]
    if heights[-1] == 1:
        lines.append("warning: the last feature map is 1×1: nothing spatial is left to pool; "
                     "use larger images or a stem that shrinks less")
    return lines
