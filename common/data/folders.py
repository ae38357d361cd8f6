"""Pictures in class folders: found in any usual layout, brought to one size, decoded once."""
import contextlib
import hashlib
import os
import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn, TextIO

import cv2
import numpy as np
from numpy import ndarray
from tqdm import tqdm

from common.data.splits import Names, Split, as_split
from common.errors import InputError, out_of_memory, reason
from common.files import atomic, read_json, sha256
from common.words import count

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test",
         "val": "val", "valid": "val", "validation": "val"}
SYSTEM_FILES = ("thumbs.db", "__macosx")  # hidden like names that begin with a dot
# A folder with one of these files, and this key in it, is what a command of this project wrote.
OUTPUT = {"recipe.json": "script", "request.json": "ckpt", "ablation.json": "rows"}
RUN, LINK = "run folder", "link to a folder read already"  # what else may be left out
# What decoders print when pixels are lost; after any other warning the picture is whole. Bytes
# before a JPEG's end (0xd9) come after all pixels.
LOST = re.compile("Corrupt JPEG data(?!.*(0xd9|ICC))|Premature end|libpng error")
# Of a JPEG's header: 0xff, filled up with more of it, a kind, a length; 0xda begins the picture.
SEGMENT = re.compile(rb"\xff+[^\xff\xda](..)", re.DOTALL)
DEFAULT_SIZE = 64  # of pictures that are not all square, equal and small
LARGEST_AS_IS = 96


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
    listing, others = _find(folder)
    if not listing:
        return None
    paths = [path for files in listing.values() for _, path in files]
    images, notes = _read_all(folder, paths, size, fit)
    if others:
        notes += (f"{count(others.total(), 'other file')} left out ({in_words(others)})",)
    pools = {}
    ends = np.cumsum([len(files) for files in listing.values()])
    for (part, files), pictures in zip(listing.items(), np.split(images, ends)):
        classes, labels = np.unique([name for name, _ in files], return_inverse=True)
        names = [path[len(os.path.join(folder, "")):] for _, path in files]
        pools[part] = as_split(pictures, labels, _printable(names))
    return pools, _printable(classes), notes


def walk(folder: str | Path) -> tuple[list[str], Counter[str]]:
    """(paths of the pictures in and below a folder, in order; the other files by their suffix).

    The one way in which every command goes through a tree. Links to folders are followed, but each
    folder is read once, and none that holds `folder`. What is hidden is passed over; a folder that
    a command of this project wrote is, too, and counts as one file.

    Raises:
        InputError: a folder that cannot be read.
    """
    found, others = [], Counter()
    seen = set(Path(folder).resolve().parents)
    for place, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        real = Path(place).resolve()
        if real in seen or _is_output(place, files):
            others[LINK if real in seen else RUN] += 1
            folders.clear()
            continue
        seen.add(real)
        folders[:] = _visible(folders)  # the only ones that are walked into
        for name in _visible(files):
            path, suffix = os.path.join(place, name), _suffix(name)
            # A broken link will be named when it is read; a pipe would never end.
            if suffix in SUFFIXES and (os.path.isfile(path) or not os.path.exists(path)):
                found.append(path)
            else:
                others[suffix] += 1
    return sorted(found), others


def in_words(others: Counter[str]) -> str:
    """`12 × .heic, 1 × .txt`, the four most frequent."""
    kinds = [f"{n:,} × {kind}" for kind, n in others.most_common(4)]
    return ", ".join(kinds if len(others) < 5 else [*kinds, "…"])


def _find(folder: Path) -> tuple[dict[str, list[tuple[str, str]]], Counter[str]]:
    """(for each part its pictures: class, path; the other files); no part in an unknown layout."""
    roots, others = _roots(folder)
    listing, classes = {part: [] for part in roots}, set()
    for part, root in roots.items():
        below, files = _top(root)
        others.update(map(_suffix, files))
        for path in below:
            pictures, rest = walk(path)
            others += rest
            if rest[RUN] and not pictures:
                continue  # the folder of the runs is no class
            # A letter and its accent may be one character or two.
            name = unicodedata.normalize("NFC", os.path.basename(path))
            classes.add(name)
            listing[part] += [(name, picture) for picture in pictures]
    if len(classes) < 2 or not any(listing.values()):
        return {}, others
    for part, pairs in listing.items():
        if gone := classes - {name for name, _ in pairs}:
            left_out = f" (left out: {in_words(others)})" if others else ""
            raise InputError(f"{os.path.join(roots[part], min(gone))} holds no picture{left_out}: "
                             f"add some, as {' '.join(SUFFIXES)}, or remove the class wherever it "
                             "is")
        pairs.sort()
        if all(Path(path).stem.isdecimal() for _, path in pairs):
            # CIFAR-10's own index: in its order the split is that of the official batches.
            pairs.sort(key=lambda pair: int(Path(pair[1]).stem))
    return listing, others


def _roots(folder: Path) -> tuple[dict[str, str], Counter[str]]:
    """(for each part the folder of its class folders; what lies beside those)."""
    below, files = _top(folder)
    parts = {}
    for path in below:
        part = PARTS.get(os.path.basename(path).lower())
        if part in parts:
            raise InputError(f"{parts[part]} and {path} mean the same part of the data: keep one, "
                             "and move the other away")
        if part:
            parts[part] = path
    if "train" in parts and len(parts) > 1:
        return parts, Counter(map(_suffix, files)) + Counter(folder=len(below) - len(parts))
    if any(_top(path)[0] for path in parts.values()):
        return {}, Counter()  # half a layout
    return {"train": str(folder)}, Counter()  # and classes may have such names


def _top(folder: str | Path) -> tuple[list[str], list[str]]:
    """(paths of the folders, names of the files) in a folder, in order."""
    _, folders, files = next(os.walk(folder, onerror=_refuse))
    return [os.path.join(folder, name) for name in _visible(folders)], _visible(files)


def _visible(names: list[str]) -> list[str]:
    """The files or folders that are the user's own, not the system's, in order."""
    return sorted(name for name in names
                  if not name.startswith(".") and name.lower() not in SYSTEM_FILES)


def _is_output(folder: str, files: list[str]) -> bool:
    """Whether a command of this project wrote a folder that holds these files."""
    for name in OUTPUT.keys() & set(files):
        with contextlib.suppress(InputError):
            return bool(read_json(Path(folder, name), (OUTPUT[name],)))
    return False


def _suffix(name: str) -> str:
    """A file's suffix in small letters."""
    return os.path.splitext(name)[1].lower() or "without a suffix"


def _refuse(error: OSError) -> NoReturn:
    """Raise InputError for a file or folder that cannot be read."""
    raise InputError(f"{error.filename} cannot be read ({error.strerror}): make it readable, or "
                     "remove it") from None


def _printable(names: Sequence[str]) -> Names:
    """File names as text; bytes that are no UTF-8 become \\xNN."""
    return tuple(os.fsencode(name).decode("utf-8", "backslashreplace") for name in names)


def _read_all(folder: Path, paths: list[str], size: int | None, fit: str) -> tuple[ndarray, Names]:
    """(images (N, 3, S, S) uint8, what there is to say of them), decoded or from the cache."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    place = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    cache = home / "cifar10-study" / f"{place}.npz"  # one file a folder
    key = _key(paths, size, fit)
    # No cache, or a damaged one: decode.
    with contextlib.suppress(Exception), np.load(cache) as stored:
        if stored["key"] == key:
            return stored["images"], tuple(stored["notes"].tolist())
    images, resized = _decode_all(paths, size, fit)
    notes: Names = ()
    if resized:
        side = images.shape[-1]
        notes += (f"{resized:,} of {count(len(paths), 'picture')} resized to {side}×{side} "
                  f"(--fit {fit}); --image-size N gives another size",)
    try:
        with atomic(cache) as file:
            np.savez(file, images=images, notes=notes, key=key)
    except (OSError, RuntimeError) as error:
        notes += (f"decoded pictures are not cached ({reason(error)}): the next run decodes again",)
    return images, notes


def _key(paths: list[str], size: int | None, fit: str) -> str:
    """Hash of the names and bytes of the files, the size, the fit and the decoder."""
    try:
        asked = cv2.__version__, size, fit, paths, list(map(sha256, paths))
    except OSError as error:
        _refuse(error)
    return hashlib.sha256(repr(asked).encode()).hexdigest()


def _decode_all(paths: list[str], size: int | None, fit: str) -> tuple[ndarray, int]:
    """(images (N, 3, S, S) uint8, how many of them were resized), decoded in parallel."""
    # OpenCV works outside of Python's lock, so threads are enough.
    with _captured_stderr() as (complaints, terminal), ThreadPoolExecutor() as pool:
        height, width, _ = _decode(paths[0]).shape
        side = size or (width if height == width <= LARGEST_AS_IS else DEFAULT_SIZE)
        images = np.empty((len(paths), 3, side, side), np.uint8)

        def read(i: int) -> bool:
            picture = _decode(paths[i])
            images[i] = fit_picture(picture, side, fit)
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
        InputError: it cannot be read, or the decoder lost pixels; the message names the file.
    """
    with _captured_stderr() as (complaints, _):
        picture = _decode(path)
    if complaints:
        raise InputError(f"{path} is damaged ({complaints[0]}): remove or replace it")
    return fit_picture(picture, size, fit)


@contextlib.contextmanager
def _captured_stderr() -> Iterator[tuple[list[str], TextIO]]:
    """(lines printed to stderr that tell of lost pixels, known after the block; the terminal).

    C decoders print their warnings and go on.
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
            complaints += filter(LOST.search, lines)


def _decode(path: str | Path) -> ndarray:
    """One picture as (H, W, 3) uint8, blue first."""
    try:
        content = np.fromfile(path, np.uint8)
        picture = cv2.imdecode(content, cv2.IMREAD_COLOR)
    except OSError as error:
        _refuse(error)
    except (cv2.error, MemoryError) as error:  # an empty file, or one that announces an absurd size
        if out_of_memory(error):
            raise InputError(f"{path} needs more memory than there is: make it smaller, or remove "
                             "it") from None
        picture = None
    if picture is None or not _is_whole(content.tobytes()):
        raise InputError(f"{path} is not a readable image: remove or replace it")
    return picture


def _is_whole(content: bytes) -> bool:
    """Whether a picture has its end, if it is a JPEG: some decoders fill up what was cut off with
    grey, and do not say so."""
    place = 2
    while segment := SEGMENT.match(content, place):  # a thumbnail in it has an end of its own
        place = segment.start(1) + int.from_bytes(segment[1], "big")
    return not content.startswith(b"\xff\xd8") or content.find(b"\xff\xd9", place) >= 0


def fit_picture(picture: ndarray, size: int, fit: str) -> ndarray:
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
