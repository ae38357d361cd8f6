"""Where a classifier looks (Grad-CAM), and whether it truly looks there (deletion and insertion curves).

Models run in fp32 and eval mode, and come back exactly as they came, on an exception too: train and requires_grad
flags, gradients and hooks.
"""
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur


class Curves(NamedTuple):
    """Target probabilities (N, S + 1) by `fraction` (S + 1,) of pixels changed; their areas (N,): low deletion, high insertion is good."""

    fraction: Tensor
    deletion: Tensor
    insertion: Tensor
    deletion_area: Tensor
    insertion_area: Tensor


def grad_cam(model: nn.Module, layer: nn.Module | str, images: Tensor, targets: Tensor) -> Tensor:
    """Heat maps of the evidence for `targets` (Grad-CAM, Selvaraju et al. 2017, arXiv:1610.02391).

    ReLU of the layer's channels, each weighted by the spatial mean of d logit / d activation; enlarged bilinearly (align_corners
    False), then divided by each map's own maximum: compare places, not heights. Frozen weights and torch.no_grad() are fine.

    Args:
        model: eager classifier; comes back exactly as it came.
        layer: submodule, or its dotted name, that runs once a forward pass and gives (N, C, h, w).
        images: (N, 3, H, W) float32, normalised, on the model's device.
        targets: (N,) int64 class indices.

    Returns:
        (N, H, W) float32 in [0, 1]; all zeros where nothing supports the class.

    Raises:
        ValueError: the model is compiled; `layer` is unknown (the message lists the legal ones), runs other than once,
            gives no 4-D output or does not reach the logits; a target is not a class.
    """
    _refuse_compiled(model)
    name, module = _find(model, layer, images)
    captured: list[Tensor] = []

    def cut(_module: nn.Module, _inputs: tuple, output: object) -> Tensor:
        """Make the output the root of the graph; downstream gets a copy that in-place operations may overwrite."""
        if not isinstance(output, Tensor) or output.ndim != 4:
            raise ValueError(f"layer {name!r} did not give a 4-D output; name one whose output is (N, C, h, w)")
        captured.append(output.detach().clone().requires_grad_())
        return captured[-1].clone()

    with _eval_fp32(model, images.device), torch.inference_mode(False), torch.enable_grad():
        with module.register_forward_hook(cut):
            logits = model(images.detach().clone())
        if len(captured) != 1:
            raise ValueError(f"layer {name!r} ran {len(captured)} times in one forward pass; name one that runs once")
        _check_targets(targets, logits)
        score = logits.gather(1, targets.clone()[:, None]).sum()
        gradient = torch.autograd.grad(score, captured, allow_unused=True)[0] if score.requires_grad else None
        if gradient is None:
            raise ValueError(f"layer {name!r} does not reach the logits; name one that feeds the classifier")
        maps = torch.einsum("nc,nchw->nhw", gradient.mean((2, 3)), captured[0].detach()).relu()
        maps = F.interpolate(maps[:, None], images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)


def named_maps(model: nn.Module, image_size: int) -> dict[str, tuple[int, int, int]]:
    """Name -> (C, h, w) of every module that gives one 4-D output a forward pass, in the order they finish.

    These are the layers of `grad_cam`. Left out: a module that runs more than once, such as a shared activation, and one
    that only passes on or pads, nn.Identity and nn.ZeroPad2d: padded maps lie shifted against the image.
    """
    _refuse_compiled(model)
    weight = next(model.parameters(), torch.empty(0))
    return _trace(model, torch.zeros(1, 3, image_size, image_size, dtype=weight.dtype, device=weight.device))


def default_layer(model: nn.Module, image_size: int) -> str:
    """Name of the deepest layer, last in forward order, whose map is at least 4x4 and that lies in no module with a smaller one.

    So blocks are taken whole: EfficientNet-B2 at 64 px gives `_blocks.15`, not the expansion inside `_blocks.16` on its way to 2x2.
    """
    maps = named_maps(model, image_size)
    small = tuple(f"{name}." for name, (_, h, w) in maps.items() if min(h, w) < 4)
    names = [name for name in maps if not f"{name}.".startswith(small)]
    if not names:
        raise ValueError(f"no layer has a map of 4x4 or more at {image_size} px; enlarge the images")
    return names[-1]


def deletion_insertion(model: nn.Module, images: Tensor, targets: Tensor, maps: Tensor, steps: int = 10) -> Curves:
    """Deletion and insertion curves of `maps` (RISE, Petsiuk et al. 2018, arXiv:1806.07421).

    Deletion sets pixels to 0, the data set's mean colour once normalised, the highest of the map first; insertion puts them in
    the same order onto the blurred image (sigma an eighth of the side, since CIFAR's objects fill the frame). Equal pixels go in
    the order of a `random_maps` of their own, so that a flat map is a random one and not a sweep from the top. Costs
    2·steps + 1 passes of the batch: by default 31,500 inferences for 500 images and three kinds of map, under 2 min for
    EfficientNet-B2 at 64 px on two CPU cores (300 images/s). Memory grows with N: batch outside.

    Args:
        model: classifier; comes back exactly as it came.
        images: (N, 3, H, W) float32, normalised, at the size the model sees.
        targets: (N,) int64 class indices.
        maps: (N, H, W), higher is more important; only the order of the pixels counts.
        steps: equal portions in which the pixels go.
    """
    n, _, height, width = images.shape
    if maps.shape != (n, height, width) or not 1 <= steps <= height * width:
        raise ValueError(f"maps {tuple(maps.shape)} must be {(n, height, width)} and steps {steps} in 1..{height * width}")
    ties = random_maps(n, height, width, torch.Generator().manual_seed(0)).flatten(1).argsort(1).to(images.device)
    order = ties.gather(1, maps.to(images.device).flatten(1).gather(1, ties).argsort(dim=1, descending=True, stable=True))
    rank = order.argsort(1).view(n, 1, height, width)
    radius = max(1, min(height, width) // 4)
    blurred = gaussian_blur(gaussian_blur(images, [2 * radius + 1, 1], radius / 2), [1, 2 * radius + 1], radius / 2)
    with _eval_fp32(model, images.device), torch.no_grad():

        def target_prob(changed: Tensor) -> Tensor:
            """(N,) probability of the targets."""
            logits = model(changed)
            _check_targets(targets, logits)
            return logits.softmax(1).gather(1, targets[:, None])[:, 0]

        whole = target_prob(images)
        deletion, insertion = [whole], [target_prob(blurred)]
        for step in range(1, steps + 1):
            gone = rank < round(step * height * width / steps)
            deletion.append(target_prob(images.masked_fill(gone, 0)))
            insertion.append(whole if step == steps else target_prob(torch.where(gone, images, blurred)))
    curves = torch.stack(deletion, 1), torch.stack(insertion, 1)
    areas = (torch.trapezoid(curve, dx=1 / steps) for curve in curves)
    return Curves(torch.arange(steps + 1) / steps, *curves, *areas)


def random_maps(n: int, h: int, w: int, generator: torch.Generator, grid: tuple[int, int] = (4, 4)) -> Tensor:
    """(n, h, w) random maps in [0, 1], the control that a heat map must beat.

    Drawn on a `grid` of the compared layer's map size and enlarged like it: pixel noise removes a fine sprinkle, which
    confuses a network for another reason and so has a smaller deletion area than true maps.
    """
    drawn = torch.rand(n, 1, *grid, generator=generator, device=generator.device)
    return F.interpolate(drawn, (h, w), mode="bilinear", align_corners=False)[:, 0]


def center_prior(n: int, h: int, w: int) -> Tensor:
    """(n, h, w) maps in [0, 1] that fall linearly with the distance from the centre: the photographer's habit."""
    y, x = ((2 * torch.arange(side) + 1 - side) / side for side in (h, w))
    return (1 - torch.hypot(y[:, None], x[None]) / 2**0.5).expand(n, h, w)


@contextmanager
def _eval_fp32(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode without autocast; every module's own train flag comes back, also where `train()` is overridden."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for module, flag in flags:
            module.training = flag


def _trace(model: nn.Module, images: Tensor) -> dict[str, tuple[int, int, int]]:
    """Legal layers and their map sizes from one forward pass of `images`."""
    names = {module: name for name, module in model.named_modules() if not isinstance(module, (nn.Identity, nn.ZeroPad2d))}
    outputs: dict[str, list] = {}

    def note(module: nn.Module, _inputs: tuple, output: object) -> None:
        """Append the output's (C, h, w), or None for what is no 4-D tensor."""
        is_map = isinstance(output, Tensor) and output.ndim == 4
        outputs.setdefault(names[module], []).append(tuple(output.shape[1:]) if is_map else None)

    with _eval_fp32(model, images.device), torch.no_grad(), ExitStack() as hooks:
        for module in names:
            hooks.enter_context(module.register_forward_hook(note))
        model(images)
    return {name: shapes[0] for name, shapes in outputs.items() if len(shapes) == 1 and shapes[0]}


def _find(model: nn.Module, layer: nn.Module | str, images: Tensor) -> tuple[str, nn.Module]:
    """Dotted name and module of `layer`; ValueError with the legal names if the model has no such layer."""
    for name, module in model.named_modules():
        if layer is module or layer == name:
            return name, module
    raise ValueError(f"the model has no layer {layer!r}; choose from {', '.join(_trace(model, images[:1]))}")


def _check_targets(targets: Tensor, logits: Tensor) -> None:
    """Raise ValueError unless `targets` are N classes of the (N, K) `logits`; waits for the device."""
    n, k = logits.shape
    if targets.shape != (n,) or targets.dtype != torch.int64 or (n and not 0 <= targets.min() <= targets.max() < k):
        raise ValueError(f"targets must be {n} int64 classes in 0..{k - 1}, got {targets.dtype} {targets.tolist()}")


def _refuse_compiled(model: nn.Module) -> None:
    """Raise ValueError if any part of the model is compiled: hooks would be silently skipped."""
    for name, module in model.named_modules():
        if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            raise ValueError(f"Grad-CAM needs the eager model, but {name or 'it'} is compiled; load the checkpoint uncompiled")
