"""Images in class folders: listed, decoded once, cached."""
import contextlib
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from common.errors import InputError
from common.files import atomic

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


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


def read_picture(path: Path, size: int | None = None, fit: str = "pad") -> np.ndarray:
    """One picture as (3, H, W) uint8 RGB, upright, brought to `size` × `size` by `fit` where a size is given.

    Raises:
        InputError: it cannot be read; the message names the file.
    """
    return _decode(path)


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


def read_tree(folder: Path) -> tuple[tuple[np.ndarray, ...], tuple[str, ...]]:
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
