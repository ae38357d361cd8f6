"""Where a classifier looks (Grad-CAM), and whether it truly looks there (deletion and insertion curves).

Models run in fp32 and eval mode, and come back exactly as they came, on an exception too: train and requires_grad
flags, gradients and hooks.
"""
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn



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

    with eval_fp32(model, images.device), torch.inference_mode(False), torch.enable_grad():
        with module.register_forward_hook(cut):
            logits = model(images.detach().clone())
        if len(captured) != 1:
            raise ValueError(f"layer {name!r} ran {len(captured)} times in one forward pass; name one that runs once")
        check_targets(targets, logits)
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


@contextmanager
def eval_fp32(model: nn.Module, device: torch.device) -> Iterator[None]:
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

    with eval_fp32(model, images.device), torch.no_grad(), ExitStack() as hooks:
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


def check_targets(targets: Tensor, logits: Tensor) -> None:
    """Raise ValueError unless `targets` are N classes of the (N, K) `logits`; waits for the device."""
    n, k = logits.shape
    if targets.shape != (n,) or targets.dtype != torch.int64 or (n and not 0 <= targets.min() <= targets.max() < k):
        raise ValueError(f"targets must be {n} int64 classes in 0..{k - 1}, got {targets.dtype} {targets.tolist()}")


def _refuse_compiled(model: nn.Module) -> None:
    """Raise ValueError if any part of the model is compiled: hooks would be silently skipped."""
    for name, module in model.named_modules():
        if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            raise ValueError(f"Grad-CAM needs the eager model, but {name or 'it'} is compiled; load the checkpoint uncompiled")
