"""Files that are whole or absent: atomic writes, and checkpoints that are checked before use."""
import contextlib
import csv
import hashlib
import io
import json
import os
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch

from common.errors import InputError, reason


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Yields a binary file that takes the name `path` once it is complete and on disk; on an error nothing changes.

    Raises:
        OSError: the disk is full or the folder read-only.
    """
    path = Path(path)
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
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic(path) as file:
        file.write(text.encode())


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a header and rows as CSV, atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        InputError: not readable as JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): restore it, or start anew with another --name") from None


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_named_digest(path: Path) -> None:
    """Check a file against the sha256 prefix in its name (`model-8bb594d6.pth`), where it has one.

    Raises:
        InputError: the file is not the one that its name promises.
    """
    match = re.search(r"-([0-9a-f]{8,64})\.\w+$", Path(path).name)
    if match and not sha256(path).startswith(match[1]):
        raise InputError(f"{path} is damaged: its sha256 does not begin with {match[1]}; fetch it again")


def write_checkpoint(path: Path, value: dict[str, Any]) -> None:
    """Save with `torch.save`, atomically; a reader or a crash sees the old file or the new one, never half."""
    content = io.BytesIO()
    torch.save(value, content)  # in memory first: torch's zip writer turns a full disk into an error of its own
    with atomic(path) as file:
        file.write(content.getbuffer())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The dictionary in a checkpoint, on the CPU, its integrity checked and nothing in it executed.

    Checks every CRC of the zip container (a flipped byte in a tensor would load silently) and unpickles with
    `weights_only=True`.

    Raises:
        InputError: missing, empty, truncated, damaged, malicious, or no checkpoint at all.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist: train first, or give another file")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty: use another checkpoint")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if bad := archive.testzip():
                    raise InputError(f"{path} is damaged (checksum of {bad}): use another checkpoint")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about a foreign pickle before it refuses it; one line is enough
            value = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # torch.load raises nearly every type on foreign bytes
        raise InputError(f"{path} is not a readable checkpoint ({reason(error)}): use another file") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}, not a checkpoint: use another file")
    return value
