"""Where a classifier looks: Grad-CAM, the evidence for a class as a heat map over the image.

A convolutional network keeps its map's rows and columns up to the last pooling, so a channel of a
deep layer says *where* it found what it looks for. Grad-CAM asks of every channel how much the
class's logit would rise with it, and adds the channels up with those weights.

Models run in fp32 and eval mode, and come back exactly as they came, on an exception too: train
and requires_grad flags, gradients and hooks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from common.models.build import in_eval_mode
from common.models.trace import named_maps

SMALLEST_MAP = 4  # cells a side; a 2x2 map says little more than left or right, up or down


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
    legal = named_maps(model, images.shape[-1])
    if layer not in legal:
        raise ValueError(f"{layer!r} is no layer with one map; choose from {', '.join(legal)}")
    captured = []

    def cut(_module: Module, _inputs: tuple, output: Tensor) -> Tensor:
        """Make the output the root of the graph."""
        # A detached copy that asks for a gradient starts the graph here: nothing before the layer
        # is kept, and frozen weights do not matter.
        captured.append(output.detach().clone().requires_grad_())
        # Downstream gets another copy, which an in-place ReLU may overwrite.
        return captured[-1].clone()

    # The caller may be under no_grad or inference_mode; neither can give the gradient needed here.
    with in_eval_mode(model), torch.inference_mode(False), torch.enable_grad():
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


def default_layer(model: Module, image_size: int) -> str:
    """Name of the deepest layer whose map is at least 4x4, or else of the deepest.

    It lies in no module with a smaller map, so blocks are taken whole: EfficientNet-B2 at 64 px
    gives `_blocks.15`, not the expansion inside `_blocks.16` on its way to 2x2.
    """
    maps = named_maps(model, image_size)
    small = [f"{name}." for name, (_, *sides) in maps.items() if min(sides) < SMALLEST_MAP]
    # A small module's own name starts with itself, so this leaves it out as well.
    large = [name for name in maps if not f"{name}.".startswith(tuple(small))]
    return (large or list(maps))[-1]
