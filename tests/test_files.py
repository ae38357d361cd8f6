"""Files that are whole or absent, and what is said of those that others wrote."""
import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from common.errors import InputError
from common.files import (atomic, read_checkpoint, read_json, sha256, write_checkpoint, write_csv,
                          write_json, write_text)


def test_an_error_changes_nothing_and_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="No space left") as caught:
        with atomic(path) as file:
            file.write(b"new")
            raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(path) and path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_place_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as caught:
        write_text(tmp_path / "file" / "below" / "a.txt", "text")
    assert str(tmp_path / "file") in caught.value.filename


def test_names_of_any_bytes_can_be_written(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ("name", "label"), [("猫 $5,\n", 1), ("caf\udce9", 2)])
    text = (tmp_path / "a.csv").read_text(encoding="utf-8")
    assert text == 'name,label\n"猫 $5,\n",1\ncaf\\udce9,2\n'
    write_json(tmp_path / "a.json", {"caf\udce9": "猫"})
    assert read_json(tmp_path / "a.json") == {"caf\udce9": "猫"}


@pytest.mark.parametrize("content, said", [
    (b"", "cannot be read"), (b"{", "cannot be read"), (b"\xff\xfe", "cannot be read"),
    (b"[" * 100_000, "cannot be read"), (b"[1]", "holds a list"), (b"null", "holds a NoneType"),
    (b"{}", "lacks 'recipe'"), (b'{"recipe": 1}', "lacks 'split_hash'")])
def test_foreign_json_is_one_line_that_names_it(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "recipe.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        read_json(path, keys=("recipe", "split_hash"))
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_json_that_is_absent_or_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.json"):
        with pytest.raises(InputError, match="cannot be read"):
            read_json(path)


class Malicious:
    """Makes a folder if it is ever unpickled freely."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("owned",)


def flip_a_bit(path: Path) -> None:
    """A checkpoint with one bit of a tensor changed."""
    write_checkpoint(path, {"weights": torch.ones(1000)})
    content = bytearray(path.read_bytes())
    content[content.index(b"\0\0\x80?")] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("spoil, said", [
    (lambda path: None, "cannot be read.*No such file"),
    (lambda path: path.mkdir(), "cannot be read.*Is a directory"),
    (lambda path: path.write_bytes(b""), "cannot be read"),
    (lambda path: path.write_bytes(b"<html>404</html>"), "cannot be read"),
    (lambda path: path.write_text(json.dumps({"weights": 1})), "cannot be read"),
    (lambda path: torch.save({"weights": Malicious()}, path), "cannot be read"),
    (flip_a_bit, "damaged: checksum"),
    (lambda path: torch.save([1, 2], path), "holds a list"),
    (lambda path: torch.save({}, path), "lacks 'weights'"),
    (lambda path: torch.save({"weights": 1}, path), "lacks 'probe': it is of another kind, such"),
])
def test_a_foreign_checkpoint_is_one_line_that_names_it(tmp_path: Path, spoil, said: str,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "best.pt"
    spoil(path)
    with pytest.raises(InputError, match=said) as caught:
        read_checkpoint(path, keys=("weights", "probe"))
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    assert {*os.listdir()} <= {"best.pt"}, "something was executed"


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.pt", {"weights": torch.arange(5), "name": "猫"})
    value = read_checkpoint(tmp_path / "a.pt", keys=("weights", "name"))
    assert value["weights"].tolist() == [0, 1, 2, 3, 4] and value["name"] == "猫"


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(3 << 20) + b"end")
    assert sha256(tmp_path / "a") == hashlib.sha256(bytes(3 << 20) + b"end").hexdigest()
