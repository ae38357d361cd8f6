"""What only saves launches: the same numbers as plain PyTorch's, from fewer kernels.

A step of a small network is hundreds of kernels, each of a few microseconds; at a batch of 125
images their number bounds the speed: in bf16 (torch 2.14) 1,399 with B2 at 64 px, 492 SE-ResNet18,
136 ImprovedCNN, 72 SimpleCNN. Nothing here has to be read to understand the training: each function
names the plain PyTorch that it stands for, and how many launches that would add to a step.
"""
import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def cast_weights(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Name → low-precision copy of each trainable weight that autocast would cast.

    Plain: no weights given, so that autocast casts them and their gradients one by one; 324
    launches more with B2, 106 with SE-ResNet18, 18 with the small networks.
    """
    weights = {}
    for name, layer in model.named_modules():
        # Autocast leaves BatchNorm's in fp32; frozen ones, without gradients, it may cast itself.
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            for key, p in layer.named_parameters(recurse=False):
                if p.requires_grad:
                    weights[f"{name}.{key}"] = p
    copies = CastTogether.apply(dtype, *weights.values())
    return dict(zip(weights, copies))


class CastTogether(torch.autograd.Function):
    """Copies of many tensors in another precision, made in a few launches, as are their gradients.

    Rounds where autocast does: losses and weights stay equal to the bit, if no layer is used twice.
    """

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.like = weights
        copies = [torch.empty_like(weight, dtype=dtype) for weight in weights]
        torch._foreach_copy_(copies, weights)
        return tuple(copies)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        copies = [torch.empty_like(weight) for weight in ctx.like]
        torch._foreach_copy_(copies, grads)
        return None, *copies


@contextlib.contextmanager
def counted_at_once(model: nn.Module) -> Iterator[None]:
    """BatchNorm layers that train count their batches in one launch at the end, not in one each.

    Plain: nothing; 68 launches more with B2, 19 with SE-ResNet18. Only state dicts need the counts.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    counts = [norm.num_batches_tracked for norm in norms]
    for norm in norms:
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, count in zip(norms, counts):
            norm.num_batches_tracked = count
    if counts:
        torch._foreach_add_(counts, 1)


def training_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0,
                  class_weights: Tensor | None = None, pasted: Tensor | None = None) -> Tensor:
    """Mean cross-entropy against smoothed labels (Szegedy et al. 2016, arXiv:1512.00567), ().

    Plain, without `pasted`:
    `F.cross_entropy(logits, labels, class_weights, label_smoothing=label_smoothing)`; 15 launches
    more where labels are smoothed, 4 fewer where they are not.

    Args:
        logits: (N, K), any floating dtype.
        labels: (N,) int64.
        class_weights: (K,) float32.
        pasted: (N,) float32, the part of each image, and of its label, that is its predecessor's.
    """
    images, classes = logits.shape
    log_probs = F.log_softmax(logits.float(), dim=1)
    # A smoothed label gives every class a little, and its own class the rest.
    every = label_smoothing / classes
    own = 1 - label_smoothing + every
    targets = torch.full_like(log_probs, every).scatter_(1, labels[:, None], own)  # (N, K)
    if pasted is not None:
        targets = torch.lerp(targets, targets.roll(1, 0), pasted[:, None])
    if class_weights is not None:
        # Divided by the batch's mean weight, as torch does: the loss keeps its scale.
        targets = targets * (class_weights / class_weights[labels].mean())
    return (log_probs * targets).sum() / -images


class WithSpatialMean(torch.autograd.Function):
    """x (N, C, H, W) itself and its mean over height and width (N, C); plain: `x, x.mean((2, 3))`.

    The mean's gradient is the same for every pixel. Here, where it meets the gradient of the other
    use of x, it is added to that; `x.mean` divides it first: 23 launches (B2), 8 (SE-ResNet18).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.pixels = x.shape[2] * x.shape[3]
        return x, x.mean((2, 3))

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_of_mean: Tensor) -> Tensor:
        return torch.add(grad, grad_of_mean[:, :, None, None], alpha=1 / ctx.pixels)


def drop_connect_masks(x: Tensor, blocks: int, rate: float) -> Tensor:
    """Masks (blocks, N, 1, 1, 1) in the dtype of x, by which blocks scale what they add to x.

    Stochastic depth (Huang et al. 2016, arXiv:1603.09382): a mask is 0 for images that leave the
    block out, and else what keeps the mean at 1. From block to block the chance to be left out
    rises, from 0 to nearly `rate`. Plain: each block draws its own; 81 launches more with B2.

    Args:
        x: (N, C, H, W), what the first block sees.
    """
    kept = 1 - rate / blocks * torch.arange(blocks, device=x.device).view(-1, 1, 1, 1, 1)
    # In fp32, since bf16 distorts small rates.
    drawn = torch.rand(blocks, len(x), 1, 1, 1, device=x.device)
    return ((drawn < kept) / kept).to(x.dtype)
