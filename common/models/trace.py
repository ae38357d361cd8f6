"""Sizes of the feature maps, which explain two of the study's results."""
import contextlib
from collections.abc import Sequence

import torch
from efficientnet_pytorch import EfficientNet
from torch import nn

from common.models.build import count_parameters
from common.models.se_resnet import SEResNet18


def stages(model: nn.Module) -> dict[str, nn.Module]:
    """The modules after which the feature map is worth a line: name for people → module, in forward order."""
    if isinstance(model, EfficientNet):
        blocks = list(model._blocks)
        last = [i for i in range(len(blocks)) if i + 1 == len(blocks) or blocks[i + 1]._depthwise_conv.stride[0] > 1]
        return {"stem": model._conv_stem, **{f"block {i + 1}": blocks[i] for i in last}, "head conv": model._conv_head}
    if isinstance(model, SEResNet18):
        return {"conv1": model.conv1, "maxpool": model.maxpool, **{f"layer{i}": getattr(model, f"layer{i}") for i in range(1, 5)}}
    return {f"block {i + 1}": block for i, block in enumerate(model.blocks)}


def feature_trace(model: nn.Module, size: int) -> list[tuple[str, tuple[int, ...]]]:
    """(stage, (C, h, w)) for an input of `size` pixels; the model is left as it was."""
    shapes: list[tuple[str, tuple[int, ...]]] = []
    reference = next(model.parameters())
    training = {module: module.training for module in model.modules()}
    with contextlib.ExitStack() as stack, torch.no_grad():
        for name, module in stages(model).items():
            hook = module.register_forward_hook(lambda _, __, out, name=name: shapes.append((name, tuple(out.shape[1:]))))
            stack.callback(hook.remove)
        model.eval()(torch.zeros(1, 3, size, size, device=reference.device, dtype=reference.dtype))
    for module, flag in training.items():
        module.training = flag
    return shapes


def trace_words(trace: Sequence[tuple[str, tuple[int, ...]]], size: int) -> list[str]:
    """The trace in one line, and a warning when the last map is 1×1."""
    path = " → ".join(f"{name} {c}×{h}×{w}" for name, (c, h, w) in trace)
    words = [f"feature maps at {size} px: 3×{size}×{size} → {path}"]
    if trace[-1][1][1:] == (1, 1):
        words.append("warning: the last feature map is 1×1: nothing spatial is left to pool; use larger images or a stem that shrinks less")
    return words


def describe(model: nn.Module, size: int) -> list[str]:
    """Parameter count and feature-map trace, as lines for the start of a run."""
    return [f"{type(model).__name__}: {count_parameters(model):,} parameters", *trace_words(feature_trace(model, size), size)]
