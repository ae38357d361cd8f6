"""Train, val and test, held whole as uint8 on one device."""
import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch

from common.errors import InputError

SPLIT_SEED = 20091  # of the split alone, so that every run and every seed holds out the same images


@dataclass(frozen=True)
class Split:
    """Images (N, 3, H, W) uint8, labels (N,) int64, each image's index (N,) in its source, all on one device; its file's name.

    `names` are relative to the data folder; for the official batches and the drawn set, the index.
    """

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Split":
        """The same split on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device), index=self.index.to(device))

    def take(self, chosen: np.ndarray) -> "Split":
        """The images at positions `chosen` (n,)."""
        at = torch.from_numpy(chosen)
        return Split(self.images[at], self.labels[at], self.index[at], tuple(self.names[i] for i in chosen) if self.names else ())


@dataclass(frozen=True)
class Splits:
    """Train, val and test, with the per-channel mean and standard deviation of train in [0, 1] and a hash of the split."""

    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    split_hash: str
    identity: str = ""  # hash of pixels, labels and class names of every split
    notes: tuple[str, ...] = ()  # lines that a script says before it trains

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return self.train.images.shape[-1]

    def to(self, device: torch.device | str) -> "Splits":
        """The same splits on `device`."""
        return replace(self, train=self.train.to(device), val=self.val.to(device), test=self.test.to(device))


def make_splits(train_images: np.ndarray, train_labels: np.ndarray, test_images: np.ndarray, test_labels: np.ndarray,
                classes: tuple[str, ...], source: str, val_size: int | None = None, train_limit: int | None = None) -> Splits:
    """Hold a stratified val split out of train; the same images on every platform and for every seed.

    Args:
        train_images, test_images: (N, 3, H, W) uint8; labels (N,) int64.
        val_size: images in val; None: a tenth of train, but at least one a class.
        train_limit: keep only so many training images, the same number of each class (up to one).

    Raises:
        InputError: a size that this data cannot give, naming the flag, or a class of a single image.
    """
    sizes = np.bincount(train_labels, minlength=len(classes)).tolist()
    if min(sizes) < 2:
        raise InputError(f"{classes[sizes.index(min(sizes))]} has {min(sizes)} training image: two are needed, one for train and one for val")
    val_size = max(len(train_labels) // 10, len(classes)) if val_size is None else val_size
    if not len(classes) <= val_size <= len(train_labels) - len(classes):
        raise InputError(f"--val-size {val_size} must lie between {len(classes)} (one a class) and {len(train_labels) - len(classes)}")
    rng = np.random.RandomState(SPLIT_SEED)  # its stream is frozen by numpy's compatibility policy
    by_class = [rng.permutation(np.flatnonzero(train_labels == k)) for k in range(len(classes))]
    held = _quota(sizes, val_size)
    val = np.sort(np.concatenate([members[:n] for members, n in zip(by_class, held)]))
    rest = [members[n:] for members, n in zip(by_class, held)]
    if train_limit is not None:
        if not len(classes) <= train_limit <= sum(map(len, rest)):
            raise InputError(f"--train-limit {train_limit} must lie between {len(classes)} (one a class) and {sum(map(len, rest))}")
        kept = [train_limit // len(classes) + (k < train_limit % len(classes)) for k in range(len(classes))]
        if short := [k for k, (members, n) in enumerate(zip(rest, kept)) if len(members) < n]:
            raise InputError(f"--train-limit {train_limit} asks for {kept[short[0]]} images of {classes[short[0]]}, which has {len(rest[short[0]])}")
        rest = [members[:n] for members, n in zip(rest, kept)]
    train = np.sort(np.concatenate(rest))
    digest = hashlib.sha256(f"{len(train_labels)} {','.join(classes)}".encode())
    for array in (train, val, train_labels):
        digest.update(array.astype("<i8").tobytes())
    everything = Split(torch.from_numpy(train_images), torch.from_numpy(train_labels), torch.arange(len(train_labels)))
    test = Split(torch.from_numpy(test_images), torch.from_numpy(test_labels), torch.arange(len(test_labels)))
    chosen = everything.take(train)
    mean, std = channel_statistics(chosen.images)
    return Splits(chosen, everything.take(val), test, classes, mean, std, source, digest.hexdigest()[:16])


def _quota(sizes: list[int], total: int) -> list[int]:
    """Split `total` over classes in proportion to `sizes`, by largest remainder; each gives at least one and keeps at least one."""
    exact = [size * total / sum(sizes) for size in sizes]
    quota = [max(1, int(share)) for share in exact]
    while missing := total - sum(quota):
        step = 1 if missing > 0 else -1
        free = [k for k, size in enumerate(sizes) if 1 <= quota[k] + step < size]
        quota[max(free, key=lambda k: step * (exact[k] - quota[k]))] += step
    return quota


def channel_statistics(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation, in [0, 1], of (N, 3, H, W) uint8 images; exact, from integer histograms."""
    values = np.arange(256) / 255
    shares = [np.bincount(images[:, c].flatten().numpy(), minlength=256) / images[:, c].numel() for c in range(images.shape[1])]
    means = [float((share * values).sum()) for share in shares]
    stds = [float(np.sqrt((share * (values - mean) ** 2).sum())) or 1.0 for share, mean in zip(shares, means)]
    return tuple(round(m, 6) for m in means), tuple(round(s, 6) for s in stds)
