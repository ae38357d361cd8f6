"""Train, val and test, held whole as uint8 on one device."""
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import cv2
import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from common.errors import InputError
from common.words import count, percent

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Mean and standard deviation of CIFAR-10's 50,000 training images, per channel in [0, 1].
CIFAR10_STATISTICS = (0.4914, 0.4822, 0.4465), (0.2470, 0.2434, 0.2616)
SPLIT_SEED = 20091  # of the split alone, so that every run and every seed holds out the same images
FEW_VAL_IMAGES = 20
Names = tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """Images (N, 3, H, W) uint8 and labels (N,) int64, on one device.

    `index` (N,) int64, on the CPU, is each image's place in its source; `names` are its files,
    relative to the data folder, or the index where there are no files.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    names: Names

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Split":
        """The same images and labels on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def take(self, chosen: ndarray) -> "Split":
        """The images at positions `chosen` (n,), or where `chosen` (N,) is true."""
        names = tuple(np.array(self.names, object)[chosen])
        return Split(self.images[chosen], self.labels[chosen], self.index[chosen], names)


@dataclass(frozen=True)
class Splits:
    """Train, val and test, and what a run has to know of them.

    `mean` and `std` are train's, per channel, in [0, 1]. `split_hash` tells which images are train
    and val; `identity` is a hash of the pixels, labels and class names of all three. `is_cifar10`:
    train and val are CIFAR-10's training images or a part of them, and test is its test set.
    """

    train: Split
    val: Split
    test: Split
    classes: Names
    mean: Sequence[float]
    std: Sequence[float]
    source: str
    split_hash: str
    identity: str
    notes: Names  # sentences that a script says before it trains
    is_cifar10: bool

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return self.train.images.shape[-1]

    def to(self, device: torch.device | str) -> "Splits":
        """The same splits on `device`."""
        return replace(self, train=self.train.to(device), val=self.val.to(device),
                       test=self.test.to(device))


def as_split(images: ndarray, labels: ndarray, names: Names = ()) -> Split:
    """All images (N, 3, H, W) uint8 of one source; without names the index is their name."""
    names = names or tuple(map(str, range(len(labels))))
    return Split(torch.from_numpy(images), torch.from_numpy(labels), torch.arange(len(labels)),
                 names)


def divide(pools: dict[str, Split], classes: Names, source: str,
           val_size: int | None = None, train_limit: int | None = None,
           notes: Names = ()) -> Splits:
    """Train, val and test; those that the source lacks are cut out of its train, stratified.

    The same images are held out on every platform and for every seed.

    Args:
        pools: "train", and "test" and "val" where the source has them.
        val_size: images in val; None: a tenth of the pool, but at least one a class.
        train_limit: keep only so many training images, the same number of each class (up to one).
        notes: what there is to say of the source.

    Raises:
        InputError: a size that this data cannot give, naming the flag, or a class too small to cut.
    """
    kinds = len(classes)
    pool = train = pools["train"]
    test, val = pools.get("test"), pools.get("val")
    sizes = np.bincount(pool.labels, minlength=kinds)
    if sizes.min() < 4 - len(pools):  # train must give one for each part that the source lacks
        raise InputError(f"{classes[sizes.argmin()]} has too few images: train, val and test need "
                         "one each")
    if not test:
        turns = _turns(train, max(len(pool) // 5, kinds))
        test, train = train.take(turns < 0), train.take(turns >= 0)
        notes += (f"split here, class by class, the same in every run: {len(test):,} test images, "
                  "and val where that has no folder",)
    if not val:
        val_size = val_size or max(len(pool) // 10, kinds)
        _check_size("--val-size", val_size, kinds, len(train) - kinds)
    elif val_size:
        raise InputError(f"--val-size {val_size} has no effect: the data has a val folder of its "
                         "own; leave the flag out")
    turns = _turns(train, val_size or 0)
    val = val or train.take(turns < 0)
    kept = turns >= 0
    if train_limit:
        smallest = np.bincount(train.labels[kept]).min()
        _check_size("--train-limit", train_limit, kinds, kinds * smallest)
        each, more = divmod(train_limit, kinds)
        kept &= turns < each + (train.labels < more).numpy()
    train = train.take(kept)
    notes += tuple(_warnings(train, val, test, classes))
    mean, std = channel_statistics(train.images)
    # Which images of the pool are train and val, and what all of them look like.
    split_hash = _digest(hashlib.sha256(), f"{len(pool)} {','.join(classes)}", train.index,
                         val.index, pool.labels)
    contents = [(str(tuple(split.images.shape)), split.images, split.labels)
                for split in (train, val, test)]
    identity = _digest(hashlib.blake2b(digest_size=8), "\n".join(classes), *chain(*contents))
    # Known by their number and brightness, since single images may have been compressed.
    is_cifar10 = (classes, len(pool), len(test)) == (CLASSES, 50_000, 10_000) and np.allclose(
        channel_statistics(pool.images), CIFAR10_STATISTICS, rtol=0, atol=1e-3)
    if is_cifar10:
        source = f"CIFAR-10, {source}"
    return Splits(train, val, test, classes, mean, std, source, split_hash, identity, notes,
                  is_cifar10)


def _warnings(train: Split, val: Split, test: Split, classes: Names) -> Iterator[str]:
    """Sentences about a small val split, uneven classes, and test images in train or val."""
    if len(val) < FEW_VAL_IMAGES:
        yield (f"val has only {count(len(val), 'image')}, each {percent(1 / len(val), 0)} of its "
               "accuracy: small differences mean nothing")
    sizes = np.bincount(train.labels)
    small, large = sizes.argmin(), sizes.argmax()
    if sizes[small] * 10 <= sizes[large]:
        yield (f"{classes[small]} has {count(sizes[small], 'training image')}, {classes[large]} "
               f"{sizes[large]:,}: --class-weights gives both the same say")
    marks = [{hash(image.tobytes()) for image in split.images.numpy()}
             for split in (train, val, test)]
    repeats = len(marks[2] & (marks[0] | marks[1]))
    if repeats:
        yield (f"test images that are in train or val, too, pixel for pixel: {repeats:,} of "
               f"{len(test):,}; that part of the test tells nothing")


def _check_size(flag: str, size: int, least: int, most: int) -> None:
    """Raise InputError where a split of `size` images cannot hold every class, or leaves none."""
    if not least <= size <= most:
        raise InputError(f"{flag} {size} must lie between {least} (one a class) and {most}")


def _turns(pool: Split, total: int) -> ndarray:
    """(N,) int64: each image's turn in its class, shuffled; below 0 are the `total` held out."""
    rng = np.random.RandomState(SPLIT_SEED)  # its stream is frozen by numpy's compatibility policy
    turns = np.empty(len(pool), np.int64)
    for k, held in enumerate(_quota(np.bincount(pool.labels), total)):
        members = rng.permutation(np.flatnonzero(pool.labels == k))
        turns[members] = np.arange(len(members)) - held
    return turns


def _quota(sizes: ndarray, total: int) -> ndarray:
    """Split `total` over classes in proportion to `sizes`, by largest remainder.

    Each class gives at least one (but where `total` is 0) and keeps at least one.
    """
    exact = sizes * total / sizes.sum()
    quota = np.maximum(exact.astype(np.int64), min(1, total))
    while missing := total - quota.sum():
        step = np.sign(missing)
        free = (quota + step >= 1) & (quota + step < sizes)
        quota[np.where(free, step * (exact - quota), -np.inf).argmax()] += step
    return quota


def _digest(digest: Any, *contents: str | Tensor) -> str:
    """The first 16 digits of a hash of texts and tensors."""
    for content in contents:
        digest.update(content.encode() if isinstance(content, str) else content.numpy())
    return digest.hexdigest()[:16]


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """(K,) float32 weights of the loss, inverse to each class's images; 1 in the mean over images.

    Args:
        labels: (N,) int64, with at least one image of each of the K classes.
    """
    return len(labels) / (classes * torch.bincount(labels, minlength=classes))


def channel_statistics(images: Tensor) -> list[list[float]]:
    """[mean, standard deviation] of each channel, in [0, 1], to six digits.

    Args:
        images: (N, 3, H, W) uint8.
    """
    channels = [channel.flatten(1).numpy() for channel in images.unbind(1)]
    # OpenCV adds whole numbers, and so without any error.
    moments = np.squeeze([cv2.meanStdDev(channel) for channel in channels])  # (3, 2)
    mean, std = (moments.T / 255).round(6)
    std[std == 0] = 1.0  # nothing to scale where all pixels are equal
    return [mean.tolist(), std.tolist()]
