"""Whether a network truly looks where its heat maps point: deletion and insertion curves, halves of the image."""
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from common.analysis.gradcam import check_targets, eval_fp32, grad_cam
from common.analysis.scores import interval
from common.data.augment import Preprocess

CHUNK = 100  # images a pass of Grad-CAM or of the curves: three kinds of map are alive at once
STEPS = 10  # portions in which the curves change an image


def heat_maps(model: nn.Module, layer: str, prepare: Preprocess, images: Tensor, targets: Tensor) -> Tensor:
    """Grad-CAM (N, H, W) on the CPU, at the network's input size, for uint8 images and (N,) classes."""
    parts = zip(images.split(CHUNK), targets.split(CHUNK))
    return torch.cat([grad_cam(model, layer, prepare.clean(some), classes).cpu() for some, classes in parts])


def faithfulness(model: nn.Module, layer: str, grid: tuple[int, int], prepare: Preprocess, images: Tensor, targets: Tensor,
                 generator: torch.Generator, groups: Mapping[str, Sequence[bool]], progress: Callable[[int], object]) -> dict[str, Any]:
    """Deletion and insertion curves of Grad-CAM, of random maps and of the centre prior on the same images, with intervals.

    Args:
        grid: (h, w) of the layer's map, on which the random maps are drawn too.
        images: (N, 3, H, W) uint8; targets (N,) are the classes whose probability is followed.
        groups: name -> N flags, parts of the images whose differences are given apart.

    Returns:
        `curves` and `areas` by kind of map, and `differences` Grad-CAM minus control, paired by image, by group.
    """
    parts: dict[str, list] = {"gradcam": [], "random": [], "centre": []}
    for some, classes in zip(images.split(CHUNK), targets.split(CHUNK)):
        inputs = prepare.clean(some)
        shape = len(some), *inputs.shape[-2:]
        maps = grad_cam(model, layer, inputs, classes), random_maps(*shape, generator, grid), center_prior(*shape)
        for kind, heat in zip(parts, maps):
            parts[kind].append(deletion_insertion(model, inputs, classes, heat, STEPS))
            progress(len(some))
    both = ("deletion", "insertion")
    curves = {kind: {name: torch.cat([getattr(part, name) for part in some]).cpu() for name in both} for kind, some in parts.items()}
    areas = {kind: {name: torch.cat([getattr(part, f"{name}_area") for part in some]).cpu() for name in both} for kind, some in parts.items()}
    members = {"all": [True] * len(images), **groups}
    return {
        "images": len(images), "steps": STEPS, "fraction": [i / STEPS for i in range(STEPS + 1)],
        "curves": {kind: {name: _band(curve[name]) for name in both} for kind, curve in curves.items()},
        "areas": {kind: {name: interval(area[name]) for name in both} for kind, area in areas.items()},
        "differences": {group: {control: {name: interval((areas["gradcam"][name] - areas[control][name])[torch.tensor(flags)]) for name in both}
                                for control in ("random", "centre")} for group, flags in members.items()},
    }  # fmt: skip


def _band(curves: Tensor) -> dict[str, list]:
    """Mean, low and high at every point of (N, S + 1) curves."""
    points = [interval(column) for column in curves.T]
    return {key: [point[key] for point in points] for key in ("mean", "low", "high")}


def halves(heat: Callable[[Tensor, Tensor], Tensor], model: nn.Module, prepare: Preprocess, images: Tensor, true: int,
           predicted: int) -> dict[str, Any]:
    """Whether one class is taken for another because of the lower half of the image, over all such errors, (N, 3, H, W) uint8.

    `heat_below` is the share of a map's heat in the lower half, for the predicted and the true class, over errors where both maps have
    any; `drop` is how far the predicted class's probability falls when the lower or the upper half is blanked (set to input 0).
    """
    below, drop = {"predicted": [], "true": []}, {"lower": [], "upper": []}
    for some in images.split(CHUNK) if len(images) else ():
        targets = torch.full((len(some),), true, device=some.device)
        maps = {"true": heat(some, targets), "predicted": heat(some, torch.full_like(targets, predicted))}
        lit = (maps["true"].amax((1, 2)) > 0) & (maps["predicted"].amax((1, 2)) > 0)
        for key, found in maps.items():
            below[key].append((found[:, found.shape[1] // 2 :].sum((1, 2)) / found.sum((1, 2)))[lit])
        inputs = prepare.clean(some)
        rows = torch.arange(inputs.shape[2], device=some.device)[:, None] >= inputs.shape[2] // 2
        with torch.no_grad():
            probs = [model(changed).softmax(1)[:, predicted].cpu() for changed in (inputs, inputs.masked_fill(rows, 0), inputs.masked_fill(~rows, 0))]
        drop["lower"].append(probs[0] - probs[1])
        drop["upper"].append(probs[0] - probs[2])
    return {"images": len(images), "heat_below": _paired(below), "drop": _paired(drop)}


def _paired(parts: Mapping[str, list[Tensor]]) -> dict[str, Any]:
    """Intervals of two paired series and of the first minus the second."""
    series = {key: torch.cat(some) if some else torch.zeros(0) for key, some in parts.items()}
    first, second = series.values()
    return {**{key: interval(values) for key, values in series.items()}, "difference": interval(first - second)}


class Curves(NamedTuple):
    """Target probabilities (N, S + 1) by `fraction` (S + 1,) of pixels changed; their areas (N,): low deletion, high insertion is good."""

    fraction: Tensor
    deletion: Tensor
    insertion: Tensor
    deletion_area: Tensor
    insertion_area: Tensor


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
    with eval_fp32(model, images.device), torch.no_grad():

        def target_prob(changed: Tensor) -> Tensor:
            """(N,) probability of the targets."""
            logits = model(changed)
            check_targets(targets, logits)
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
