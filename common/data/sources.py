"""Where the images come from: the drawn set, the official batches or class folders; else a download."""
import hashlib
import http.client
import io
import os
import pickle
import socket
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, download_url

from common.config import Recipe, Runtime
from common.data.folders import read_tree
from common.data.splits import Splits, make_splits
from common.data.synthetic import draw
from common.errors import InputError, reason

URL = CIFAR10.url
ARCHIVE_MD5 = CIFAR10.tgz_md5
BATCHES = dict(CIFAR10.train_list), dict(CIFAR10.test_list)  # file name -> md5
FOLDER = "cifar-10-batches-py"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TIMEOUT_S = 8


def load_splits(recipe: Recipe, runtime: Runtime) -> Splits:
    """Train, val and test as the recipe and runtime ask, on the CPU.

    Sources, in order: the drawn set (`--synthetic`), the official batches or a class-folder tree in `--data-dir`,
    $CIFAR10_DIR or ./data, else the official archive is downloaded there.

    Raises:
        InputError: no data, damaged data, or a split that the data cannot give.
    """
    if recipe.synthetic:
        arrays = (*draw(600, seed=0), *draw(100, seed=1))
        classes, source = tuple(CLASSES), "synthetic"
    else:
        folder = Path(runtime.data_dir or os.environ.get("CIFAR10_DIR") or "data").expanduser()
        arrays, classes, source = _read_source(folder, runtime.offline)
    return make_splits(*arrays, classes, source, recipe.val_size, recipe.train_limit)


def _read_source(folder: Path, offline: bool) -> tuple[tuple[np.ndarray, ...], tuple[str, ...], str]:
    """(train images, train labels, test images, test labels), class names and a description of what `folder` holds."""
    for batches in (folder / FOLDER, folder):
        if (batches / "data_batch_1").exists() or batches.name == FOLDER and batches.is_dir():
            return _read_batches(batches), CLASSES, "CIFAR-10, official batches"
    if (folder / "train").is_dir() or (folder / "test").is_dir():
        arrays, classes = read_tree(folder)
        return arrays, classes, f"class folders, {len(classes)} classes"
    _download(folder, offline)
    return _read_batches(folder / FOLDER), CLASSES, "CIFAR-10, official batches"


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles the official batches and nothing else: only the three names that rebuild a numpy array."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("numpy._core", "numpy.core"), name) == ("numpy.core.multiarray", "_reconstruct"):
            return np.empty(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def _read_batch(path: Path, md5: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) int64 of one official batch."""
    if not path.is_file():
        raise InputError(f"{path} is missing: delete the folder {path.parent} to have it fetched again, or restore the file")
    content = path.read_bytes()
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise InputError(f"{path} is damaged (md5 differs from the official one): restore it from the archive at {URL}")
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        images = np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        return images, np.asarray(batch[b"labels"], dtype=np.int64)
    except (pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{path} is not an official CIFAR-10 batch ({reason(error)}): restore it from the archive at {URL}") from None


def _read_batches(folder: Path) -> tuple[np.ndarray, ...]:
    """Train and test arrays of the official batches in `folder`."""
    parts = [[_read_batch(folder / name, md5) for name, md5 in half.items()] for half in BATCHES]
    return tuple(np.concatenate([part[i] for part in half]) for half in parts for i in (0, 1))


def _download(folder: Path, offline: bool) -> None:
    """Fetch and unpack the official archive into `folder`; only a complete, checked archive gets its final name."""
    ways = f"give --data-dir DIR, or fetch {URL} by hand and unpack it in {folder}, or use --synthetic"
    archive = folder / Path(URL).name
    if not archive.exists() or not check_integrity(archive, ARCHIVE_MD5):
        if offline:
            raise InputError(f"no CIFAR-10 in {folder} and --offline forbids a download: {ways}")
        part = archive.with_name(archive.name + ".part")
        before = socket.getdefaulttimeout()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            socket.setdefaulttimeout(TIMEOUT_S)
            download_url(URL, folder, part.name, ARCHIVE_MD5)
            os.replace(part, archive)
        except (OSError, http.client.HTTPException, RuntimeError, ValueError, EOFError) as error:
            raise InputError(f"no CIFAR-10 in {folder} and it cannot be downloaded ({reason(error)}): {ways}") from None
        finally:
            socket.setdefaulttimeout(before)
    try:
        with tempfile.TemporaryDirectory(dir=folder) as aside, tarfile.open(archive) as tar:
            tar.extractall(aside, filter="data")  # refuses links and paths that leave the folder
            os.replace(Path(aside) / FOLDER, folder / FOLDER)
    except (tarfile.TarError, EOFError, FileNotFoundError) as error:
        raise InputError(f"{archive} cannot be unpacked ({reason(error)}): delete it and start again") from None
