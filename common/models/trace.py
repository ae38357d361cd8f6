"""Sizes of the feature maps, which explain two of the study's results."""
from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from common.models.build import count_parameters, in_eval_mode


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
