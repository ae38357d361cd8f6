"""Pictures in class folders: found in any usual layout, brought to one size, decoded once."""
import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

import cv2
import numpy as np
from numpy import ndarray
from tqdm import tqdm

from common.data.splits import Names, Split, as_split
from common.errors import InputError, reason
from common.files import atomic
from common.words import count

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test",
         "val": "val", "valid": "val", "validation": "val"}
SYSTEM_FILES = ("thumbs.db", "__macosx")  # hidden like names that begin with a dot
DEFAULT_SIZE = 64  # of pictures that are not all square, equal and small
LARGEST_AS_IS = 96
Listing = dict[str, list[tuple[str, int]]]  # for each part its pictures: name, label


def read_tree(folder: Path, size: int | None,
              fit: str) -> tuple[dict[str, Split], Names, Names] | None:
    """(pools "train", "test", "val", class names, what there is to say); None: no known layout.

    Args:
        size: height and width to give every picture; None: as they are where all are square, equal
            and small, else 64.
        fit: how, see `read_picture`.

    Raises:
        InputError: a folder or picture that cannot be used, by its name.
    """
    folder = folder.resolve()  # however it was named, its cache is the same
    listing, classes, others = _find(folder)
    if len(classes) < 2 or not any(listing.values()):
        return None
    names = [name for files in listing.values() for name, _ in files]
    images, notes = _read_all(folder, names, size, fit)
    if others:
        notes += (f"{count(others, 'other file')} left out",)
    pools: dict[str, Split] = {}
    ends = np.cumsum([len(files) for files in listing.values()])
    for (part, files), pictures in zip(listing.items(), np.split(images, ends)):
        names, labels = zip(*files)
        pools[part] = as_split(pictures, np.array(labels), _printable(names))
    return pools, _printable(classes), notes


def _find(folder: Path) -> tuple[Listing, list[str], int]:
    """(the pictures of each part, class names, number of files left out)."""
    roots = {PARTS[name.lower()]: os.path.join(folder, name)
             for name in _subfolders(folder) if name.lower() in PARTS}
    if "train" not in roots or len(roots) == 1:
        if any(map(_subfolders, roots.values())):  # half a layout, not classes of such names
            return {}, [], 0
        roots = {"train": str(folder)}
    classes = sorted({name for root in roots.values() for name in _subfolders(root)})
    start = len(os.path.join(folder, ""))
    listing: Listing = {}
    others, empty = 0, []
    for part, root in roots.items():
        found = listing[part] = []
        for label, name in enumerate(classes):
            place = os.path.join(root, name)
            files = _files(place)
            pictures = [file for file in files if file.lower().endswith(SUFFIXES)]
            found += [(path[start:], label) for path in sorted(pictures)]
            others += len(files) - len(pictures)
            if not pictures:
                empty.append(place)
        if all(Path(name).stem.isdecimal() for name, _ in found):
            # CIFAR-10's own index: in its order the split is that of the official batches.
            found.sort(key=lambda file: int(Path(file[0]).stem))
    if empty and any(listing.values()):
        raise InputError(f"{empty[0]} holds no picture: add some, or remove the class")
    return listing, classes, others


def _subfolders(folder: str | Path) -> list[str]:
    """Names of the folders in `folder`, in order."""
    return _visible(next(os.walk(folder, onerror=_refuse))[1])


def _files(folder: str) -> list[str]:
    """Paths of the files in and below `folder`."""
    files = []
    for place, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = _visible(folders)  # the only ones that are walked into
        files += [os.path.join(place, name) for name in _visible(names)]
    return files


def _visible(names: list[str]) -> list[str]:
    """The files or folders that are the user's own, not the system's, in order."""
    return sorted(name for name in names
                  if not name.startswith(".") and name.lower() not in SYSTEM_FILES)


def _refuse(error: OSError) -> None:
    """Raise InputError for a folder that cannot be read."""
    raise InputError(f"{error.filename} cannot be read ({error.strerror}): train, val and test "
                     "need the same class folders, all of them readable")


def _printable(names: Sequence[str]) -> Names:
    """File names as text; bytes that are no UTF-8 become \\xNN."""
    return tuple(os.fsencode(name).decode("utf-8", "backslashreplace") for name in names)


def _read_all(folder: Path, names: list[str], size: int | None, fit: str) -> tuple[ndarray, Names]:
    """(images (N, 3, S, S) uint8, what there is to say of them), decoded or from the cache."""
    paths = [os.path.join(folder, name) for name in names]
    # No cache, or a damaged one: decode.
    with contextlib.suppress(Exception), np.load(_cache_file(folder)) as stored:
        if stored["key"] == _key(paths, size, fit):
            return stored["images"], tuple(stored["notes"].tolist())
    images, resized = _decode_all(paths, size, fit)
    notes: Names = ()
    if resized:
        side = images.shape[-1]
        notes += (f"{resized:,} of {count(len(paths), 'picture')} resized to {side}×{side} "
                  f"(--fit {fit}); --image-size N gives another size",)
    try:
        with atomic(_cache_file(folder)) as file:
            np.savez(file, images=images, notes=notes, key=_key(paths, size, fit))
    except (OSError, RuntimeError) as error:
        notes += (f"decoded pictures are not cached ({reason(error)}): the next run decodes again",)
    return images, notes


def _cache_file(folder: Path) -> Path:
    """The one file that keeps this folder's decoded pictures."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    place = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return home / "cifar10-study" / f"{place}.npz"


def _key(paths: list[str], size: int | None, fit: str) -> str:
    """Hash that changes with the listing, the size and the fit."""
    states = [(file.st_size, file.st_mtime_ns) for file in map(os.stat, paths)]
    return hashlib.sha256(repr((size, fit, paths, states)).encode()).hexdigest()


def _decode_all(paths: list[str], size: int | None, fit: str) -> tuple[ndarray, int]:
    """(images (N, 3, S, S) uint8, how many of them were resized), decoded in parallel."""
    # OpenCV works outside of Python's lock, so threads are enough.
    with _captured_stderr() as (complaints, terminal), ThreadPoolExecutor() as pool:
        height, width, _ = _decode(paths[0]).shape
        side = size or (width if height == width <= LARGEST_AS_IS else DEFAULT_SIZE)
        images = np.empty((len(paths), 3, side, side), np.uint8)

        def read(i: int) -> bool:
            picture = _decode(paths[i])
            images[i] = _fit(picture, side, fit)
            return picture.shape[:2] != (side, side)

        done = pool.map(read, range(len(paths)))
        resized = sum(tqdm(done, "decoding", len(paths), disable=None, file=terminal))
    if complaints:
        for path in paths:  # once more, one by one, to find the file
            read_picture(path, side, fit)
    if resized and side != (size or DEFAULT_SIZE):  # not all are like the first
        return _decode_all(paths, DEFAULT_SIZE, fit)
    return images, resized


def read_picture(path: str | Path, size: int, fit: str) -> ndarray:
    """One picture as (3, size, size) uint8 RGB.

    Rotated as its EXIF says, grey spread over three channels, 16 bits cut to 8, alpha dropped.

    Args:
        fit: how a picture that is not square becomes so: "pad" shrinks all of it and fills up with
            black, "crop" cuts out the centre, "stretch" distorts it.

    Raises:
        InputError: it cannot be read, or the decoder complained; the message names the file.
    """
    with _captured_stderr() as (complaints, _):
        picture = _decode(path)
    if complaints:
        raise InputError(f"{path} is damaged ({complaints[0]}): remove or replace it")
    return _fit(picture, size, fit)


@contextlib.contextmanager
def _captured_stderr() -> Iterator[tuple[list[str], TextIO]]:
    """(what is printed to stderr, known after the block; the terminal).

    C decoders print their warnings and go on. That of an odd colour profile is left out: it is
    common, and the profile is not used.
    """
    complaints: list[str] = []
    with tempfile.TemporaryFile() as printed, os.fdopen(os.dup(2), "w") as terminal:
        os.dup2(printed.fileno(), 2)
        try:
            yield complaints, terminal
        finally:
            os.dup2(terminal.fileno(), 2)
            printed.seek(0)
            lines = printed.read().decode(errors="replace").splitlines()
            complaints += [line for line in lines if "iCCP" not in line]


def _decode(path: str | Path) -> ndarray:
    """One picture as (H, W, 3) uint8, blue first."""
    try:
        picture = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): remove it") from None
    except (cv2.error, MemoryError):  # an empty file, or one that announces an absurd size
        picture = None
    if picture is None:
        raise InputError(f"{path} is not a readable image: remove or replace it")
    return picture


def _fit(picture: ndarray, size: int, fit: str) -> ndarray:
    """(3, size, size), red first, of an (H, W, 3) picture, blue first; see `read_picture`."""
    height, width, _ = picture.shape
    shortest, longest = sorted((height, width))
    new_height = new_width = size
    if fit == "crop":
        picture = picture[_middle(height, shortest), _middle(width, shortest)]
    elif fit == "pad":
        new_height = max(1, round(height * size / longest))
        new_width = max(1, round(width * size / longest))
    # Shrinking by area averages all pixels; sampling a few of them would give noise.
    way = cv2.INTER_AREA if longest > size else cv2.INTER_LINEAR
    square = np.zeros((size, size, 3), np.uint8)
    square[_middle(size, new_height), _middle(size, new_width)] = cv2.resize(
        picture, (new_width, new_height), interpolation=way)
    return square[:, :, ::-1].transpose(2, 0, 1)


def _middle(length: int, part: int) -> slice:
    """The middle `part` of so many pixels."""
    start = (length - part) // 2
    return slice(start, start + part)
