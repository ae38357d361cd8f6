"""Files that are whole or absent: atomic writes, and what is checked when it is read back."""
import csv
import hashlib
import io
import json
import os
import socket
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from common.errors import InputError, reason

TIMEOUT_S = 8
Json = dict[str, Any]  # an object of a JSON file, or what a checkpoint holds
# Files whose publishers put the first digits of the sha256 into the name.
PUBLISHED = ("efficientnet-b2-8bb594d6.pth", "efficientnet-lite2-9656183e.pth",
             "resnet18-f37072fd.pth")


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Yields a binary file that becomes `path` once it is on disk; an error changes nothing.

    Raises:
        OSError: the disk is full or the folder read-only; it names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically; names whose bytes are no UTF-8 are escaped."""
    with atomic(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a header and rows as CSV, atomically."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_text(path, text.getvalue())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path, keys: Iterable[str] = ()) -> Json:
    """The object in a JSON file, which has at least `keys`.

    Raises:
        InputError: not readable as JSON, no object, or without one of the keys.
    """
    return _read(path, keys, lambda: json.loads(path.read_text(encoding="utf-8")))


def _read(path: Path, keys: Iterable[str], load: Callable[[], Any]) -> Json:
    """What `load` makes of a file, which must be a dictionary with at least `keys`."""
    try:
        value = load()
    except Exception as error:  # torch.load raises nearly every type on foreign bytes
        raise InputError(f"{path} cannot be read ({reason(error)}): restore it, train again, "
                         "or name another file") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}, not a checkpoint or a run's "
                         "record: name another file")
    for key in keys:
        if key not in value:
            raise InputError(f"{path} lacks {key!r}: it is of another kind, such as a run's "
                             "last.pt, or another program's; name another file")
    return value


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file of any size."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:  # sixty thousand small files, too
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def check_named_digest(path: Path) -> None:
    """Check a published file against the sha256 prefix in its name; other names are only names.

    Raises:
        InputError: the file is not the one that its name promises.
    """
    prefix = path.stem[-8:]
    if path.name in PUBLISHED and not sha256(path).startswith(prefix):
        raise InputError(f"{path} is damaged: its sha256 is not {prefix}…; fetch it again")


@contextmanager
def downloading(what: str, ways: str) -> Iterator[None]:
    """Inside the block a connection may be silent for 8 seconds; a download that fails is one line.

    Args:
        what: subject of that line, ways: the other ways to get it.
    """
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        yield
    except Exception as error:  # of sockets, HTTP, archives and digests
        raise InputError(f"{what} cannot be downloaded ({reason(error)}): {ways}") from None
    finally:
        socket.setdefaulttimeout(None)


def write_checkpoint(path: Path, value: Json) -> None:
    """Save with `torch.save`, atomically: readers and crashes see the old file or the new."""
    import torch

    content = io.BytesIO()
    torch.save(value, content)  # in memory: torch's zip writer has its own words for a full disk
    with atomic(path) as file:
        file.write(content.getbuffer())


def read_checkpoint(path: Path, keys: Iterable[str] = ()) -> Json:
    """The dictionary in a checkpoint, on the CPU, its integrity checked and nothing in it executed.

    Checks every CRC of the zip container, since a flipped byte in a tensor would load silently.

    Raises:
        InputError: missing, empty, truncated, damaged, malicious, no checkpoint, or without a key.
    """
    import torch

    def load() -> Any:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if part := archive.testzip():
                    raise ValueError(f"damaged: checksum of {part}")
        return torch.load(path, map_location="cpu", weights_only=True)

    return _read(path, keys, load)
