"""Where the images come from: drawn, the official batches, class folders, or else a download."""
import os
import pickle
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, download_url

from common.config import Recipe, Runtime
from common.data import synthetic
from common.data.folders import SUFFIXES, in_words, read_tree, walk
from common.data.splits import CLASSES, Names, Splits, divide, make_splits
from common.errors import InputError, reason
from common.files import downloading

URL = CIFAR10.url
ARCHIVE_MD5 = CIFAR10.tgz_md5
BATCHES = dict(CIFAR10.train_list), dict(CIFAR10.test_list)  # file name -> md5
FOLDER = CIFAR10.base_folder
ARCHIVE = CIFAR10.filename
ALLOWED = ("numpy.ndarray", "numpy.dtype", "numpy.core.multiarray._reconstruct",
           "numpy._core.multiarray._reconstruct")
LAYOUTS = (f"known are {FOLDER} (from {URL}), train and test and/or val with the same class "
           f"folders in each, or class folders alone, two at least, with {' '.join(SUFFIXES)} in "
           "them (convert others); training with --synthetic needs none")


def load_splits(recipe: Recipe, runtime: Runtime) -> Splits:
    """Train, val and test as the recipe and runtime ask, on the CPU.

    Sources, in order: the drawn set (`--synthetic`); the official batches or class folders in
    `--data-dir`, else $CIFAR10_DIR, else ./data. Where no `--data-dir` was given and nothing is
    found, the official archive is downloaded.

    Raises:
        InputError: no data, damaged data, a split that the data cannot give, or a flag without
            effect.
    """
    if recipe.synthetic:
        if runtime.data_dir:
            raise InputError(f"--data-dir {runtime.data_dir} has no effect on drawn images "
                             "(--synthetic, --smoke): leave one of the flags out")
        drawn = [array for pool in synthetic.POOLS.values() for array in synthetic.draw(*pool)]
        return _split_32(drawn, synthetic.CLASSES, "synthetic", recipe)
    given = runtime.data_dir or os.environ.get("CIFAR10_DIR") or "data"
    folder = Path(os.path.expanduser(given))
    batches = folder if os.path.isfile(folder / "data_batch_1") else folder / FOLDER
    if not os.path.isdir(batches):
        if not os.path.isfile(folder / ARCHIVE):
            if tree := os.path.isdir(folder) and read_tree(folder, recipe.image_size, recipe.fit):
                pools, classes, notes = tree
                source = f"class folders, {len(classes)} classes"
                return divide(pools, classes, source, recipe.val_size, recipe.train_limit, notes)
            if runtime.data_dir:
                raise InputError(f"{folder} {_content(folder)}: name the data's folder with "
                                 f"--data-dir; {LAYOUTS}")
        _download(folder, runtime)
    return _split_32(_read_batches(batches), CLASSES, "official batches", recipe)


def _split_32(arrays: Sequence[ndarray], classes: Names, source: str, recipe: Recipe) -> Splits:
    """The splits of a source whose images are 32×32 and whose classes are known."""
    if recipe.image_size not in (None, 32) or recipe.fit != "pad":
        raise InputError(f"--image-size and --fit are for pictures in class folders; {source}: all "
                         "images are 32×32 (train_effnet.py --resize N enlarges them)")
    return make_splits(*arrays, classes, source, val_size=recipe.val_size,
                       train_limit=recipe.train_limit)


def _content(folder: Path) -> str:
    """What is found there, in words."""
    if not folder.is_dir():
        return "is no folder" if folder.exists() else "does not exist"
    names = sorted(os.listdir(folder))
    listed = ", ".join(names[:4]) or "nothing"
    others = walk(folder)[1]
    within = f" (in it are {in_words(others)})" if others else ""
    return f"holds {listed}{', …' if len(names) > 4 else ''}{within}"


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays and nothing else: a foreign pickle could run any program."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return super().find_class(module, name)


def _read_batch(path: Path, md5: str) -> tuple[ndarray, ndarray]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) int64 of one official batch."""
    restore = f"restore it from the archive at {URL}"
    if not check_integrity(path, md5):
        raise InputError(f"{path} is missing or damaged (its md5 is not the official one): "
                         f"{restore}")
    try:
        with open(path, "rb") as file:
            batch = _ArrayUnpickler(file, encoding="bytes").load()
        return batch[b"data"].reshape(-1, 3, 32, 32), np.array(batch[b"labels"])
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"{path} is not an official CIFAR-10 batch ({reason(error)}): {restore}"
                         ) from None


def _read_batches(folder: Path) -> list[ndarray]:
    """Train images, train labels, test images and test labels of the official batches."""
    arrays: list[ndarray] = []
    for half in BATCHES:
        parts = [_read_batch(folder / name, md5) for name, md5 in half.items()]
        arrays += map(np.concatenate, zip(*parts))
    return arrays


def _download(folder: Path, runtime: Runtime) -> None:
    """Fetch and unpack the official archive; only what is whole and checked gets its final name."""
    ways = (f"give --data-dir DIR, or fetch {URL} by hand and unpack it in {folder}, "
            "or train with --synthetic")
    archive = folder / ARCHIVE
    if not check_integrity(archive, ARCHIVE_MD5):
        if runtime.offline or runtime.data_dir:
            why = ("--offline forbids a download" if runtime.offline
                   else f"{ARCHIVE} is damaged, and nothing is fetched into a folder of yours")
            raise InputError(f"no CIFAR-10 in {folder}, and {why}: {ways}")
        part = f"{ARCHIVE}.part"
        with downloading(f"no CIFAR-10 in {folder} and it", ways):
            folder.mkdir(parents=True, exist_ok=True)
            download_url(URL, folder, part, ARCHIVE_MD5)
            os.replace(folder / part, archive)
    try:
        with tempfile.TemporaryDirectory(dir=folder) as aside, tarfile.open(archive) as tar:
            tar.extractall(aside, filter="data")  # refuses links and paths that leave the folder
            os.replace(os.path.join(aside, FOLDER), folder / FOLDER)
    except (tarfile.TarError, EOFError, FileNotFoundError) as error:
        raise InputError(f"{archive} cannot be unpacked ({reason(error)}): delete it and start "
                         "again") from None
