"""Class folders: every layout, pictures of any size and kind, what is damaged, and the cache."""
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy import ndarray

from common.data import folders
from common.data.folders import read_picture
from common.errors import InputError
from conftest import ROOT, write_image
from photos import (LAYOUTS, SUBJECTS, draw_photos, in_source_order, load, photo, refusal,
                    turned_by_exif)

Tree = Callable[..., Path]
BLACK = np.zeros((3, 32, 32), np.uint8)


def colours(*shades: tuple[int, int, int]) -> ndarray:
    """(3, 1, N) a row of pixels of these colours."""
    return np.array(shades, np.uint8).T[:, None, :]


def png(path: Path, picture: ndarray) -> Path:
    """Write what OpenCV is given, channels and depth as they are."""
    path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    return path


# Layouts.


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_classes_and_its_own_parts(layout: str, tmp_path: Path) -> None:
    splits = load(draw_photos(tmp_path / "photos", layout, each=40))
    sizes = [len(splits.train), len(splits.val), len(splits.test)]
    assert sizes == {"flat": [84, 12, 24], "train and test": [81, 9, 30],
                     "train and val": [72, 30, 18], "all three": [60, 30, 30]}[layout]
    assert splits.classes == SUBJECTS and splits.image_size == 64
    for split in (splits.train, splits.val, splits.test):
        assert len(set(torch.bincount(split.labels).tolist())) == 1, "not stratified"
        for name, label in zip(split.names, split.labels.tolist()):
            assert splits.classes[label] in name.split("/")
            assert (tmp_path / "photos" / name).is_file()
    resized, *others = splits.notes
    assert resized.startswith("120 of 120 pictures resized to 64×64 (--fit pad); --image-size N")
    assert any("split here" in note for note in others) == (layout in ("flat", "train and val"))
    names = {*splits.train.names, *splits.val.names, *splits.test.names}
    assert len(names) == 120, "a picture is in two parts"


def test_a_val_folder_makes_val_size_a_flag_without_effect(tmp_path: Path) -> None:
    folder = draw_photos(tmp_path, "all three", each=8)
    assert "--val-size 6 has no effect: the data has a val folder" in refusal(folder, val_size=6)


@pytest.mark.parametrize(("count", "size"), [(2, 32), (3, 28), (12, 17)])
def test_equal_square_pictures_are_taken_as_they_are(count: int, size: int,
                                                     make_tree: Tree) -> None:
    names = tuple(f"class {chr(ord('z') - k)}" for k in range(count))
    splits = load(make_tree(names, train=3, test=2, size=size), val_size=count)
    assert splits.classes == tuple(sorted(names)) and splits.image_size == size
    for split, each in ((splits.train, 2), (splits.val, 1), (splits.test, 2)):
        assert split.images.shape == (each * count, 3, size, size)
        assert torch.bincount(split.labels).tolist() == [each] * count
    assert splits.source == f"class folders, {count} classes"
    assert not any("resized" in note for note in splits.notes)


@pytest.mark.parametrize("odd", ["train/bee/image2.png", "train/ant/image0.png"])
def test_one_picture_of_another_size_brings_all_to_64(odd: str, make_tree: Tree) -> None:
    folder = make_tree()
    write_image(folder / odd, np.zeros((3, 32, 40), np.uint8))
    splits = load(folder)
    assert splits.image_size == 64 and splits.notes[0].startswith("18 of 18 pictures resized")


def test_image_size_and_fit_are_followed(make_tree: Tree) -> None:
    splits = load(make_tree(), image_size=48, fit="crop")
    assert splits.image_size == 48 and "18 of 18 pictures resized to 48×48 (--fit crop)" \
        in splits.notes[0]
    assert not any("resized" in note for note in load(make_tree(), image_size=32).notes)


def test_hidden_files_are_passed_over_and_others_counted(make_tree: Tree) -> None:
    folder = make_tree()
    ant = folder / "train" / "ant"
    for place in (ant, folder / "train", folder):
        for hidden in (".ipynb_checkpoints/a.png", "._image0.png", "__MACOSX/ant/b.png"):
            write_image(place / hidden, BLACK)
        (place / "Thumbs.db").write_text("of the system")
    whole = load(folder, val_size=3)
    assert whole.classes == ("ant", "bee", "cow") and len(in_source_order(whole)[0]) == 12
    assert not any("other" in note for note in whole.notes)
    (ant / "notes.txt").write_text("not a picture")
    assert "1 other file left out" in load(folder, val_size=3).notes


def test_pictures_in_nested_folders_are_their_class_s(make_tree: Tree) -> None:
    folder = make_tree()
    nested = write_image(folder / "train" / "bee" / "2024" / "may" / "image0.png", BLACK)
    splits = load(folder, val_size=3)
    images, labels = in_source_order(splits)
    assert torch.bincount(labels).tolist() == [4, 5, 4] and (images[4] == 0).all()
    names = dict(zip(splits.train.index.tolist() + splits.val.index.tolist(),
                     splits.train.names + splits.val.names))
    assert names[4] == nested.relative_to(folder).as_posix()


def test_named_files_are_in_order_of_class_and_name(make_tree: Tree) -> None:
    folder = make_tree(("b", "a"), train=3)
    for place, (name, i) in enumerate([(name, i) for name in "ab" for i in range(3)]):
        picture = np.full((3, 32, 32), place, np.uint8)
        write_image(folder / "train" / name / f"image{i}.png", picture)
    images, labels = in_source_order(load(folder, val_size=2))
    assert images[:, 0, 0, 0].tolist() == list(range(6)) and labels.tolist() == [0] * 3 + [1] * 3


def test_a_flat_folder_may_have_a_class_called_train(tmp_path: Path) -> None:
    for name in ("train", "ship", "plane"):
        for i in range(6):
            write_image(tmp_path / name / f"{i}.bmp", BLACK)
    assert load(tmp_path).classes == ("plane", "ship", "train")


def test_names_of_any_kind_are_text(make_tree: Tree, tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9 $5_^")
    folder = make_tree(("日本", odd, "10%"))
    splits = load(folder, val_size=3)
    assert splits.classes == ("10%", "caf\\xe9 $5_^", "日本")
    text = "\n".join([*splits.classes, *splits.notes, *splits.train.names])
    assert text.encode().decode() == text, "cannot be printed"
    (folder / "train" / odd / "image0.png").write_text("no picture")
    assert "is not a readable image" in refusal(folder).encode(errors="backslashreplace").decode()


UNKNOWN: dict[str, Callable[[Path], object]] = {
    "does not exist": lambda folder: folder.rmdir(),
    "is no folder": lambda folder: (folder.rmdir(), folder.write_text("")),
    "holds nothing": lambda folder: None,
    "holds a.png, b.txt": lambda folder: (write_image(folder / "a.png", BLACK),
                                          (folder / "b.txt").write_text("")),
    "holds empty, more": lambda folder: [(folder / name).mkdir() for name in ("empty", "more")],
    "holds photos": lambda folder: write_image(folder / "photos" / "a.png", BLACK),
    "holds train": lambda folder: [write_image(folder / "train" / name / "a.png", BLACK)
                                   for name in ("ant", "bee")],
    "holds 0, 1, 2, 3, …": lambda folder: [(folder / str(i)).mkdir() for i in range(9)],
}  # fmt: skip


@pytest.mark.parametrize("words", UNKNOWN)
def test_a_data_dir_of_no_known_layout_is_one_line_and_no_download(
        words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.data.sources.download_url", lambda *_: pytest.fail("a download"))
    folder = tmp_path / "mine"
    folder.mkdir()
    UNKNOWN[words](folder)
    line = refusal(folder, offline=False)
    assert line.startswith(f"--data-dir {folder} {words}: known are cifar-10-batches-py")
    assert "train and test and/or val" in line and "class folders alone" in line


# Pictures.


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".PNG", ".JPG"])
def test_every_suffix_gives_red_green_blue(suffix: str, make_tree: Tree) -> None:
    folder = make_tree(("a", "b"), suffix=suffix)
    colour = np.array([250, 130, 10], np.uint8).reshape(3, 1, 1).repeat(32, 1).repeat(32, 2)
    write_image(folder / "test" / "b" / f"image0{suffix}", colour)
    image = load(folder).test.images[2].numpy().astype(int)
    assert np.abs(image - colour).max() <= (3 if suffix.lower().startswith(".j") else 0)


def test_each_fit_to_the_pixel(tmp_path: Path) -> None:
    """A picture of four columns and two rows: red, green, blue, white above their halves."""
    above = colours((200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 200))
    picture = np.concatenate([above, above // 2], 1)
    path = write_image(tmp_path / "a.png", picture)
    padded = np.zeros((3, 4, 4), np.uint8)
    padded[:, 1:3] = picture
    assert np.array_equal(read_picture(path, 4, "pad"), padded), "nothing of it may be lost"
    assert np.array_equal(read_picture(path, 2, "crop"), picture[:, :, 1:3])
    # Each pixel of the result is the mean of the area that it covers.
    area = picture.reshape(3, 2, 2, 2).mean(3)
    assert np.array_equal(read_picture(path, 2, "stretch"), area)
    upright = write_image(tmp_path / "b.png", picture.transpose(0, 2, 1))
    for size, fit in ((4, "pad"), (2, "crop"), (2, "stretch")):
        turned = read_picture(path, size, fit).transpose(0, 2, 1)
        assert np.array_equal(read_picture(upright, size, fit), turned)


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("shape", [(1, 500), (500, 1), (3, 3), (201, 200)])
def test_any_shape_becomes_the_asked_square(shape: tuple[int, int], fit: str,
                                            tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", np.full((3, *shape), 9, np.uint8))
    picture = read_picture(path, 16, fit)
    assert picture.shape == (3, 16, 16) and picture.dtype == np.uint8 and picture.max() == 9
    assert (picture == 0).any() == (fit == "pad" and max(shape) > 2 * min(shape))


def test_exif_grey_alpha_and_16_bits_are_read_as_seen(tmp_path: Path) -> None:
    rng = np.random.RandomState(0)
    image = cv2.resize(rng.randint(0, 256, (4, 6, 3)).astype(np.uint8), (48, 32))
    jpeg = cv2.imencode(".jpg", image)[1].tobytes()
    plain, turned = tmp_path / "plain.jpg", tmp_path / "turned.jpg"
    plain.write_bytes(jpeg)
    turned.write_bytes(turned_by_exif(jpeg))
    upright = np.rot90(read_picture(plain, 48, "pad"), -1, (1, 2))
    assert np.array_equal(read_picture(turned, 48, "pad"), upright)

    colour = read_picture(png(tmp_path / "colour.png", image), 48, "pad")
    alpha = np.dstack([image, rng.randint(0, 256, image.shape[:2]).astype(np.uint8)])
    assert np.array_equal(read_picture(png(tmp_path / "alpha.png", alpha), 48, "pad"), colour)
    deep = image.astype(np.uint16) * 257
    assert np.array_equal(read_picture(png(tmp_path / "deep.png", deep), 48, "pad"), colour)
    grey = read_picture(png(tmp_path / "grey.png", image[:, :, 0]), 48, "pad")
    assert np.array_equal(grey, np.repeat(colour[2:], 3, 0))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def _flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)


def _broken_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.png")


def _corrupt_jpeg(path: Path) -> None:
    """A JPEG that OpenCV decodes, grey from the middle on, with no more than a warning."""
    picture = np.random.RandomState(0).randint(0, 256, (100, 100, 3)).astype(np.uint8)
    content = bytearray(cv2.imencode(".jpg", picture)[1].tobytes())
    middle = len(content) // 2
    content[middle:middle + 40] = b"\xff" * 40
    path.with_name("image1.jpg").write_bytes(content)


FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "class missing in test": ("test/bee", lambda path: path.rename(path / "../../gone"),
                              "test/bee cannot be read (No such file or directory): train, val"),
    "class missing in train": ("train/cow", lambda path: path.rename(path / "../../gone"),
                               "train/cow cannot be read (No such file or directory): train, val"),
    "empty class": ("test/bee", lambda path: [file.unlink() for file in path.iterdir()],
                    "test/bee holds no picture"),
    "text": ("train/cow/image3.png", lambda path: path.write_text("this is not an image\n"),
             "train/cow/image3.png is not a readable image"),
    "text first": ("train/ant/image0.png", lambda path: path.write_text("this is not an image\n"),
                   "train/ant/image0.png is not a readable image"),
    "zero bytes": ("train/bee/image1.png", lambda path: path.write_bytes(b""),
                   "train/bee/image1.png is not a readable image"),
    "truncated": ("test/bee/image1.png", _truncate, "test/bee/image1.png is not a readable image"),
    "byte flipped": ("test/bee/image1.png", _flip_a_byte,
                     "test/bee/image1.png is not a readable image"),
    "warned of": ("test/bee/image1.png", _corrupt_jpeg,
                  "test/bee/image1.jpg is damaged (Corrupt JPEG data"),
    "broken link": ("train/bee/image1.png", _broken_link, "train/bee/image1.png cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_tree_is_one_line_naming_the_place(
        fault: str, make_tree: Tree, capfd: pytest.CaptureFixture[str]) -> None:
    place, damage, message = FAULTS[fault]
    folder = make_tree()
    damage(folder / place)
    assert refusal(folder, image_size=32).startswith(f"{folder}/{message}")
    assert capfd.readouterr().err == "", "a decoder spoke for itself"
    assert not list(folder.parent.rglob("*.npz")), "a faulty tree was cached"


def test_one_picture_is_refused_by_its_name_too(tmp_path: Path) -> None:
    path = tmp_path / "image1.png"
    _corrupt_jpeg(path)
    with pytest.raises(InputError, match="image1.jpg is damaged .Corrupt JPEG data"):
        read_picture(path.with_name("image1.jpg"), 32, "pad")
    with pytest.raises(InputError, match="image1.png cannot be read .No such file"):
        read_picture(path, 32, "pad")


def test_a_folder_that_may_not_be_read_is_named(make_tree: Tree,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    folder, scan = make_tree(), os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("train/bee"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)
    monkeypatch.setattr(os, "scandir", refuse)
    line = refusal(folder)
    assert line.startswith(f"{folder}/train/bee cannot be read (Permission denied)")
    assert "readable" in line


def test_the_bar_counts_every_picture_once(make_tree: Tree,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []

    def bar(done: object, description: str, total: int, **_: object) -> list:
        done = list(done)
        counts.append((len(done), total))
        return done
    monkeypatch.setattr(folders, "tqdm", bar)
    load(make_tree())
    assert counts == [(18, 18)]


# The cache of decoded trees.


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files decoded since the test began."""
    seen, decode = [], folders._decode
    monkeypatch.setattr(folders, "_decode", lambda path: (seen.append(path), decode(path))[1])
    return seen


def cache_file(tmp_path: Path) -> Path:
    """The one file in the cache."""
    [path] = (tmp_path / "cache").rglob("*.*")
    return path


def test_the_second_load_decodes_nothing_and_is_the_same(make_tree: Tree, decoded: list[str],
                                                         tmp_path: Path) -> None:
    folder = make_tree(size=100)
    first = load(folder, val_size=3)
    assert cache_file(tmp_path).parent == tmp_path / "cache" / "cifar10-study"
    decoded.clear()
    again = load(folder, val_size=3)
    assert not decoded and first.notes == again.notes and "18 of 18" in first.notes[0]
    assert (first.identity, first.split_hash) == (again.identity, again.split_hash)


CHANGES: dict[str, Callable[[Path], object]] = {
    "added": lambda folder: write_image(folder / "train" / "bee" / "new.png", BLACK),
    "removed": lambda folder: (folder / "test" / "bee" / "image1.png").unlink(),
    "moved": lambda folder: (folder / "train/bee/image0.png").rename(folder / "train/ant/new.png"),
    "replaced": lambda folder: write_image(folder / "train" / "cow" / "image0.png", BLACK),
    "touched": lambda folder: os.utime(folder / "train" / "cow" / "image0.png", (1, 1)),
    "class renamed": lambda folder: [(folder / half / "cow").rename(folder / half / "emu")
                                     for half in ("train", "test")],
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_tree_is_decoded_again(change: str, make_tree: Tree, decoded: list[str],
                                         tmp_path: Path) -> None:
    folder = make_tree()
    load(folder)
    decoded.clear()
    CHANGES[change](folder)
    changed = load(folder)
    assert set(map(Path, decoded)) == set(folder.rglob("*.png"))
    assert changed.classes[-1] == ("emu" if change == "class renamed" else "cow")
    cache_file(tmp_path)
    decoded.clear()
    assert load(folder).identity == changed.identity and not decoded


def test_another_size_or_fit_is_decoded_again(make_tree: Tree, decoded: list[str]) -> None:
    folder = make_tree()
    for asked in ({}, {"image_size": 48}, {"image_size": 48, "fit": "crop"}, {}):
        decoded.clear()
        load(folder, **asked)
        assert len(set(decoded)) == 18, asked


@pytest.mark.parametrize("damage", [
    lambda path: path.write_text("text"), _truncate, _flip_a_byte,
    lambda path: path.write_bytes(b""), lambda path: np.savez(path, a=1)])
def test_a_damaged_cache_is_decoded_again(damage: Callable[[Path], object], make_tree: Tree,
                                          decoded: list[str], tmp_path: Path) -> None:
    folder = make_tree()
    first = load(folder)
    damage(cache_file(tmp_path))
    decoded.clear()
    assert load(folder).identity == first.identity and len(set(decoded)) == 18
    decoded.clear()
    load(folder)
    assert not decoded, "the damaged cache was not replaced"


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_a_cache_is_never_unpickled(make_tree: Tree, decoded: list[str], tmp_path: Path) -> None:
    folder, marker = make_tree(), tmp_path / "marker"
    load(folder)
    np.savez(cache_file(tmp_path), key=np.array([Payload(marker)]))
    with np.load(cache_file(tmp_path), allow_pickle=True) as stored:
        assert stored["key"] is not None and marker.exists(), "a harmless payload shows nothing"
    marker.unlink()
    decoded.clear()
    load(folder)
    assert decoded and not marker.exists()


def test_a_cache_that_cannot_be_written_is_only_a_note(
        make_tree: Tree, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder, blocked = make_tree(), tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert load(folder).notes[0].startswith("decoded pictures are not cached (")

    def full(file: object, **arrays: ndarray) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(np, "savez", full)
    assert "No space left on device" in load(folder).notes[0]
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_two_trees_of_one_name_have_two_caches(make_tree: Tree, decoded: list[str]) -> None:
    one, other = make_tree(name="one/set"), make_tree(name="other/set", train=5)
    assert len(load(one, val_size=3).train) == 9
    assert len(load(other, val_size=3).train) == 12
    decoded.clear()
    assert len(load(one, val_size=3).train) == 9 and not decoded


def test_a_photo_of_each_kind_is_what_it_says() -> None:
    """The helper that draws photographs: a test of those that use it."""
    image = np.zeros((3, 80, 80), np.uint8)
    assert photo(image, "turned")[1].count(b"Exif\0\0") == 1
    alpha = cv2.imdecode(np.frombuffer(photo(image, "transparent")[1], np.uint8), -1)
    assert alpha.shape == (60, 80, 4)


def test_the_page_on_own_pictures_draws_a_folder_that_can_be_trained_on(
        tmp_path: Path, run_script: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    _, after = (ROOT / "docs" / "own-pictures.md").read_text().split("<!-- draw -->\n```python\n")
    done = run_script("-c", after.split("```")[0])
    assert done.returncode == 0, done.stderr
    splits = load(tmp_path / "photos")
    assert [len(splits.train), len(splits.val), len(splits.test)] == [152, 21, 43]
    assert splits.classes == SUBJECTS
