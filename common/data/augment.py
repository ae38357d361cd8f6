"""Batched augmentation on the device: a whole batch at once, every image with parameters of its own.

All operations are pure functions of images and parameters; `augment` draws every parameter from one `torch.rand` call,
so a captured CUDA graph holds one generator kernel for all of them.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from common.config import Recipe

DRAWS = 12  # uniform numbers an image: 2 crop, 1 flip, 1 rotation, 3 jitter, 5 erasing
GREY = (0.2989, 0.587, 0.114)  # ITU-R 601 luma, as in torchvision


@dataclass(frozen=True)
class Augmentation:
    """What the train split goes through: pixels, degrees, relative strength and probability; all 0 is none."""

    crop_padding: int = 0
    flip: bool = False
    rotation: float = 0.0
    jitter: float = 0.0
    random_erasing: float = 0.0

    @classmethod
    def of(cls, recipe: Recipe) -> "Augmentation":
        """The recipe's augmentation."""
        return cls(recipe.crop_padding, recipe.flip, recipe.rotation, recipe.jitter, recipe.random_erasing)


def to_input(images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, resize: int = 1) -> torch.Tensor:
    """Network input of val and test: resized (bilinear) and normalised, nothing else.

    Args:
        images: (N, 3, H, W) uint8.
        mean, std: (3,) float32, in [0, 1].

    Returns:
        (N, 3, resize·H, resize·W) float32, channels_last.
    """
    x = normalize(images.float().div_(255), mean, std)
    if resize > 1:
        x = F.interpolate(x, scale_factor=resize, mode="bilinear", align_corners=False)
    return x.contiguous(memory_format=torch.channels_last)


def normalize(images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """(images - mean) / std per channel, in one pass; images (N, 3, H, W) float32 in [0, 1]."""
    return torch.addcmul((-mean / std).view(3, 1, 1), images, (1 / std).view(3, 1, 1))


def crop_flip(images: torch.Tensor, dy: torch.Tensor, dx: torch.Tensor, flip: torch.Tensor, padding: int) -> torch.Tensor:
    """Crop at (dy, dx) after zero-padding, then mirror where `flip`; exact, in the images' own dtype.

    Args:
        images: (N, C, H, W), any dtype.
        dy, dx: (N,) int64 in [0, 2·padding]; `padding` itself is the centre.
        flip: (N,) bool.

    Returns:
        (N, C, H, W), as torchvision's `RandomCrop` then `hflip` give it image by image.
    """
    n, channels, height, width = images.shape
    padded = F.pad(images, [padding] * 4)
    columns = torch.arange(width, device=images.device)
    columns = torch.where(flip[:, None], width - 1 - columns, columns) + dx[:, None]
    rows = torch.arange(height, device=images.device) + dy[:, None]
    source = (rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]).view(n, 1, -1)
    return padded.flatten(2).gather(2, source.expand(n, channels, -1)).view(images.shape)


def warp(images: torch.Tensor, dy: torch.Tensor, dx: torch.Tensor, flip: torch.Tensor, degrees: torch.Tensor, size: int) -> torch.Tensor:
    """Crop, mirror, rotate and resize in one bilinear sampling; black outside of the image.

    Equals padding, cropping at (dy, dx) pixels from the centre, mirroring, rotating counter-clockwise about the centre and
    resizing, but samples once; so a rotation can bring in pixels that a crop would have cut off. With no offset, flip or
    rotation it equals `F.interpolate(mode="bilinear")` to rounding.

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
    x = (2 * torch.arange(size, device=images.device, dtype=images.dtype) + 1) / size - 1  # pixel centres in [-1, 1]
    y = x[:, None]
    # Written out, since F.affine_grid is a matrix product and TF32 would shift pixels.
    columns = mirror * (cos * x - sin * y) + (2 / side) * dx.view(-1, 1, 1)
    rows = sin * x + cos * y + (2 / side) * dy.view(-1, 1, 1)
    grid = torch.stack([columns, rows], -1)
    inside = (grid.abs() <= 1).all(-1).unsqueeze(1)
    # Border padding and a hard mask: the edge stays as bright as F.interpolate leaves it, so train and val agree there.
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False) * inside


def luma(images: torch.Tensor) -> torch.Tensor:
    """(N, 1, H, W) luminance of (N, 3, H, W) images."""
    red, green, blue = images.split(1, dim=1)
    return GREY[0] * red + GREY[1] * green + GREY[2] * blue  # plain numbers: a tensor made here would be a copy to the device


def color_jitter(images: torch.Tensor, brightness: torch.Tensor, contrast: torch.Tensor, saturation: torch.Tensor) -> torch.Tensor:
    """Brightness, then contrast, then saturation, each clamped to [0, 1] as torchvision does.

    Args:
        images: (N, 3, H, W) float32 in [0, 1].
        brightness, contrast, saturation: (N,) factors; 1 leaves the image as it is.
    """
    x = (images * brightness.view(-1, 1, 1, 1)).clamp_(0, 1)
    x = torch.lerp(luma(x).mean((1, 2, 3), keepdim=True), x, contrast.view(-1, 1, 1, 1)).clamp_(0, 1)
    return torch.lerp(luma(x), x, saturation.view(-1, 1, 1, 1)).clamp_(0, 1)


def erase(images: torch.Tensor, top: torch.Tensor, left: torch.Tensor, height: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
    """Set a rectangle of each image to 0, the mean colour of a normalised image; height 0 erases nothing.

    Args:
        images: (N, C, H, W); top, left, height, width: (N,) int64 in pixels.
    """
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    in_rows = (rows >= top[:, None]) & (rows < (top + height)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + width)[:, None])
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :]).unsqueeze(1), 0)


def erase_box(u: torch.Tensor, probability: float, size: int) -> tuple[torch.Tensor, ...]:
    """(top, left, height, width), (N,) int64 each, from uniforms u (5, N); height 0 where the image is spared.

    Area 2-33 % and aspect ratio 0.3-3.3, log-uniform (Zhong et al. 2017, arXiv:1708.04896); a side longer than the image
    is cut to `size` - 1 where torchvision would draw again.
    """
    area = (0.02 + 0.31 * u[1]) * size * size
    ratio = torch.exp(math.log(0.3) + (math.log(3.3) - math.log(0.3)) * u[2])
    height = (area * ratio).sqrt().round().clamp(1, size - 1)
    width = (area / ratio).sqrt().round().clamp(1, size - 1)
    top = (u[3] * (size - height + 1)).floor()
    left = (u[4] * (size - width + 1)).floor()
    height = height * (u[0] < probability)
    return top.long(), left.long(), height.long(), width.long()


def augment(images: torch.Tensor, spec: Augmentation, mean: torch.Tensor, std: torch.Tensor, resize: int = 1,
            generator: torch.Generator | None = None) -> torch.Tensor:
    """Network input of a training batch: each image jittered, cropped, mirrored, rotated, resized, normalised, erased.

    Args:
        images: (N, 3, S, S) uint8.
        mean, std: (3,) float32, in [0, 1].
        generator: of the images' device.

    Returns:
        (N, 3, resize·S, resize·S) float32, channels_last.
    """
    if spec == Augmentation():
        return to_input(images, mean, std, resize)
    n, size = len(images), images.shape[-1] * resize
    u = torch.rand(DRAWS, n, generator=generator, device=images.device)
    shifts = (u[:2] * (2 * spec.crop_padding + 1)).long()
    flip = u[2] < (0.5 if spec.flip else 0.0)
    x = images.float().div_(255)  # NCHW up to the last line: per-channel passes are three times as fast on a CPU
    if spec.jitter:
        x = color_jitter(x, *(1 + spec.jitter * (2 * u[4:7] - 1)))
    if spec.rotation:
        dy, dx = (shifts - spec.crop_padding).float()
        x = warp(x, dy, dx, flip, spec.rotation * (2 * u[3] - 1), size)
    else:
        if spec.crop_padding or spec.flip:
            x = crop_flip(x, shifts[0], shifts[1], flip, spec.crop_padding)
        if resize > 1:
            x = F.interpolate(x, scale_factor=resize, mode="bilinear", align_corners=False)
    x = normalize(x, mean, std)
    if spec.random_erasing:
        x = erase(x, *erase_box(u[7:12], spec.random_erasing, size))
    return x.contiguous(memory_format=torch.channels_last)


class Preprocess:
    """How uint8 images become network input; `train` augments, `clean` only normalises and resizes."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], resize: int, spec: Augmentation, device: torch.device) -> None:
        self.mean, self.std = torch.tensor(mean, device=device), torch.tensor(std, device=device)
        self.resize, self.spec = resize, spec

    def train(self, images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """(N, 3, H, W) uint8 → augmented, normalised float32 at the network's size."""
        return augment(images, self.spec, self.mean, self.std, self.resize, generator)

    def clean(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) uint8 → normalised float32 at the network's size."""
        return to_input(images, self.mean, self.std, self.resize)
