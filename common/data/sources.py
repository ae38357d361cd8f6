"""Where the images come from: drawn, the official batches, class folders, or else a download."""
import os
import pickle
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from numpy.random import RandomState
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, download_url

from common.config import Recipe, Runtime
from common.data.folders import SUFFIXES, read_tree
from common.data.splits import CLASSES, Split, Splits, as_split, divide
from common.errors import InputError, reason
from common.files import downloading
from common.words import short

URL = CIFAR10.url
ARCHIVE_MD5 = CIFAR10.tgz_md5
BATCHES = {"train": CIFAR10.train_list, "test": CIFAR10.test_list}  # (file name, md5) each
FOLDER = CIFAR10.base_folder
ARCHIVE = CIFAR10.filename
ALLOWED = ("numpy.ndarray", "numpy.dtype", "numpy.core.multiarray._reconstruct",
           "numpy._core.multiarray._reconstruct")
WAYS = ("give --data-dir DIR, or fetch {url} by hand and unpack it in {folder}, or train with "
        f"--synthetic; DIR may hold {FOLDER}, train and test and/or val with the same class "
        f"folders in each, or class folders alone, two at least, with {' '.join(SUFFIXES)} in them "
        "(convert others)")
Figure = Callable[[ndarray, ndarray], ndarray]
# How much foreground a drawn class shows at (x, y): shapes lie in [-1, 1], textures have period 1.
FIGURES: dict[str, Figure] = {
    "disc": lambda x, y: x * x + y * y < 0.8,
    "ring": lambda x, y: abs(x * x + y * y - 0.6) < 0.33,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.8,
    "triangle": lambda x, y: (abs(x) < 0.55 * (y + 1)) & (y < 0.75),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.28) & (np.maximum(abs(x), abs(y)) < 1),
    "horizontal stripes": lambda x, y: y % 1 < 0.5,
    "vertical stripes": lambda x, y: x % 1 < 0.5,
    "checkerboard": lambda x, y: (x % 1 < 0.5) ^ (y % 1 < 0.5),
    "dots": lambda x, y: (x % 1 - 0.5) ** 2 + (y % 1 - 0.5) ** 2 < 0.08,
    "gradient": lambda x, y: np.clip(0.5 + 0.2 * x, 0, 1),
}
DRAWN_CLASSES = tuple(FIGURES)
DRAWN_POOLS = {"train": (600, 0), "test": (100, 1)}  # images per class, and the seed


def load_splits(recipe: Recipe, runtime: Runtime) -> Splits:
    """Train, val and test as the recipe and runtime ask, on the CPU.

    Sources, in order: the drawn set (`--synthetic`); the official batches or class folders in
    `--data-dir`, else $CIFAR10_DIR, else ./data; where no `--data-dir` was given, a download.

    Raises:
        InputError: no data, damaged data, an impossible split, or a flag without effect.
    """
    if recipe.synthetic:
        if runtime.data_dir:
            raise InputError(f"--data-dir {runtime.data_dir} has no effect on drawn images "
                             "(--synthetic, --smoke): leave one of the flags out")
        pools = {part: as_split(*draw(*pool)) for part, pool in DRAWN_POOLS.items()}
        classes, source = DRAWN_CLASSES, "synthetic"
    else:
        given = runtime.data_dir or os.environ.get("CIFAR10_DIR") or "data"
        folder = Path(os.path.expanduser(given))
        batches = folder if os.path.isfile(folder / "data_batch_1") else folder / FOLDER
        if not os.path.isdir(batches):
            if tree := os.path.isdir(folder) and read_tree(folder, recipe.image_size, recipe.fit):
                pools, classes, notes = tree
                return divide(pools, classes, f"class folders, {len(classes)} classes",
                              recipe.val_size, recipe.train_limit, notes)
            _download(folder, runtime)
        pools = {part: _read_batches(batches, files) for part, files in BATCHES.items()}
        classes, source = CLASSES, "official batches"
    if recipe.image_size not in (None, 32) or recipe.fit != "pad":
        raise InputError(f"--image-size and --fit are for pictures in class folders; {source}: all "
                         "images are 32×32 (train_effnet.py --resize N enlarges them)")
    return divide(pools, classes, source, recipe.val_size, recipe.train_limit)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays and nothing else: a foreign pickle could run any program."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return super().find_class(module, name)


def _read_batches(folder: Path, files: Iterable[Sequence[str]]) -> Split:
    """The images of some of the official batches, in order."""
    images, labels = [], []
    for name, md5 in files:
        path = folder / name
        if not check_integrity(path, md5):
            raise InputError(f"{path} is missing or damaged (its md5 is not the official one): "
                             f"restore it from the archive at {URL}")
        with open(path, "rb") as file:
            batch = _ArrayUnpickler(file, encoding="bytes").load()
        images.append(batch[b"data"].reshape(-1, 3, 32, 32))
        labels += batch[b"labels"]
    return as_split(np.concatenate(images), np.array(labels))


def _download(folder: Path, runtime: Runtime) -> None:
    """Fetch and unpack the official archive; only what is whole and checked gets its final name.

    Raises:
        InputError: a download is not allowed or fails; the line says what was found in the folder.
    """
    ways = WAYS.format(url=URL, folder=folder)
    archive = folder / ARCHIVE
    if not check_integrity(archive, ARCHIVE_MD5):
        if runtime.offline or runtime.data_dir:
            found = "is no folder"
            if os.path.isdir(folder):
                found = f"holds {short(', '.join(sorted(os.listdir(folder))), 60) or 'nothing'}"
            raise InputError(f"{folder} {found}, so no whole data of a known kind, and neither "
                             f"--offline nor --data-dir allows a download: {ways}")
        with downloading(f"no CIFAR-10 in {folder} and it", ways):
            folder.mkdir(parents=True, exist_ok=True)
            download_url(URL, folder, f"{ARCHIVE}.part", ARCHIVE_MD5)
            os.replace(f"{archive}.part", archive)
    try:
        with tempfile.TemporaryDirectory(dir=folder) as aside, tarfile.open(archive) as tar:
            tar.extractall(aside, filter="data")  # refuses links and paths that leave the folder
            os.replace(os.path.join(aside, FOLDER), folder / FOLDER)
    except (tarfile.TarError, EOFError, FileNotFoundError) as error:
        raise InputError(f"{archive} cannot be unpacked ({reason(error)}): delete it and start "
                         "again") from None


def draw(n_per_class: int, seed: int, size: int = 32) -> tuple[ndarray, ndarray]:
    """The drawn set, shuffled: figures under random colour, place, scale, light and noise.

    Equal arguments give equal bytes on every platform: only +, -, *, / and floor are used, which
    IEEE 754 rounds the same everywhere. Neither mirroring nor ±15° turns one class into another.

    Args:
        n_per_class: images per class, at least 1.
        seed: 0 to 2**32 - 1; give train and test different ones.
        size: height and width in pixels, at least 16.

    Returns:
        images (N, 3, size, size) uint8 and labels (N,) int64, N = 10 * n_per_class.
    """
    rng = RandomState(seed)
    labels = rng.permutation(np.repeat(np.arange(len(DRAWN_CLASSES)), n_per_class))
    images = np.empty((len(labels), 3, size, size), np.uint8)
    for label, figure in enumerate(FIGURES.values()):
        images[labels == label] = _pictures(figure, n_per_class, size, rng)
    return images, labels


def _pictures(figure: Figure, n: int, size: int, rng: RandomState) -> ndarray:
    """(n, 3, size, size) uint8 pictures of one class."""
    def drawn(low: float, high: float, channels: int = 1) -> ndarray:
        """(n, channels, 1, 1) float32; not by rng.uniform, whose arithmetic compilers may fuse."""
        return low + (high - low) * rng.random_sample((n, channels, 1, 1)).astype(np.float32)

    x = (2 * np.arange(size, dtype=np.float32) + 1) / size - 1
    y = x[:, None]
    back = images = drawn(0, 1, 3)
    # After the figure two specks: distractors that belong to no class.
    speck = FIGURES["disc"], 0.06, 0.18, 1.0
    for shape, smallest, largest, reach in ((figure, 0.4, 0.7, 0.3), speck, speck):
        right, down = x - drawn(-reach, reach), y - drawn(-reach, reach)
        scale, tangent = drawn(smallest, largest), drawn(-0.2, 0.2)  # turned by up to 11°
        mask = shape((right + tangent * down) / scale, (down - tangent * right) / scale)
        front = (back + drawn(0.25, 0.75, 3)) % 1  # each channel differs by at least 0.25
        images = images + mask * (front - images)
    light = drawn(-0.15, 0.15, 3) * y  # from above or below
    noise = drawn(0.05, 0.3) * (rng.random_sample(images.shape) - 0.5)
    return (255 * np.clip(images + light + noise, 0, 1) + 0.5).astype(np.uint8)
