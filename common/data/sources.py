"""Where the images come from: drawn, the official batches, class folders, or else a download."""
import os
import pickle
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, download_url

from common.config import Recipe, Runtime
from common.data import synthetic
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
        pools = {part: as_split(*synthetic.draw(*pool)) for part, pool in synthetic.POOLS.items()}
        classes, source = synthetic.CLASSES, "synthetic"
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
