"""Pictures in class folders: found in any usual layout, brought to one size, decoded once."""
import contextlib
import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TextIO

import cv2
import numpy as np
from numpy import ndarray
from tqdm import tqdm

from common.data.splits import Names, Split, as_split
from common.errors import InputError, reason
from common.files import atomic
from common.words import count

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test",
         "val": "val", "valid": "val", "validation": "val"}
SYSTEM_FILES = ("thumbs.db", "__macosx")  # hidden like names that begin with a dot
DEFAULT_SIZE = 64  # of pictures that are not all square, equal and small
LARGEST_AS_IS = 96
Listing = dict[str, list[tuple[str, int]]]  # for each part its pictures: name, label
_stderr_in_use = threading.Lock()


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
    pools, start = {}, 0
    for part, files in listing.items():
        stop = start + len(files)
        labels = np.array([label for _, label in files])
        pools[part] = as_split(images[start:stop], labels, _printable(names[start:stop]))
        start = stop
    return pools, _printable(classes), notes


def _find(folder: Path) -> tuple[Listing, list[str], int]:
    """(the pictures of each part, class names, number of files left out)."""
    roots = {}
    for name in _subfolders(folder):
        if part := PARTS.get(name.lower()):
            roots[part] = os.path.join(folder, name)
    if "train" not in roots or len(roots) == 1:
        if any(map(_subfolders, roots.values())):  # half a layout, not classes of such names
            return {}, [], 0
        roots = {"train": str(folder)}
    classes = sorted({name for root in roots.values() for name in _subfolders(root)})
    start = len(os.path.join(folder, ""))
    listing: Listing = {part: [] for part in roots}
    others, empty = 0, []
    for part, root in roots.items():
        for label, name in enumerate(classes):
            place = os.path.join(root, name)
            pictures, more = _pictures(place)
            others += more
            empty += [] if pictures else [place]
            listing[part] += [(path[start:], label) for path in pictures]
        if all(_stem(name).isdecimal() for name, _ in listing[part]):
            # CIFAR-10's own index: in its order the split is that of the official batches.
            listing[part].sort(key=lambda file: int(_stem(file[0])))
    if empty and any(listing.values()):
        raise InputError(f"{empty[0]} holds no picture: add some, or remove the class")
    return listing, classes, others


def _walk(folder: str | Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` in order of name, without what is hidden; InputError names an unreadable folder."""
    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be read ({error.strerror}): train, val and test "
                         "need the same class folders, all of them readable")

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(filter(_visible, folders))
        yield place, folders, list(filter(_visible, files))


def _visible(name: str) -> bool:
    """Whether a file or folder is the user's own, not the system's."""
    return not name.startswith(".") and name.lower() not in SYSTEM_FILES


def _subfolders(folder: str | Path) -> list[str]:
    """Names of the folders in `folder`, in order."""
    return next(_walk(folder))[1]


def _stem(name: str) -> str:
    """A file's name without folders and suffix."""
    return os.path.splitext(os.path.basename(name))[0]


def _pictures(folder: str) -> tuple[list[str], int]:
    """(paths of the pictures in and below `folder`, in order; number of other files)."""
    pictures, others = [], 0
    for place, _, names in _walk(folder):
        chosen = [name for name in names if os.path.splitext(name)[1].lower() in SUFFIXES]
        pictures += [os.path.join(place, name) for name in chosen]
        others += len(names) - len(chosen)
    return sorted(pictures), others


def _printable(names: list[str]) -> Names:
    """File names as text with slashes; bytes that are no UTF-8 become \\xNN."""
    texts = [os.fsencode(name).decode("utf-8", "backslashreplace") for name in names]
    return tuple(text.replace(os.sep, "/") for text in texts)


def _read_all(folder: Path, names: list[str], size: int | None, fit: str) -> tuple[ndarray, Names]:
    """(images (N, 3, S, S) uint8, what there is to say of them), decoded or from the cache."""
    paths = [os.path.join(folder, name) for name in names]
    with contextlib.suppress(Exception):  # no cache, or a damaged one: decode
        with np.load(_cache_file(folder), allow_pickle=False) as stored:
            if stored["key"] == _key(paths, size, fit):
                return stored["images"], tuple(stored["notes"].tolist())
    images, resized = _decode_all(paths, size, fit)
    notes: Names = ()
    if resized:
        side = images.shape[-1]
        notes = (f"{resized:,} of {count(len(paths), 'picture')} resized to {side}×{side} "
                 f"(--fit {fit}); --image-size N gives another size",)
    try:
        with atomic(_cache_file(folder)) as file:
            np.savez(file, images=images, notes=np.array(notes, str), key=_key(paths, size, fit))
    except (OSError, RuntimeError) as error:
        notes += (f"decoded pictures are not cached ({reason(error)}): the next run decodes again",)
    return images, notes


def _cache_file(folder: Path) -> Path:
    """The one file that keeps this folder's decoded pictures."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    place = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return home / "cifar10-study" / f"{place}.npz"


def _key(paths: list[str], size: int | None, fit: str) -> str:
    """Hash that changes with the listing, the size and the fit."""
    digest = hashlib.sha256(f"2 {size} {fit}".encode())
    for path in paths:
        status = os.stat(path)
        digest.update(os.fsencode(f"{path}:{status.st_size}:{status.st_mtime_ns}\n"))
    return digest.hexdigest()


def _decode_all(paths: list[str], size: int | None, fit: str) -> tuple[ndarray, int]:
    """(images (N, 3, S, S) uint8, how many of them were resized), decoded in parallel."""
    # OpenCV works outside of Python's lock, so threads are enough.
    with _captured_stderr() as (printed, terminal), ThreadPoolExecutor(os.cpu_count()) as pool:
        height, width, _ = _decode(paths[0]).shape
        as_is = height == width <= LARGEST_AS_IS
        side = size or (width if as_is else DEFAULT_SIZE)
        images = np.empty((len(paths), 3, side, side), np.uint8)

        def read(i: int) -> bool:
            picture = _decode(paths[i])
            images[i] = _fit(picture, side, fit)
            return picture.shape[:2] != (side, side)

        done = pool.map(read, range(len(paths)))
        resized = sum(tqdm(done, "decoding", len(paths), disable=None, file=terminal))
        damaged = _complaint(printed)
    if damaged:
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
    with _captured_stderr() as (printed, _):
        picture = _decode(path)
        damage = _complaint(printed)
    if damage:
        raise InputError(f"{path} is damaged ({damage}): remove or replace it")
    return _fit(picture, size, fit)


@contextlib.contextmanager
def _captured_stderr() -> Iterator[tuple[BinaryIO, TextIO]]:
    """(what is printed to stderr, the terminal): C decoders print their warnings and go on."""
    with _stderr_in_use, tempfile.TemporaryFile() as printed, os.fdopen(os.dup(2), "w") as terminal:
        os.dup2(printed.fileno(), 2)
        try:
            yield printed, terminal
        finally:
            os.dup2(terminal.fileno(), 2)


def _complaint(printed: BinaryIO) -> str:
    """The first line that a decoder printed; an odd colour profile is common, and not used."""
    printed.seek(0)
    lines = printed.read().decode(errors="replace").splitlines()
    return next((line for line in lines if "iCCP" not in line), "")


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
        top, left = (height - shortest) // 2, (width - shortest) // 2
        picture = picture[top:top + shortest, left:left + shortest]
    elif fit == "pad":
        new_height = max(1, round(height * size / longest))
        new_width = max(1, round(width * size / longest))
    # Shrinking by area averages all pixels; sampling a few of them would give noise.
    way = cv2.INTER_AREA if longest > size else cv2.INTER_LINEAR
    picture = cv2.resize(picture, (new_width, new_height), interpolation=way)
    square = np.zeros((size, size, 3), np.uint8)
    top, left = (size - new_height) // 2, (size - new_width) // 2
    square[top:top + new_height, left:left + new_width] = picture
    return square[:, :, ::-1].transpose(2, 0, 1)
