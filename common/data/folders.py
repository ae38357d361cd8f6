"""Pictures in class folders: found in any usual layout, brought to one size, decoded once."""
import contextlib
import hashlib
import os
import re
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import filterfalse, product
from pathlib import Path
from typing import NoReturn

import cv2
import numpy as np
from numpy import ndarray
from tqdm import tqdm

from common.data.splits import Names, Split, as_split
from common.errors import InputError, reason
from common.files import atomic, sha256
from common.words import count, short

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test",
         "val": "val", "valid": "val", "validation": "val"}
# train/ant/…: a part of the data, and a class in it.
IN_PART = re.compile(f"(?ai)({'|'.join(PARTS)})/([^/]+)/")
HIDDEN = re.compile(r"(?i)\.|(thumbs\.db|__macosx)$")  # the system's own, and not the user's
# A folder with one of these files, and this key in it, is what a command of this project wrote.
OUTPUT = {"recipe.json": "script", "request.json": "ckpt", "ablation.json": "rows"}
RUN, LINK = "run folder", "link to a folder read already"  # what else may be left out
# What decoders print when pixels are lost; bytes before a JPEG's end (0xd9) come after all pixels.
LOST = re.compile("(?:Corrupt JPEG data(?!.*(?:0xd9|ICC))|Premature end|libpng error).*")
BEGIN, END = b"\xff\xd8\xff", b"\xff\xd9"  # of a JPEG
DEFAULT_SIZE = 64  # of pictures that are not all square, equal and small
LARGEST_AS_IS = 96


def read_tree(folder: Path, size: int | None,
              fit: str) -> tuple[dict[str, Split], Names, Names] | None:
    """(pools "train", "test", "val", class names, what there is to say); None: no known layout.

    Args:
        size: height and width for every picture; None: small equal squares stay, others get 64.
        fit: how, see `read_picture`.

    Raises:
        InputError: a folder or picture that cannot be used, by its name.
    """
    folder = folder.resolve()  # however it was named, its cache is the same
    rows, others = _find(folder)
    if not rows:
        return None
    paths = [os.path.join(folder, name) for _, _, name in rows]
    images, notes = _read_all(folder, paths, size, fit)
    if others:
        notes += (f"{count(others.total(), 'other file')} left out ({in_words(others)})",)
    parts, classes, names = np.array(rows).T
    classes, labels = np.unique(classes, return_inverse=True)
    pools = {}
    for part in set(parts):
        here = parts == part
        pools[part] = as_split(images[here], labels[here], _printable(names[here]))
    return pools, _printable(classes), notes


def walk(folder: str | Path) -> tuple[list[str], Counter[str]]:
    """(paths of the pictures in and below a folder, in order; the other files by their suffix).

    The one way in which every command goes through a tree. Links to folders are followed, after all
    that is no link, but each folder is read once, and none that holds `folder`. What is hidden is
    passed over; a folder that a command of this project wrote is, too, and counts as one file.

    Raises:
        InputError: a folder that cannot be read.
    """
    found, others, roots = [], Counter(), [folder]
    seen = set(Path(folder).resolve().parents)
    for root in roots:  # more are added below
        for place, folders, files in os.walk(root, onerror=_refuse):
            real = Path(place).resolve()
            written = any(f'"{key}":' in Path(place, name).read_text(errors="replace")
                          for name, key in OUTPUT.items() if name in files)
            if real in seen or written:
                others[RUN if written else LINK] += 1
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(filterfalse(HIDDEN.match, folders))  # the only ones walked into
            inside = (os.path.join(place, name) for name in folders)
            roots += filter(os.path.islink, inside)
            for name in filterfalse(HIDDEN.match, files):
                path, suffix = os.path.join(place, name), Path(name).suffix.lower()
                # A broken link will be named when it is read; a pipe would never end.
                if suffix in SUFFIXES and (os.path.isfile(path) or os.path.islink(path)):
                    found.append(path)
                else:
                    others[suffix or "without a suffix"] += 1
    return sorted(found), others


def in_words(others: Counter[str]) -> str:
    """`12 × .heic, 1 × .txt`, the most frequent first."""
    return short(", ".join(f"{n:,} × {kind}" for kind, n in others.most_common()), 80)


def _find(folder: Path) -> tuple[list[tuple[str, str, str]], Counter[str]]:
    """(of each picture its part, class and path in `folder`, in order; the other files); no picture
    in an unknown layout. One that lies in no class is an other file."""
    paths, others = walk(folder)
    names = [Path(path).relative_to(folder).as_posix() for path in paths]
    parts = {PARTS[match[1].lower()] for match in map(IN_PART.match, names) if match}
    if parts and not parts > {"train"}:
        return [], others  # half a layout
    rows = []
    for name in names:
        if match := IN_PART.match(name if parts else f"train/{name}"):
            # A letter and its accent may be one character or two.
            label = unicodedata.normalize("NFC", match[2])
            rows.append((PARTS[match[1].lower()], label, name))
        else:
            others[Path(name).suffix.lower()] += 1
    classes = {label for _, label, _ in rows}
    if len(classes) < 2:
        return [], others
    gone = set(product(parts, classes)).difference(row[:2] for row in rows)
    if not parts:  # then each folder is a class, but for the program's own
        below = [path for path in folder.iterdir() if path.is_dir() and not HIDDEN.match(path.name)
                 and unicodedata.normalize("NFC", path.name) not in classes]
        gone = {(path.name,) for path in below if not walk(path)[1][RUN]}
    if gone:
        left_out = f" (left out: {in_words(others)})" if others else ""
        raise InputError(f"{folder.joinpath(*min(gone))} holds no picture{left_out}: add some, as "
                         f"{' '.join(SUFFIXES)}, or remove the class wherever it is")
    rows.sort()
    # Files that are all numbers are CIFAR-10's index: in its order the official split comes out.
    named = {part for part, _, name in rows if not Path(name).stem.isdecimal()}
    rows.sort(key=lambda row: row[0] not in named and int(Path(row[2]).stem))
    return rows, others


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
    try:
        asked = cv2.__version__, size, fit, paths, list(map(sha256, paths))
    except OSError as error:
        _refuse(error)
    key = hashlib.sha256(repr(asked).encode()).hexdigest()
    # No cache, or a damaged one: decode.
    with contextlib.suppress(Exception), np.load(cache) as stored:
        if stored["key"] == key:
            return stored["images"], tuple(stored["notes"].tolist())
    images, notes = _decode_all(paths, size, fit)
    try:
        with atomic(cache) as file:
            np.savez(file, images=images, notes=notes, key=key)
    except (OSError, RuntimeError) as error:
        notes += (f"decoded pictures are not cached ({reason(error)}): the next run decodes again",)
    return images, notes


def _decode_all(paths: list[str], size: int | None, fit: str) -> tuple[ndarray, Names]:
    """(images (N, 3, S, S) uint8, a note where some were resized), decoded in parallel."""
    # OpenCV works outside of Python's lock, so threads are enough.
    with _captured_stderr() as complaints, ThreadPoolExecutor() as pool:
        height, width, _ = _decode(paths[0]).shape
        side = size or (width if height == width <= LARGEST_AS_IS else DEFAULT_SIZE)

        def read(path: str) -> tuple[ndarray, bool]:
            picture = _decode(path)
            return fit_picture(picture, side, fit), picture.shape[:2] != (side, side)

        done = pool.map(read, paths)
        # Not to stderr, which is captured.
        bar = tqdm(done, "decoding", len(paths), disable=None, file=sys.stdout)
        pictures, resized = zip(*bar)
    if complaints:
        for path in paths:  # once more, one by one, to find the file
            read_picture(path, side, fit)
    images = np.array(pictures)
    if not any(resized):
        return images, ()
    if side != (size or DEFAULT_SIZE):  # not all are like the first
        return _decode_all(paths, DEFAULT_SIZE, fit)
    return images, (f"{sum(resized):,} of {count(len(paths), 'picture')} resized to {side}×{side} "
                    f"(--fit {fit}); --image-size N gives another size",)


def read_picture(path: str | Path, size: int, fit: str) -> ndarray:
    """One picture as (3, size, size) uint8 RGB.

    Rotated as its EXIF says, grey spread over three channels, 16 bits cut to 8, alpha dropped.

    Args:
        fit: "pad" fills up with black, "crop" cuts out the centre, "stretch" distorts the picture.

    Raises:
        InputError: it cannot be read, or the decoder lost pixels; the message names the file.
    """
    with _captured_stderr() as complaints:
        picture = _decode(path)
    if complaints:
        raise InputError(f"{path} is damaged ({complaints[0]}): remove or replace it")
    return fit_picture(picture, size, fit)


@contextlib.contextmanager
def _captured_stderr() -> Iterator[list[str]]:
    """Lines on stderr that tell of lost pixels, known after the block, as decoders go on."""
    complaints: list[str] = []
    with tempfile.TemporaryFile() as printed, open(os.dup(2), "w") as terminal:
        os.dup2(printed.fileno(), 2)
        try:
            yield complaints
        finally:
            os.dup2(terminal.fileno(), 2)
            printed.seek(0)
            complaints += LOST.findall(printed.read().decode(errors="replace"))


def _decode(path: str | Path) -> ndarray:
    """One picture as (H, W, 3) uint8, blue first."""
    picture = None
    try:
        content = Path(path).read_bytes()
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except OSError as error:
        _refuse(error)
    except (cv2.error, MemoryError, ValueError):  # of an absurd size, or an empty file
        pass
    # Some decoders fill up what was cut off a JPEG with grey and do not say so, but then an end is
    # missing; a thumbnail in it has a beginning and an end of its own.
    cut_off = content.startswith(BEGIN) and content.count(BEGIN) > content.count(END)
    if picture is None or cut_off:
        raise InputError(f"{path} is not a readable image, or too large for the memory: remove or "
                         "replace it")
    return picture


def fit_picture(picture: ndarray, size: int, fit: str) -> ndarray:
    """(3, size, size), red first, of an (H, W, 3) picture, blue first; see `read_picture`."""
    sides = picture.shape[:2]
    # Shrinking by area averages all pixels; sampling a few of them would give noise.
    way = cv2.INTER_AREA if max(sides) > size else cv2.INTER_LINEAR
    filled = size, size  # height and width of what is not black
    if fit == "crop":
        picture = picture[tuple(_middle(side, min(sides)) for side in sides)]
    elif fit == "pad":
        filled = tuple(max(1, round(side * size / max(sides))) for side in sides)
    square = np.zeros((size, size, 3), np.uint8)
    middle = tuple(_middle(size, side) for side in filled)
    square[middle] = cv2.resize(picture, filled[::-1], interpolation=way)
    return square[:, :, ::-1].transpose(2, 0, 1)


def _middle(length: int, part: int) -> slice:
    """The middle `part` of so many pixels."""
    start = (length - part) // 2
    return slice(start, start + part)
