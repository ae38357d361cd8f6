"""Whether a network truly looks where its heat maps point: deletion and insertion curves."""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torchvision.transforms.functional import gaussian_blur
from tqdm import tqdm

from common.analysis.inputs import CAMS, Subject
from common.analysis.scores import t_interval
from common.files import Json
from common.models.build import in_eval_mode

WAYS = ("deletion", "insertion")
# Parts of an image's pixels that are changed: closer where the curves bend, so that the areas are
# nearly those of ten equal steps at a third of the cost.
SHARES = (0.0, 0.1, 0.3, 0.6, 1.0)


def faithfulness(subject: Subject, images: Tensor, targets: Tensor,
                 cams: Sequence[str] = tuple(CAMS)) -> Json:
    """Deletion and insertion curves of heat maps and controls, and how far the shown ones differ.

    The controls are `chance`, the heat map of another image, and `centre`, the prior that objects
    lie in the middle. A fine sprinkle of deleted pixels confuses a network whatever it lies on, so
    that a control must be as fine as what it controls; and another image's map is as much in the
    middle, too.

    Args:
        images: (N, 3, H, W) uint8; targets (N,) are the classes whose probability is followed.
        cams: keys of CAMS, the shown one among them.

    Returns:
        `curves` by kind of map, and `differences` in area of `all` these images, the shown heat
        maps minus each other kind, paired by image; all with 95 % intervals.
    """
    parts = []
    for some, classes in tqdm(subject.portions(images, targets), "deletion and insertion",
                              disable=None):
        inputs = subject.prepare.clean(some)
        maps = {cam: subject.cams[cam](inputs, classes) for cam in cams}
        maps["chance"] = maps[subject.cam].roll(1, 0)
        maps["centre"] = center_prior(*maps["chance"].shape).to(inputs.device)
        stacked = torch.stack([*maps.values()])
        parts.append(deletion_insertion(subject.model, inputs, classes, stacked).cpu())

    curves = dict(zip(maps, torch.cat(parts, 2)))  # (2, N, S) each
    areas = {kind: area(curve) for kind, curve in curves.items()}
    shown = areas.pop(subject.cam)
    return {
        "images": len(images),
        "shares": SHARES,
        "curves": {kind: {way: [t_interval(column) for column in half.T]
                          for way, half in zip(WAYS, curve)} for kind, curve in curves.items()},
        "differences": {"all": {kind: dict(zip(WAYS, map(t_interval, shown - other)))
                                for kind, other in areas.items()}},
    }


def heat_below(maps: Tensor) -> Json:
    """Interval of the share of heat in the lower half of (N, H, W) maps, over those with any."""
    lower = maps[:, (maps.shape[1] + 1) // 2:]
    shares = lower.sum((1, 2)) / maps.sum((1, 2))  # nan without heat
    return t_interval(shares[shares.isfinite()])


def area(curves: Tensor) -> Tensor:
    """Areas under (…, S) curves: low for deletion, high for insertion is good."""
    return torch.trapezoid(curves, torch.tensor(SHARES, dtype=curves.dtype))


def deletion_insertion(model: Module, images: Tensor, targets: Tensor, maps: Tensor) -> Tensor:
    """Deletion and insertion curves of `maps` (RISE, Petsiuk et al. 2018, arXiv:1806.07421).

    Deletion sets pixels to 0, the data set's mean colour once normalised, the highest of the map
    first; insertion puts them in the same order onto the blurred image (sigma an eighth of the
    side, since CIFAR's objects fill the frame). Equal pixels go in the order of a smooth random map
    of their own, so that a flat map is a random one and not a sweep from the top. Costs 2 passes of
    the batch, and 2·(S - 2) for each of the M kinds of map; memory grows with N: batch outside.

    Args:
        model: classifier; comes back exactly as it came.
        images: (N, 3, H, W) float32, normalised, at the size the model sees.
        targets: (N,) int64 class indices.
        maps: (M, N, H, W), higher is more important; only the order of the pixels counts.

    Returns:
        (M, 2, N, S) probabilities of the targets, deletion and insertion, at each of SHARES.
    """
    n, _, height, width = images.shape
    cells = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    ties = F.interpolate(cells, (height, width), mode="bilinear")[:, 0]
    # So small an addition orders nothing but equal pixels; the sort is stable, so that values
    # equal even then go the same way on every machine.
    heat = (maps.double().cpu() + 1e-9 * ties).flatten(2)
    ranks = heat.argsort(descending=True, stable=True).argsort()  # 0 goes first
    ranks = ranks.view(-1, n, 1, height, width).to(images.device)

    radius = min(height, width) // 4
    blurred = gaussian_blur(images, [2 * radius + 1, 1], radius / 2)
    blurred = gaussian_blur(blurred, [1, 2 * radius + 1], radius / 2)
    blurred = blurred.contiguous(memory_format=torch.channels_last)

    def probs(changed: Tensor) -> Tensor:
        """(N,) probabilities of the targets."""
        return model(changed).softmax(1).expand(n, -1).gather(1, targets[:, None])[:, 0]

    with in_eval_mode(model), torch.no_grad():
        # Where the curves begin and end, all maps are alike; and nothing is left of any image.
        whole, blur, nothing = probs(images), probs(blurred), probs(torch.zeros_like(images[:1]))
        found = []
        for rank in ranks:
            masks = [rank < round(share * height * width) for share in SHARES[1:-1]]
            found += [whole, *(probs(images.masked_fill(gone, 0)) for gone in masks), nothing,
                      blur, *(probs(images.where(gone, blurred)) for gone in masks), whole]
    return torch.stack(found).view(len(maps), 2, len(SHARES), n).transpose(2, 3)


def center_prior(n: int, h: int, w: int) -> Tensor:
    """(n, h, w) maps in [0, 1] that fall linearly with the distance from the centre."""
    rows, columns = torch.linspace(-1, 1, h), torch.linspace(-1, 1, w)
    return (1 - rows[:, None].hypot(columns) / 2**0.5).expand(n, h, w)
