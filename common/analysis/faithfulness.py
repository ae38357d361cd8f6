"""Whether a network truly looks where its heat maps point: deletion and insertion curves."""

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torchvision.transforms.functional import gaussian_blur
from tqdm import tqdm

from common.analysis.gradcam import grad_cam
from common.analysis.inputs import Subject
from common.analysis.scores import interval
from common.files import Json
from common.models.build import in_eval_mode

STEPS = 10  # portions in which the curves change an image


def heat_maps(subject: Subject, images: Tensor, targets: Tensor) -> Tensor:
    """Grad-CAM (N, H, W) on the CPU, at the input's size, for uint8 images and (N,) classes."""
    parts = _portions(subject, images, targets)
    return torch.cat([grad_cam(subject.model, subject.layer, *part).cpu() for part in parts])


def _portions(subject: Subject, images: Tensor,
              targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Network inputs and classes, so many at a time that memory is bounded: 100 up to 141 px."""
    size = max(1, min(100, 2_000_000 // subject.input_size**2))
    for some, classes in zip(images.split(size), targets.split(size)):
        yield subject.prepare.clean(some), classes


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
    parts = []
    with tqdm(total=len(images), desc="deletion and insertion", unit="img", disable=None) as bar:
        for inputs, classes in _portions(subject, images, targets):
            n, _, *size = inputs.shape
            maps = (
                grad_cam(subject.model, subject.layer, inputs, classes),
                random_maps(n, *size, generator, subject.map),
                center_prior(n, *size),
            )
            found = [deletion_insertion(subject.model, inputs, classes, heat) for heat in maps]
            parts.append(torch.stack(found).cpu())
            bar.update(n)

    curves = torch.cat(parts, 2)  # (3, 2, N, S + 1)
    gains = area(curves[:1] - curves[1:])  # (2, 2, N): a control, a way
    differences = {}
    for group, chosen in {"all": slice(None), **groups}.items():
        by_control = [_by_way(interval, gain[:, chosen]) for gain in gains]
        differences[group] = dict(zip(("random", "centre"), by_control))
    bands = [_by_way(_band, found) for found in curves]
    return {
        "images": len(images),
        "steps": STEPS,
        "curves": dict(zip(("gradcam", "random", "centre"), bands)),
        "differences": differences,
    }


def _by_way(summary: Callable[[Tensor], Json], values: Tensor) -> Json:
    """A summary of the deletion half and one of the insertion half of (2, …) values."""
    return dict(zip(("deletion", "insertion"), map(summary, values)))


def _band(curves: Tensor) -> Json:
    """Mean, low and high at every point of (N, S + 1) curves."""
    points = [interval(column) for column in curves.T]
    return {key: [point[key] for point in points] for key in ("mean", "low", "high")}


def heat_below(maps: Tensor) -> Json:
    """Interval of the share of heat in the lower half of (N, H, W) maps, over those with any."""
    _, lower = maps.chunk(2, 1)
    shares = lower.sum((1, 2)) / maps.sum((1, 2))  # nan for a map without heat
    return interval(shares[shares.isfinite()])


def area(curves: Tensor) -> Tensor:
    """Areas under (…, S + 1) curves: low for deletion, high for insertion is good."""
    return torch.trapezoid(curves, dx=1 / (curves.shape[-1] - 1))


def deletion_insertion(model: Module, images: Tensor, targets: Tensor, maps: Tensor,
                       steps: int = STEPS) -> Tensor:
    """Deletion and insertion curves of `maps` (RISE, Petsiuk et al. 2018, arXiv:1806.07421).

    Deletion sets pixels to 0, the data set's mean colour once normalised, the highest of the map
    first; insertion puts them in the same order onto the blurred image (sigma an eighth of the
    side, since CIFAR's objects fill the frame). Equal pixels go in the order of a `random_maps` of
    their own, so that a flat map is a random one and not a sweep from the top. Costs 2·(steps + 1)
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
    # So small an addition orders nothing but equal pixels; the sort is stable, so that values
    # equal even then go the same way on every machine.
    ties = random_maps(n, height, width, torch.Generator().manual_seed(0))
    heat = (maps.double().cpu() + 1e-9 * ties).flatten(1)
    order = heat.argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(1).view(n, 1, height, width).to(images.device)  # 0 goes first

    radius = min(height, width) // 4
    blurred = gaussian_blur(images, [2 * radius + 1, 1], radius / 2)
    blurred = gaussian_blur(blurred, [1, 2 * radius + 1], radius / 2)
    found = []
    with in_eval_mode(model), torch.no_grad():
        for step in range(steps + 1):
            gone = rank < round(step * height * width / steps)
            for changed in (images.masked_fill(gone, 0), images.where(gone, blurred)):
                probs = model(changed).softmax(1)
                found.append(probs.gather(1, targets[:, None]))
    return torch.cat(found, 1).view(n, steps + 1, 2).permute(2, 0, 1)


def random_maps(n: int, h: int, w: int, generator: torch.Generator,
                grid: tuple[int, int] = (4, 4)) -> Tensor:
    """(n, h, w) random maps in [0, 1], the control that a heat map must beat.

    Drawn on a `grid` of the compared layer's map size and enlarged like it: pixel noise removes a
    fine sprinkle, which confuses a network for another reason and so has a smaller deletion area
    than true maps.
    """
    drawn = torch.rand(n, 1, *grid, generator=generator)
    return F.interpolate(drawn, (h, w), mode="bilinear", align_corners=False)[:, 0]


def center_prior(n: int, h: int, w: int) -> Tensor:
    """(n, h, w) maps in [0, 1] that fall linearly with the distance from the centre."""
    unmoved = torch.eye(2, 3).expand(n, 2, 3)
    places = F.affine_grid(unmoved, [n, 1, h, w], align_corners=False)  # centres in [-1, 1]
    return 1 - places.norm(dim=-1) / 2**0.5
