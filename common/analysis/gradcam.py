"""Where a classifier looks: the evidence for a class as a heat map over the image.

A convolutional network keeps its map's rows and columns up to the last pooling, so a layer says
*where* it found what it looks for. What is asked of it is how much the class's logit would rise
with each value of its output. Grad-CAM averages that over the map and weights whole channels;
HiResCAM takes it place by place, so that a channel counts only where the network used it.

Models run in fp32 and eval mode, and come back exactly as they came, on an exception too: train
and requires_grad flags, gradients and hooks.
"""
from collections.abc import Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from common.models.build import in_eval_mode, named_maps

SMALLEST_MAP = 4  # cells a side; a 2x2 map says little more than left or right, up or down
TINY = 1e-30  # what is divided by is never less
COARSEST = 8  # pixels a side of a cell, for HiResCAM


def grad_cam(model: Module, layer: str, images: Tensor, targets: Tensor) -> Tensor:
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
    [(activation, gradient)] = activations_and_gradients(model, [layer], images, targets)
    weights = gradient.mean((2, 3), keepdim=True)  # how much the logit rises with each channel
    return _of_maximum_1(_enlarged((weights * activation).sum(1), images))


def hires_cam(model: Module, layers: Sequence[str], images: Tensor, targets: Tensor) -> Tensor:
    """Heat maps of the evidence for `targets` in several layers, summed (HiResCAM, Draelos & Carin
    2020, arXiv:2011.08891).

    Of each layer ReLU(Σ_c d logit / d activation · activation), place by place, enlarged
    bilinearly and divided by its own mean, so that coarse and fine layers count alike. Arguments,
    result and errors are those of `grad_cam`; with one layer it is the paper's HiResCAM.
    """
    total = images.new_zeros(len(images), *images.shape[2:])
    for activation, gradient in activations_and_gradients(model, layers, images, targets):
        maps = _enlarged((gradient * activation).sum(1), images)
        total += maps / maps.mean((1, 2), keepdim=True).clamp_min(TINY)
    return _of_maximum_1(total)


def activations_and_gradients(model: Module, layers: Sequence[str], images: Tensor,
                              targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each layer's output and d logit of the target / d output, both (N, C, h, w), from one forward
    and one backward pass; arguments and errors as in `grad_cam`."""
    legal = named_maps(model, images.shape[-1])
    for layer in layers:
        if layer not in legal:
            raise ValueError(f"{layer!r} is no layer with one map; choose from {', '.join(legal)}")
    taps: dict[Module, Tensor] = {}

    def tap(module: Module, _inputs: tuple, output: Tensor) -> Tensor:
        """Keep the output; the first to come becomes the root of the graph."""
        # A detached copy that asks for a gradient starts the graph here: nothing before the first
        # layer is kept, and frozen weights do not matter. A later layer must stay in the graph,
        # for the first one's gradient flows through it; only beside the road of all earlier ones
        # can it be without one, and is a root as well.
        is_root = not taps or not output.requires_grad
        taps[module] = output.detach().clone().requires_grad_() if is_root else output.clone()
        # Downstream gets another copy, which an in-place ReLU may overwrite.
        return taps[module].clone()

    modules = [model.get_submodule(layer) for layer in layers]
    # The caller may be under no_grad or inference_mode; neither can give the gradient needed here.
    with (ExitStack() as hooks, in_eval_mode(model), torch.inference_mode(False),
          torch.enable_grad()):
        for module in modules:
            hooks.enter_context(module.register_forward_hook(tap))
        logits = model(images.detach().clone())  # (N, K)
        # Images do not mix in eval mode, so the gradient of the sum over the batch holds each
        # image's own gradient.
        score = logits.gather(1, targets.clone()[:, None]).sum()
        outputs = [taps[module] for module in modules]
        gradients = [None] * len(outputs)
        if score.requires_grad:
            gradients = torch.autograd.grad(score, outputs, allow_unused=True)
    for layer, gradient in zip(layers, gradients):
        if gradient is None:
            raise ValueError(f"layer {layer!r} does not reach the logits; name one that feeds the "
                             "classifier")
    return [(output.detach(), gradient) for output, gradient in zip(outputs, gradients)]


def _enlarged(maps: Tensor, images: Tensor) -> Tensor:
    """ReLU of (N, h, w) maps, since what speaks against the class is no evidence for it, at the
    images' size."""
    size = images.shape[-2:]
    return F.interpolate(maps.relu()[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def _of_maximum_1(maps: Tensor) -> Tensor:
    """(N, h, w) maps divided by their own maxima; one of zeros stays zeros."""
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(TINY)


def default_layer(model: Module, image_size: int) -> str:
    """Name of Grad-CAM's layer: the last whole block whose map is at least 4x4, or else the deepest
    layer.

    EfficientNet-B2 at 64 px gives `_blocks.15`, not the expansion inside `_blocks.16` on its way
    to 2x2.
    """
    blocks = _whole_blocks(model, image_size)
    large = [name for side, name in blocks.items() if side >= SMALLEST_MAP]
    return (large or list(blocks.values()))[-1]


def fine_layers(model: Module, image_size: int) -> list[str]:
    """Names of HiResCAM's layers: the last whole block at each resolution whose cells are at most 8
    pixels wide; or else Grad-CAM's.

    EfficientNet-B2 at 64 px gives `_blocks.1`, `_blocks.4` and `_blocks.7`, whose maps are 32, 16
    and 8 cells wide.
    """
    blocks = _whole_blocks(model, image_size)
    fine = [name for side, name in blocks.items() if COARSEST * side >= image_size]
    return fine or [default_layer(model, image_size)]


def _whole_blocks(model: Module, image_size: int) -> dict[int, str]:
    """Cells a side -> the last module with such a map, of those that lie in none with a smaller
    one: half a block is not what the network hands on."""
    maps = {name: min(sides) for name, (_, *sides) in named_maps(model, image_size).items()}
    blocks = {}
    for name, side in maps.items():
        parents = (parent for parent in maps if name.startswith(f"{parent}."))
        if all(maps[parent] >= side for parent in parents):
            blocks[side] = name
    return blocks
