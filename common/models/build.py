"""Networks by name: one table of them, and what may be done with any."""
import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from common.errors import InputError
from common.models.cnn import ImprovedCNN, SimpleCNN
from common.models.efficientnet import PADDING_IMAGE_SIZE, efficientnet_b2
from common.models.se_resnet import SEResNet18


class Network(NamedTuple):
    """All that the project knows of a network beside its layers."""

    # From all arguments of `build` but `name` and `bn_momentum`; takes those that concern it.
    make: Callable[..., nn.Module]
    head: str  # its submodule that knows the classes; the rest is the backbone
    smallest_input: int  # pixels below which a stride or a pool finds nothing left to look at
    # Published ImageNet weights, named after their sha256; none where empty.
    weights_url: str = ""
    # Keys (patterns) that other weights may lack → what these are called; the head always may.
    fresh: Mapping[str, str] = {}


# A network is added here, and to the choices of --model in config.py.
NETWORKS = {
    "simple_cnn": Network(
        lambda num_classes, input_size, **_: SimpleCNN(num_classes, input_size),
        head="head", smallest_input=8),
    "improved_cnn": Network(
        lambda num_classes, input_size, **_: ImprovedCNN(num_classes, input_size),
        head="head", smallest_input=8),
    "se_resnet18": Network(
        lambda num_classes, stem, dropout, **_: SEResNet18(num_classes, stem, dropout),
        head="fc", smallest_input=1,
        weights_url="https://download.pytorch.org/models/resnet18-f37072fd.pth",
        # A plain ResNet-18 has no gates, and another kernel than the stem for CIFAR.
        fresh={"conv1.*": "first convolution", "*.se.*": "gates"}),
    "efficientnet_b2": Network(
        lambda num_classes, padding_image_size, dropout, **_:
            efficientnet_b2(num_classes, padding_image_size, dropout),
        head="_fc", smallest_input=4,
        weights_url="https://github.com/lukemelas/EfficientNet-PyTorch/releases/download/1.0/"
                    "efficientnet-b2-8bb594d6.pth"),
}


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
    if name not in NETWORKS:
        raise InputError(f"unknown model {name!r}: choose one of {', '.join(NETWORKS)}")
    network = NETWORKS[name]
    if input_size < network.smallest_input:
        raise InputError(f"{name} needs images of at least {network.smallest_input} px, "
                         f"not {input_size}: choose larger ones")
    model = network.make(num_classes=num_classes, input_size=input_size, stem=stem,
                         dropout=dropout, padding_image_size=padding_image_size)
    # Set here once, so that no block of any network has to hand it on.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = bn_momentum
    return model


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, frozen ones included."""
    return sum(p.numel() for p in model.parameters())


def freeze_backbone(model: nn.Module, name: str) -> None:
    """Freeze all parameters of the network `name` but its head's; `requires_grad_(True)` undoes it.
    """
    model.requires_grad_(False)
    model.get_submodule(NETWORKS[name].head).requires_grad_(True)


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


def named_maps(model: nn.Module, image_size: int) -> dict[str, tuple[int, int, int]]:
    """Name -> (C, h, w) of every module that gives one 4-D output a forward pass, as they finish.

    These are the layers that Grad-CAM can look at. Left out: a module that runs more than once,
    such as a shared activation, the pooling at the end, after which no place is left, and one that
    only passes on or pads: padded maps lie shifted against the image.

    Raises:
        ValueError: a part of the model is compiled.
    """
    for name, module in model.named_modules():
        # Hooks would be silently skipped.
        if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            raise ValueError(f"hooks need the eager model, but {name or 'it'} is compiled; "
                             "load the checkpoint uncompiled")
    weight = next(model.parameters(), torch.empty(0))
    names = {module: name for name, module in model.named_modules()}
    outputs = defaultdict(list)

    def note(module: nn.Module, _inputs: tuple, output: object) -> None:
        """Append the output's (C, h, w), or None for what is no 4-D tensor."""
        is_map = isinstance(output, Tensor) and output.ndim == 4
        if not isinstance(module, (nn.AdaptiveAvgPool2d, nn.Identity, nn.ZeroPad2d)):
            outputs[names[module]].append(tuple(output.shape[1:]) if is_map else None)

    with in_eval_mode(model), torch.no_grad(), register_module_forward_hook(note):
        model(weight.new_zeros(1, 3, image_size, image_size))
    return {name: shapes[0] for name, shapes in outputs.items() if len(shapes) == 1 and shapes[0]}


def describe(model: nn.Module, size: int) -> list[str]:
    """What a run says of its network: parameters, sizes of its maps, and a warning."""
    maps = [*named_maps(model, size).values()]
    channels, height, _ = maps[-1]
    sizes = dict.fromkeys([size, *(h for _, h, _ in maps)])  # each once: maps only shrink
    lines = [
        f"{type(model).__name__}: {count_parameters(model):,} parameters",
        f"feature maps: {' → '.join(map(str, sizes))} px ({channels:,} channels at the end)",
    ]
    if height == 1:
        lines.append("warning: the last feature map is 1×1: nothing spatial is left to pool; "
                     "use larger images or a stem that shrinks less")
    return lines
