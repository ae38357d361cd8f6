"""Where the images come from, how they are split, and how they are held: whole, as uint8, on the device."""
import contextlib
import hashlib
import http.client
import io
import os
import pickle
import socket
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, download_url
from tqdm import tqdm

from common import synthetic
from common.config import Recipe, Runtime
from common.errors import InputError, reason
from common.files import atomic

URL = CIFAR10.url
ARCHIVE_MD5 = CIFAR10.tgz_md5
BATCHES = dict(CIFAR10.train_list), dict(CIFAR10.test_list)  # file name -> md5
FOLDER = "cifar-10-batches-py"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
SPLIT_SEED = 20091  # of the split alone, so that every run and every seed holds out the same images
TIMEOUT_S = 8


@dataclass(frozen=True)
class Split:
    """Images (N, 3, H, W) uint8, labels (N,) int64, and each image's index (N,) in its source, all on one device."""

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Split":
        """The same split on `device`."""
        return Split(self.images.to(device), self.labels.to(device), self.index.to(device))

    def take(self, chosen: np.ndarray) -> "Split":
        """The images at positions `chosen` (n,)."""
        at = torch.from_numpy(chosen)
        return Split(self.images[at], self.labels[at], self.index[at])


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

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return self.train.images.shape[-1]

    def to(self, device: torch.device | str) -> "Splits":
        """The same splits on `device`."""
        return replace(self, train=self.train.to(device), val=self.val.to(device), test=self.test.to(device))


def load_splits(recipe: Recipe, runtime: Runtime) -> Splits:
    """Train, val and test as the recipe and runtime ask, on the CPU.

    Sources, in order: the drawn set (`--synthetic`), the official batches or a class-folder tree in `--data-dir`,
    $CIFAR10_DIR or ./data, else the official archive is downloaded there.

    Raises:
        InputError: no data, damaged data, or a split that the data cannot give.
    """
    if recipe.synthetic:
        arrays = (*synthetic.draw(600, seed=0), *synthetic.draw(100, seed=1))
        classes, source = tuple(synthetic.CLASSES), "synthetic"
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
        arrays, classes = _read_tree(folder)
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


def _listing(folder: Path) -> tuple[dict[str, list[tuple[Path, int]]], tuple[str, ...], str]:
    """Files with labels of either half, class names, and a key that changes when the tree does."""
    if missing := [name for name in ("train", "test") if not (folder / name).is_dir()]:
        raise InputError(f"{folder / missing[0]} is missing: a class-folder tree needs train/<class>/ and test/<class>/")
    names = [sorted(p.name for p in (folder / half).iterdir() if p.is_dir()) for half in ("train", "test")]
    if odd := sorted(set(names[0]) ^ set(names[1])):
        half = "test" if odd[0] in names[0] else "train"
        raise InputError(f"{folder / half / odd[0]} is missing: train and test need the same class folders")
    if len(names[0]) < 2:
        raise InputError(f"{folder / 'train'} has {len(names[0])} class folders: at least two are needed")
    files: dict[str, list[tuple[Path, int]]] = {}
    digest = hashlib.sha256(b"1")
    for half in ("train", "test"):
        files[half] = []
        for label, name in enumerate(names[0]):
            entries = [e for e in os.scandir(folder / half / name) if Path(e.name).suffix.lower() in SUFFIXES]
            if not entries:
                raise InputError(f"{folder / half / name} holds no image ({', '.join(sorted(SUFFIXES))}): add some, or remove the class")
            files[half] += [(Path(e.path), label) for e in entries]
            try:
                digest.update("".join(f"{half}/{name}/{e.name}:{e.stat().st_size}:{e.stat().st_mtime_ns}\n"
                                      for e in sorted(entries, key=lambda e: e.name)).encode())
            except OSError as error:  # a link to nowhere
                raise InputError(f"{error.filename} cannot be read ({error.strerror}): remove or replace it") from None
        # Whole-number names are the official index: in that order, so that the split equals that of the official batches.
        numbered = all(path.stem.isdecimal() for path, _ in files[half])
        files[half].sort(key=lambda item: (int(item[0].stem) if numbered else 0, item[1], item[0].name))
    return files, tuple(names[0]), digest.hexdigest()


def _decode(path: Path) -> np.ndarray:
    """One image as (3, H, W) uint8 RGB."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): remove or replace it") from None
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    if image is None:
        raise InputError(f"{path} is not a readable image: remove or replace it")
    return image[:, :, ::-1].transpose(2, 0, 1)


def _read_tree(folder: Path) -> tuple[tuple[np.ndarray, ...], tuple[str, ...]]:
    """Arrays and class names of a class-folder tree, from the cache if the tree is as it was."""
    files, classes, key = _listing(folder)
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cifar10-study"
    cache = home / f"{folder.resolve().name}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]}.npz"
    with contextlib.suppress(Exception):  # no cache, or a damaged one: decode
        with np.load(cache, allow_pickle=False) as stored:
            if str(stored["key"]) == key:
                return tuple(stored[name] for name in ("arr_0", "arr_1", "arr_2", "arr_3")), classes
    arrays: list[np.ndarray] = []
    first = files["train"][0][0]
    shape = _decode(first).shape
    if shape[1] != shape[2]:
        raise InputError(f"{first} is {shape[2]}×{shape[1]}: only square images work; crop or resize the set")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for half in ("train", "test"):
            images = np.empty((len(files[half]), *shape), np.uint8)
            paths = [path for path, _ in files[half]]
            for i, image in enumerate(tqdm(pool.map(_decode, paths, chunksize=64), f"decoding {half}", len(paths), disable=None)):
                if image.shape != shape:
                    raise InputError(f"{paths[i]} is {image.shape[2]}×{image.shape[1]}, but {first} is {shape[2]}×{shape[1]}: "
                                     "all images must have one size")
                images[i] = image
            arrays += [images, np.array([label for _, label in files[half]], np.int64)]
    try:
        with atomic(cache) as file:
            np.savez(file, *arrays, key=np.array(key))
    except OSError as error:
        print(f"decoded images are not cached ({error.strerror}): they will be decoded again next time")
    return tuple(arrays), classes


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
