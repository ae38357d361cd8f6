"""Where a classifier looks: Grad-CAM, the evidence for a class as a heat map over the image.

A convolutional network keeps its map's rows and columns up to the last pooling, so a channel of a
deep layer says *where* it found what it looks for. Grad-CAM asks of every channel how much the
class's logit would rise with it, and adds the channels up with those weights.

Models run in fp32 and eval mode, and come back exactly as they came, on an exception too: train
and requires_grad flags, gradients and hooks.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST_MAP = 4  # cells a side; a 2x2 map says little more than left or right, up or down


def grad_cam(model: nn.Module, layer: str, images: Tensor, targets: Tensor) -> Tensor:
    """Heat maps of the evidence for `targets` (Grad-CAM, Selvaraju et al. 2017, arXiv:1610.02391).

    ReLU of the layer's channels, each weighted by the spatial mean of d logit / d activation;
    enlarged bilinearly (align_corners False), then divided by each map's own maximum: compare
    places, not heights. Frozen weights and torch.no_grad() are fine.

    Args:
        model: eager classifier; comes back exactly as it came.
        layer: dotted name of a submodule that runs once a forward pass and gives (N, C, h, w).
        images: (N, 3, H, W) float32, normalised, on the model's device.
        targets: (N,) int64 class indices.

    Returns:
        (N, H, W) float32 in [0, 1]; all zeros where nothing supports the class.

    Raises:
        ValueError: the model is compiled, or `layer` is none that `named_maps` lists (the message
            does), or does not reach the logits.
    """
    legal = named_maps(model, images.shape[-1])
    if layer not in legal:
        raise ValueError(f"{layer!r} is no layer with one map; choose from {', '.join(legal)}")
    captured = []

    def cut(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
        """Make the output the root of the graph."""
        # A detached copy that asks for a gradient starts the graph here: nothing before the layer
        # is kept, and frozen weights do not matter.
        captured.append(output.detach().clone().requires_grad_())
        # Downstream gets another copy, which an in-place ReLU may overwrite.
        return captured[-1].clone()

    # The caller may be under no_grad or inference_mode; neither can give the gradient needed here.
    with eval_fp32(model, images.device), torch.inference_mode(False), torch.enable_grad():
        with model.get_submodule(layer).register_forward_hook(cut):
            logits = model(images.detach().clone())  # (N, K)
        # Images do not mix in eval mode, so the gradient of the sum over the batch holds each
        # image's own gradient.
        score = logits.gather(1, targets.clone()[:, None]).sum()
        gradient = None
        if score.requires_grad:
            (gradient,) = torch.autograd.grad(score, captured, allow_unused=True)  # (N, C, h, w)
        if gradient is None:
            raise ValueError(f"layer {layer!r} does not reach the logits; name one that feeds the "
                             "classifier")
        weights = gradient.mean((2, 3))  # (N, C): how much the logit rises with each channel
        maps = torch.einsum("nc,nchw->nhw", weights, captured[0].detach())
        maps = maps.relu()  # what speaks against the class is no evidence for it
        size = images.shape[-2:]
        maps = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    peaks = maps.amax((1, 2), keepdim=True)  # (N, 1, 1)
    return maps / peaks.clamp_min(torch.finfo(maps.dtype).tiny)  # a map of zeros stays zeros


def named_maps(model: nn.Module, image_size: int) -> dict[str, tuple[int, int, int]]:
    """Name -> (C, h, w) of every module that gives one 4-D output a forward pass, as they finish.

    These are the layers of `grad_cam`. Left out: a module that runs more than once, such as a
    shared activation, and one that only passes on or pads, nn.Identity and nn.ZeroPad2d: padded
    maps lie shifted against the image.

    Raises:
        ValueError: a part of the model is compiled.
    """
    for name, module in model.named_modules():
        # Hooks would be silently skipped.
        if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            raise ValueError(f"Grad-CAM needs the eager model, but {name or 'it'} is compiled; "
                             "load the checkpoint uncompiled")
    weight = next(model.parameters(), torch.empty(0))
    names = {module: name for name, module in model.named_modules()}
    outputs = defaultdict(list)

    def note(module: nn.Module, _inputs: tuple, output: object) -> None:
        """Append the output's (C, h, w), or None for what is no 4-D tensor."""
        is_map = isinstance(output, Tensor) and output.ndim == 4
        outputs[names[module]].append(tuple(output.shape[1:]) if is_map else None)

    with eval_fp32(model, weight.device), torch.no_grad(), ExitStack() as hooks:
        for module in names:
            if not isinstance(module, (nn.Identity, nn.ZeroPad2d)):
                hooks.enter_context(module.register_forward_hook(note))
        model(weight.new_zeros(1, 3, image_size, image_size))
    return {name: shapes[0] for name, shapes in outputs.items() if len(shapes) == 1 and shapes[0]}


def default_layer(model: nn.Module, image_size: int) -> str:
    """Name of the deepest layer whose map is at least 4x4, or else of the deepest.

    It lies in no module with a smaller map, so blocks are taken whole: EfficientNet-B2 at 64 px
    gives `_blocks.15`, not the expansion inside `_blocks.16` on its way to 2x2.
    """
    maps = named_maps(model, image_size)
    small = [f"{name}." for name, (_, *sides) in maps.items() if min(sides) < SMALLEST_MAP]
    # A small module's own name starts with itself, so this leaves it out as well.
    large = [name for name in maps if not f"{name}.".startswith(tuple(small))]
    return (large or list(maps))[-1]


@contextmanager
def eval_fp32(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode without autocast; every module's own train flag comes back."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        # Set flag by flag, since a model may override `train()` to keep parts of it in eval mode.
        for module, _ in flags:
            module.training = False
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for module, flag in flags:
            module.training = flag
