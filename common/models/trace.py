"""Sizes of the feature maps, which explain two of the study's results."""
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from common.models.build import count_parameters, in_eval_mode


def feature_trace(model: nn.Module, size: int) -> list[tuple[int, ...]]:
    """(C, h, w) after every convolution and pool, in the order of their work.

    Args:
        model: returned as it came, hooks and modes included.
        size: height and width of the input in pixels.
    """
    shapes: list[tuple[int, ...]] = []

    def note(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        # Nothing else changes the size of a map.
        if isinstance(module, (nn.Conv2d, nn.MaxPool2d)):
            shapes.append(tuple(output.shape[1:]))

    image = next(model.parameters()).new_zeros(1, 3, size, size)
    with register_module_forward_hook(note), in_eval_mode(model), torch.no_grad():
        model(image)
    return shapes


def describe(model: nn.Module, size: int) -> list[str]:
    """What a run says of its network: parameters, sizes of its maps, and a warning."""
    trace = feature_trace(model, size)
    channels, height, _ = trace[-1]
    sizes = dict.fromkeys([size, *(h for _, h, _ in trace)])  # each once: maps only shrink
    lines = [
        f"{type(model).__name__}: {count_parameters(model):,} parameters",
        f"feature maps: {' → '.join(map(str, sizes))} px ({channels:,} channels at the end)",
    ]
    if height == 1:
        lines.append("warning: the last feature map is 1×1: nothing spatial is left to pool; "
                     "use larger images or a stem that shrinks less")
    return lines
