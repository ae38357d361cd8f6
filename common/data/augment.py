"""Batched augmentation on the device: a whole batch at once, every image in its own way.

Data-loader workers augment one image after the other on the CPU. Here an operation is a pure
function of a batch and of (N,) parameters, one for each image, so that a batch costs a few large
kernels. The parameters of all operations come from one `torch.rand` call, those of CutMix from a
second one, which leaves the first one's numbers as they are without it.
"""
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from common.config import Recipe

DRAWS = (2, 1, 1, 3, 5)  # uniform numbers an image: crop, flip, rotation, jitter, erasing
GREY = (0.2989, 0.587, 0.114)  # ITU-R 601 luma, as in torchvision
# Mean and standard deviation of each channel by which the input is scaled; else the data's own.
SCALINGS = {"imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "half": ((0.5,) * 3,) * 2}
# What a recipe may do to the train split, in words; 0 is none of it.
WORDS = {"crop_padding": "crop ±{} px", "flip": "flip", "rotation": "rotation ±{:g}°",
         "jitter": "colour jitter {:g}", "random_erasing": "random erasing {:g}",
         "cutmix": "CutMix {:g}"}


def augmentation(recipe: Recipe) -> str:
    """What the recipe does to the train split, in words; empty for nothing."""
    values = ((words, getattr(recipe, name)) for name, words in WORDS.items())
    return ", ".join(words.format(value) for words, value in values if value)


class Preprocess:
    """How uint8 images become network input: `augment` for training, `clean` for all else.

    Args and fields:
        mean, std: of each channel, in [0, 1], or the recipe's own; as fields (3,) on `device`.
        recipe: says how many times images are enlarged, and what `augment` does.

    Fields:
        augments: whether `augment` does more than `clean`.
        shift, scale: (3, 1, 1); normalised is shift + x · scale of x in [0, 1].
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], recipe: Recipe,
                 device: torch.device) -> None:
        mean, std = SCALINGS.get(recipe.normalization, (mean, std))
        self.mean = torch.as_tensor(mean, device=device)
        self.std = torch.as_tensor(std, device=device)
        self.recipe = recipe
        self.augments = bool(augmentation(recipe))
        # (x - mean) / std is shift + x * scale, one fused pass; prepared once, not in every step.
        self.shift = (-self.mean / self.std).view(3, 1, 1)
        self.scale = (1 / self.std).view(3, 1, 1)

    def clean(self, images: Tensor) -> Tensor:
        """Network input of val and test: resized (bilinear) and normalised, nothing else.

        Args:
            images: (N, 3, H, W) uint8.

        Returns:
            (N, 3, resize·H, resize·W) float32, channels_last.
        """
        x = torch.addcmul(self.shift, images.float().div_(255), self.scale)
        return _enlarge(x, self.recipe.resize).contiguous(memory_format=torch.channels_last)

    def augment(self, images: Tensor,
                generator: Generator | None = None) -> tuple[Tensor, Tensor | None]:
        """Network input of a training batch, every image augmented in its own way.

        In order: jitter, crop, mirror, rotation, resize, normalisation, erasing, CutMix.

        Args:
            images: (N, 3, S, S) uint8.
            generator: of the images' device.

        Returns:
            (N, 3, resize·S, resize·S) float32, channels_last; what was pasted, see `cutmix`.
        """
        recipe = self.recipe
        if not self.augments:
            return self.clean(images), None
        # Drawn whether used or not, so that a recipe's crops stay the same when its jitter goes.
        u = torch.rand(sum(DRAWS), len(images), generator=generator, device=images.device)
        for_crop, for_flip, for_rotation, for_jitter, for_erasing = u.split(DRAWS)
        shifts = (for_crop * (2 * recipe.crop_padding + 1)).long()  # (2, N), in [0, 2·padding]
        flip = for_flip[0] < (0.5 if recipe.flip else 0.0)
        size = images.shape[-1] * recipe.resize
        x = images.float().div_(255)  # NCHW up to the last line: three times as fast on a CPU
        if recipe.jitter:
            factors = 1 + recipe.jitter * (2 * for_jitter - 1)  # (3, N), around 1
            x = color_jitter(x, *factors)
        if recipe.rotation:
            dy, dx = (shifts - recipe.crop_padding).float()
            degrees = recipe.rotation * (2 * for_rotation[0] - 1)
            x = warp(x, dy, dx, flip, degrees, size)
        else:
            # Without rotation whole pixels move: gathering them is exact and cheaper than sampling.
            if recipe.crop_padding or recipe.flip:
                x = crop_flip(x, *shifts, flip, recipe.crop_padding)
            x = _enlarge(x, recipe.resize)
        x = torch.addcmul(self.shift, x, self.scale)
        if recipe.random_erasing:
            x = erase(x, *erase_box(for_erasing, recipe.random_erasing, size))
        pasted = None
        if recipe.cutmix:
            x, pasted = cutmix(x, recipe.cutmix, generator)
        return x.contiguous(memory_format=torch.channels_last), pasted


def _enlarge(images: Tensor, resize: int) -> Tensor:
    """(N, C, H, W) → (N, C, resize·H, resize·W), bilinear."""
    if resize == 1:
        return images
    return F.interpolate(images, scale_factor=resize, mode="bilinear", align_corners=False)


def crop_flip(images: Tensor, dy: Tensor, dx: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Crop at (dy, dx) after zero-padding, then mirror where `flip`; exact, in the images' dtype.

    Args:
        images: (N, C, H, W), any dtype.
        dy, dx: (N,) int64 in [0, 2·padding]; `padding` itself is the centre.
        flip: (N,) bool.

    Returns:
        (N, C, H, W), as torchvision's `RandomCrop` then `hflip` give it image by image.
    """
    n, channels, height, width = images.shape
    padded = F.pad(images, [padding] * 4)
    # For every pixel of the result: which column and row of the padded image it is taken from.
    columns = torch.arange(width, device=images.device)
    columns = torch.where(flip[:, None], width - 1 - columns, columns)  # (N, W)
    columns = columns + dx[:, None]
    rows = torch.arange(height, device=images.device) + dy[:, None]  # (N, H)
    # One gather moves all of them: its index counts pixels of the flattened, padded image.
    row_starts = rows * (width + 2 * padding)
    source = row_starts[:, :, None] + columns[:, None, :]  # (N, H, W)
    source = source.view(n, 1, -1).expand(n, channels, -1)
    return padded.flatten(2).gather(2, source).view(images.shape)


def warp(images: Tensor, dy: Tensor, dx: Tensor, flip: Tensor, degrees: Tensor,
         size: int) -> Tensor:
    """Crop, mirror, rotate and resize in one bilinear sampling; black outside of the image.

    The grid answers for every place of the *output* where in the source it is taken from, so each
    operation is undone in reverse order: a picture turned left samples places turned right.
    Equals padding, cropping at (dy, dx) pixels from the centre, mirroring, rotating
    counter-clockwise about the centre and resizing, but samples once; so a rotation can bring in
    pixels that a crop would have cut off. Without all of them it is bilinear `F.interpolate`.

    Args:
        images: (N, C, S, S) float32.
        dy, dx: (N,) float32 offsets of the window in pixels.
        flip: (N,) bool.
        degrees: (N,) float32.
        size: height and width of the result in pixels.
    """
    side = images.shape[-1]
    angle = (degrees * (math.pi / 180)).view(-1, 1, 1)
    cos, sin = torch.cos(angle), torch.sin(angle)
    mirror = (1 - 2 * flip.to(images.dtype)).view(-1, 1, 1)
    # Pixel centres of the result, in the units of grid_sample: the image is [-1, 1] wide.
    x = (2 * torch.arange(size, device=images.device, dtype=images.dtype) + 1) / size - 1
    y = x[:, None]
    # Where each of them lies in the source: turned, mirrored, moved; (N, size, size).
    # Written out, since F.affine_grid is a matrix product and TF32 would shift pixels.
    columns = mirror * (cos * x - sin * y) + (2 / side) * dx.view(-1, 1, 1)
    rows = sin * x + cos * y + (2 / side) * dy.view(-1, 1, 1)
    grid = torch.stack([columns, rows], -1)
    inside = (grid.abs() <= 1).all(-1).unsqueeze(1)
    # Border padding and a hard mask: edges stay as bright as F.interpolate leaves those of val.
    sampled = F.grid_sample(images, grid, mode="bilinear", padding_mode="border",
                            align_corners=False)
    return sampled * inside


def luma(images: Tensor) -> Tensor:
    """(N, 1, H, W) luminance of (N, 3, H, W) images."""
    red, green, blue = images.split(1, dim=1)
    # Plain numbers: a tensor of weights made here would be a copy to the device in every step.
    return GREY[0] * red + GREY[1] * green + GREY[2] * blue


def color_jitter(images: Tensor, brightness: Tensor, contrast: Tensor,
                 saturation: Tensor) -> Tensor:
    """Brightness, then contrast, then saturation, each clamped to [0, 1] as torchvision does.

    Args:
        images: (N, 3, H, W) float32 in [0, 1].
        brightness, contrast, saturation: (N,) factors; 1 leaves the image as it is.
    """
    x = (images * brightness.view(-1, 1, 1, 1)).clamp_(0, 1)
    # A factor mixes the image with that of factor 0, one grey or its greys; above 1 it leads away.
    mean_grey = luma(x).mean((1, 2, 3), keepdim=True)  # (N, 1, 1, 1)
    x = torch.lerp(mean_grey, x, contrast.view(-1, 1, 1, 1)).clamp_(0, 1)
    return torch.lerp(luma(x), x, saturation.view(-1, 1, 1, 1)).clamp_(0, 1)


def erase(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Set a rectangle of each image to 0, the mean colour once normalised; height 0: nothing.

    Args:
        images: (N, C, H, W).
        top, left, height, width: (N,) in pixels.
    """
    return images.masked_fill(_inside(images, top, left, height, width), 0)


def cutmix(images: Tensor, probability: float,
           generator: Generator | None) -> tuple[Tensor, Tensor]:
    """Paste a square of its predecessor in the batch into each image, at the same place.

    Its area is uniform in [0, 1] of the image's (Yun et al. 2019, arXiv:1905.04899, who cut it off
    at the edges; here it lies inside).

    Args:
        images: (N, C, S, S), in an order that is random.

    Returns:
        (images, pasted): pasted (N,) float32 is the part of each that is now its predecessor's.
    """
    size = images.shape[-1]
    u = torch.rand(4, len(images), generator=generator, device=images.device)
    side = (size * u[1].sqrt()).round() * (u[0] < probability)
    top, left = (u[2:] * (size - side + 1)).floor()
    box = _inside(images, top, left, side, side)
    return torch.where(box, images.roll(1, 0), images), (side / size) ** 2


def _inside(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """(N, 1, H, W) bool: the pixels of a rectangle of each image."""
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    # A mask, not a slice: the rectangles differ, and slices would need their sizes on the host.
    in_rows = (rows >= top[:, None]) & (rows < (top + height)[:, None])  # (N, H)
    in_columns = (columns >= left[:, None]) & (columns < (left + width)[:, None])  # (N, W)
    return (in_rows[:, :, None] & in_columns[:, None, :]).unsqueeze(1)


def erase_box(u: Tensor, probability: float, size: int) -> tuple[Tensor, ...]:
    """(top, left, height, width), (N,) int64 each, of the rectangles to erase.

    Area 2-33 % and aspect ratio 0.3-3.3, log-uniform (Zhong et al. 2017, arXiv:1708.04896); a side
    longer than the image is cut to `size` - 1 where torchvision would draw again. Where the image
    is spared, the height is 0: no branch, so that the step stays one fixed list of kernels.

    Args:
        u: (5, N) uniform numbers.
        size: height and width of the image in pixels.
    """
    area = (0.02 + 0.31 * u[1]) * size * size
    low, high = math.log(0.3), math.log(3.3)
    ratio = torch.exp(low + (high - low) * u[2])
    height = (area * ratio).sqrt().round().clamp(1, size - 1)
    width = (area / ratio).sqrt().round().clamp(1, size - 1)
    top = (u[3] * (size - height + 1)).floor()
    left = (u[4] * (size - width + 1)).floor()
    height = height * (u[0] < probability)
    return top.long(), left.long(), height.long(), width.long()
