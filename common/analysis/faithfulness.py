"""Whether a network truly looks where its heat maps point: deletion and insertion curves."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur
from tqdm import tqdm

from common.analysis.gradcam import eval_fp32, grad_cam
from common.analysis.inputs import Subject
from common.analysis.scores import interval
from common.files import Json
from common.training.fit import predict
from common.words import duration

STEPS = 10  # portions in which the curves change an image
LONG_S = 60  # an analysis that takes longer is announced


def heat_maps(subject: Subject, images: Tensor, targets: Tensor) -> Tensor:
    """Grad-CAM (N, H, W) on the CPU, at the input's size, for uint8 images and (N,) classes."""
    parts = _portions(subject, images, targets)
    maps = [grad_cam(subject.model, subject.layer, *part).cpu() for part in parts]
    return torch.cat(maps) if maps else torch.zeros(0, 1, 1)


def _portions(subject: Subject, images: Tensor,
              targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Network inputs and classes, so many at a time that memory is bounded: 100 up to 141 px."""
    size = max(1, min(100, 2_000_000 // subject.input_size**2))
    for start in range(0, len(images), size):
        some = slice(start, start + size)
        yield subject.prepare.clean(images[some]), targets[some]


def say_cost(subject: Subject, images: Tensor, tested: int) -> None:
    """Say how long the analysis will take where that is long, after eight images."""
    some = images[:8]
    start = time.perf_counter()
    predict(subject.model, some, subject.prepare).cpu()  # waits for a GPU
    passes = len(images) + 3 * 2 * (STEPS + 1) * tested
    seconds = (time.perf_counter() - start) / len(some) * passes
    if seconds > LONG_S:
        print(f"takes about {duration(seconds)}; less with --limit or --faithfulness", flush=True)


def faithfulness(subject: Subject, images: Tensor, targets: Tensor, generator: torch.Generator,
                 groups: Mapping[str, Tensor]) -> Json:
    """Deletion and insertion curves of Grad-CAM, of random maps and of the centre prior.

    Args:
        images: (N, 3, H, W) uint8; targets (N,) are the classes whose probability is followed.
        groups: name -> (N,) bool, images whose differences are given apart from those of all.

    Returns:
        `curves` by kind of map, and `differences` Grad-CAM minus control, paired by
        image, by group; all with 95 % intervals.
    """
    model, grid = subject.model, subject.map[1:]
    parts: dict[str, list[Tensor]] = {"gradcam": [], "random": [], "centre": []}
    bar = tqdm(total=len(images), desc="deletion and insertion", unit="img", disable=None)
    for inputs, classes in _portions(subject, images, targets):
        n, _, height, width = inputs.shape
        maps = {
            "gradcam": grad_cam(model, subject.layer, inputs, classes),
            "random": random_maps(n, height, width, generator, grid),
            "centre": center_prior(n, height, width),
        }
        for kind, heat in maps.items():
            parts[kind].append(deletion_insertion(model, inputs, classes, heat).cpu())
        bar.update(n)
    bar.close()

    curves = {kind: torch.cat(found, 1) for kind, found in parts.items()}  # (2, N, S + 1)
    areas = {kind: area(found) for kind, found in curves.items()}  # (2, N)
    gains = {kind: areas["gradcam"] - areas[kind] for kind in ("random", "centre")}
    every = torch.ones(len(images), dtype=torch.bool)
    differences: Json = {}
    for group, chosen in {"all": every, **groups}.items():
        differences[group] = {
            kind: _by_way(interval, gain[:, chosen]) for kind, gain in gains.items()}
    return {
        "images": len(images),
        "steps": STEPS,
        "fraction": [step / STEPS for step in range(STEPS + 1)],
        "curves": {kind: _by_way(_band, found) for kind, found in curves.items()},
        "differences": differences,
    }


def _by_way(summary: Callable[[Tensor], Any], values: Tensor) -> Json:
    """A summary of the deletion half and one of the insertion half of (2, …) values."""
    return {"deletion": summary(values[0]), "insertion": summary(values[1])}


def _band(curves: Tensor) -> dict[str, list]:
    """Mean, low and high at every point of (N, S + 1) curves."""
    points = [interval(column) for column in curves.T]
    return {key: [point[key] for point in points] for key in ("mean", "low", "high")}


def heat_below(maps: Tensor) -> Json:
    """Interval of the share of heat in the lower half of (N, H, W) maps, over those with any."""
    lit = maps[maps.amax((1, 2)) > 0]
    lower = lit[:, lit.shape[1] // 2 :]
    return interval(lower.sum((1, 2)) / lit.sum((1, 2)))


def area(curves: Tensor) -> Tensor:
    """Areas under (…, S + 1) curves: low for deletion, high for insertion is good."""
    return torch.trapezoid(curves, dx=1 / (curves.shape[-1] - 1))


def deletion_insertion(model: nn.Module, images: Tensor, targets: Tensor, maps: Tensor,
                       steps: int = STEPS) -> Tensor:
    """Deletion and insertion curves of `maps` (RISE, Petsiuk et al. 2018, arXiv:1806.07421).

    Deletion sets pixels to 0, the data set's mean colour once normalised, the highest of the map
    first; insertion puts them in the same order onto the blurred image (sigma an eighth of the
    side, since CIFAR's objects fill the frame). Equal pixels go in the order of a `random_maps` of
    their own, so that a flat map is a random one and not a sweep from the top. Costs 2·steps + 1
    passes of the batch; memory grows with N: batch outside.

    Args:
        model: classifier; comes back exactly as it came.
        images: (N, 3, H, W) float32, normalised, at the size the model sees.
        targets: (N,) int64 class indices.
        maps: (N, H, W), higher is more important; only the order of the pixels counts.
        steps: equal portions in which the pixels go.

    Returns:
        (2, N, steps + 1) probabilities of the targets, deletion and insertion, after 0, 1, …
        portions.
    """
    n, _, height, width = images.shape
    pixels = height * width
    # So small an addition orders nothing but equal pixels; the sort is stable, so that values
    # equal even then go the same way on every machine.
    ties = random_maps(n, height, width, torch.Generator().manual_seed(0))
    heat = (maps.double().cpu() + 1e-9 * ties).flatten(1)
    order = heat.argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(1).view(n, 1, height, width).to(images.device)  # 0 goes first

    radius = max(1, min(height, width) // 4)
    blurred = gaussian_blur(images, [2 * radius + 1, 1], radius / 2)
    blurred = gaussian_blur(blurred, [1, 2 * radius + 1], radius / 2)
    deletion, insertion = [], []
    with eval_fp32(model, images.device):
        for step in range(steps + 1):
            gone = rank < round(step * pixels / steps)
            deletion.append(target_probs(model, images.masked_fill(gone, 0), targets))
            mixed = torch.where(gone, images, blurred)
            insertion.append(target_probs(model, mixed, targets))
    return torch.stack([torch.stack(deletion, 1), torch.stack(insertion, 1)])


@torch.no_grad()
def target_probs(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """(N,) probability of the targets."""
    probs = model(inputs).softmax(1)
    return probs.gather(1, targets[:, None])[:, 0]


def random_maps(n: int, h: int, w: int, generator: torch.Generator,
                grid: tuple[int, int] = (4, 4)) -> Tensor:
    """(n, h, w) random maps in [0, 1], the control that a heat map must beat.

    Drawn on a `grid` of the compared layer's map size and enlarged like it: pixel noise removes a
    fine sprinkle, which confuses a network for another reason and so has a smaller deletion area
    than true maps.
    """
    drawn = torch.rand(n, 1, *grid, generator=generator, device=generator.device)
    return F.interpolate(drawn, (h, w), mode="bilinear", align_corners=False)[:, 0]


def center_prior(n: int, h: int, w: int) -> Tensor:
    """(n, h, w) maps in [0, 1] that fall linearly with the distance from the centre."""
    y = torch.linspace(1 / h - 1, 1 - 1 / h, h)  # pixel centres in [-1, 1]
    x = torch.linspace(1 / w - 1, 1 - 1 / w, w)
    distance = torch.hypot(y[:, None], x[None]) / 2**0.5
    return (1 - distance).expand(n, h, w)
