"""Class folders: every layout, pictures of any size and kind, what is damaged or left out, and the
cache. A tree is walked one way by every command, a picture is refused only where pixels are lost,
and a cache is believed only where its files are what they were."""
import io
import json
import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy import ndarray

from common.data import folders
from common.data.folders import read_picture, walk
from common.errors import InputError
from conftest import ROOT, write_image
from loading import in_source_order, load, refusal

Tree = Callable[..., Path]
BLACK = np.zeros((3, 32, 32), np.uint8)


def colours(*shades: tuple[int, int, int]) -> ndarray:
    """(3, 1, N) a row of pixels of these colours."""
    return np.array(shades, np.uint8).T[:, None, :]


# Layouts.


@pytest.mark.parametrize(("parts", "sizes"), [
    ({".": 40}, [84, 12, 24]), ({"Train": 30, "Testing": 10}, [81, 9, 30]),
    ({"training": 30, "validation": 10}, [72, 30, 18]),
    ({"train": 20, "valid": 10, "TEST": 10}, [60, 30, 30])])
def test_every_layout_gives_the_same_classes_and_its_own_parts(
        parts: dict[str, int], sizes: list[int], tmp_path: Path) -> None:
    put(tmp_path, *(f"{part}/{name}/{i}.png" for part, each in parts.items()
                    for name in ("a b", "c", "d") for i in range(each)))
    splits = load(tmp_path)
    assert splits.classes == ("a b", "c", "d")
    three = splits.train, splits.val, splits.test
    assert [len(split) for split in three] == sizes
    for split in three:
        assert len(set(torch.bincount(split.labels).tolist())) == 1, "not stratified"
        for name, label in zip(split.names, split.labels.tolist()):
            assert splits.classes[label] in name.split("/") and (tmp_path / name).is_file()
    assert any("split here" in note for note in splits.notes) == ("test" not in str(parts).lower())
    names = {*splits.train.names, *splits.val.names, *splits.test.names}
    assert len(names) == 120, "a picture is in two parts"


@pytest.mark.parametrize(("count", "size"), [(2, 96), (12, 17)])
def test_equal_square_pictures_are_taken_as_they_are(count: int, size: int,
                                                     make_tree: Tree) -> None:
    names = tuple(f"class {chr(ord('z') - k)}" for k in range(count))
    splits = load(make_tree(names, train=3, test=2, size=size), val_size=count)
    assert splits.classes == tuple(sorted(names)) and splits.image_size == size
    assert splits.test.images.shape == (2 * count, 3, size, size)
    assert splits.source == f"class folders, {count} classes"
    assert not any("resized" in note for note in splits.notes)


@pytest.mark.parametrize("odd", ["train/bee/image2.png", "train/ant/image0.png"])
def test_one_picture_of_another_size_brings_all_to_64(odd: str, make_tree: Tree) -> None:
    folder = make_tree()
    write_image(folder / odd, np.zeros((3, 32, 40), np.uint8))
    splits = load(folder)
    assert splits.image_size == 64
    assert splits.notes[0] == ("18 of 18 pictures resized to 64×64 (--fit pad); --image-size N "
                               "gives another size")


def test_hidden_files_are_passed_over(make_tree: Tree) -> None:
    folder = make_tree()
    for place in (folder / "train" / "ant", folder / "train", folder):
        put(place, ".ipynb_checkpoints/a.png", "._image0.png", "__MACOSX/ant/b.png", "Thumbs.db")
    splits = load(folder, val_size=3)
    assert splits.classes == ("ant", "bee", "cow") and len(in_source_order(splits)[0]) == 12
    assert not any("other" in note for note in splits.notes)


def put(folder: Path, *paths: str) -> None:
    """Write a picture at each path, or two letters where the suffix is none of a picture."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(".png"):
            write_image(folder / path, BLACK)
        else:
            (folder / path).write_text("{}")


def relative(folder: Path) -> list[str]:
    """The pictures that a walk finds."""
    return [path[len(f"{folder}/"):] for path in walk(folder)[0]]


def test_links_are_followed_once_and_never_in_a_circle(tmp_path: Path) -> None:
    ant, far = tmp_path / "photos" / "ant", tmp_path / "elsewhere"
    put(ant, "a.png")
    put(tmp_path / "photos" / "bee", "b.png")
    put(far, "c.png", "deeper/d.png")
    for name, target in {"far": far, "more": far, "up": "..", "self": ".", "loop": "loop"}.items():
        (ant / name).symlink_to(target)
    (far / "back").symlink_to(ant)
    assert relative(ant) == ["a.png", "far/c.png", "far/deeper/d.png"]
    assert walk(ant)[1] == {folders.LINK: 4, "without a suffix": 1}
    flat, linked = walk(far), tmp_path / "linked"
    linked.symlink_to(far)
    assert len(flat[0]) == len(relative(linked)) == 4, "with a.png and b.png, by `back`"


def test_what_is_left_out_is_counted_wherever_it_lies(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    put(photos, *(f"{half}/{name}/{i}.png" for half in ("train", "test") for name in "ab"
                    for i in range(3)))
    put(photos, "LICENSE", "stray.png", "train/stray.png", "test/list.csv", "train/a/x.HEIC",
        "train/a/deep/y.heic", "unlabelled/1.png", "train/.hidden.txt")
    os.mkfifo(photos / "train" / "a" / "pipe.png")
    [note] = [note for note in load(photos).notes if "left out" in note]
    assert note == "8 other files left out (4 × .png, 2 × .heic, 1 × without a suffix, 1 × .csv)"


@pytest.mark.parametrize("classes", ["ant bee", "ant runs", "out ant bee"])
def test_what_the_commands_wrote_is_no_data(classes: str, tmp_path: Path) -> None:
    """The run folders in --out, wherever in the data that is."""
    photos = tmp_path / "photos"
    put(photos, *(f"{name}/{i}.png" for name in classes.split() for i in range(4)))
    before = load(photos)
    for out in ("runs", "out", "ant", "."):
        for place, name, content in (("train_x/a", "recipe.json", {"script": "train_x"}),
                                     ("analyze/a", "request.json", {"ckpt": "0"}),
                                     ("ablation/a", "ablation.json", {"rows": []})):
            put(photos, f"{out}/{place}/figure.png", f"{out}/{place}/deeper/b.png")
            (photos / out / place / name).write_text(json.dumps(content))
    after = load(photos)
    assert before.classes == after.classes == tuple(sorted(classes.split()))
    assert before.identity == after.identity
    assert any("left out (12 × run folder)" in note for note in after.notes)


def test_a_class_may_hold_files_of_those_names(tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/{i}.png" for name in ("pie", "soup") for i in range(4)))
    put(tmp_path, "pie/recipe.json", "soup/ablation.json")
    (tmp_path / "soup" / "request.json").write_text("[1]")
    assert "3 other files left out (3 × .json)" in load(tmp_path).notes


def test_two_ways_to_write_a_name_are_one_class(tmp_path: Path) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    put(tmp_path, *(f"{part}/tea/{i}.png" for part in ("train", "test") for i in range(4)),
        *(f"train/{composed}/{i}.png" for i in range(4)), f"train/{apart}/more.png",
        f"test/{apart}/0.png")
    splits = load(tmp_path)
    assert splits.classes == (composed, "tea")
    assert len(in_source_order(splits)[0]) == 9
    assert torch.bincount(splits.test.labels).tolist() == [1, 4]


def test_two_folders_for_one_part_are_one(tmp_path: Path) -> None:
    for i, part in enumerate(("train", "Train", "val", "validation")):
        put(tmp_path, *(f"{part}/{name}/{k}.png" for name in "ab" for k in range(4 + i)))
    splits = load(tmp_path)
    assert len(splits.val) == 26 and len(splits.train) + len(splits.test) == 18


def test_a_folder_is_no_picture_whatever_its_name(tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/album.jpg/{i}.png" for name in ("a", "b.png") for i in range(4)))
    splits = load(tmp_path)
    assert splits.classes == ("a", "b.png") and len(relative(tmp_path)) == 8


def test_pictures_are_in_order_of_class_and_name_nested_ones_too(tmp_path: Path) -> None:
    paths = ("a/0.png", "a/deep/er/x.png", "a/z.png", "b/0.png", "b/1.png", "b/x.png")
    for place in (5, 2, 0, 4, 1, 3):
        write_image(tmp_path / "train" / paths[place], BLACK + place)
        write_image(tmp_path / "test" / paths[place], BLACK)
    splits = load(tmp_path, val_size=2)
    images, labels = in_source_order(splits)
    assert images[:, 0, 0, 0].tolist() == list(range(6)) and labels.tolist() == [0] * 3 + [1] * 3
    assert splits.test.names == tuple(f"test/{path}" for path in paths)


def test_a_flat_folder_may_have_a_class_called_train(tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/{i}.png" for name in ("train", "ship", "plane") for i in range(6)))
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
    "is no folder": lambda folder: folder.rmdir(),
    "holds nothing": lambda folder: None,
    "holds a.png, b.txt": lambda folder: put(folder, "a.png", "b.txt"),
    "holds photos": lambda folder: put(folder, "photos/a.png"),
    "holds train": lambda folder: put(folder, "train/ant/a.png", "train/bee/a.png"),
    "holds ant, bee": lambda folder: put(folder, "ant/1.heic", "bee/2.HEIC"),
}


@pytest.mark.parametrize("words", UNKNOWN)
def test_a_data_dir_of_no_known_layout_is_one_line_and_no_download(
        words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.data.sources.download_url", lambda *_: pytest.fail("a download"))
    folder = tmp_path / "mine"
    folder.mkdir()
    UNKNOWN[words](folder)
    line = refusal(folder, offline=False)
    assert line.startswith(f"{folder} {words}, so no whole data of a known kind")
    for known in ("cifar-10-batches-py", "train and test and/or val", "class folders alone",
                  ".jpeg .webp .bmp"):
        assert known in line


# Pictures.


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".PNG", ".JPG"])
def test_every_suffix_gives_red_green_blue(suffix: str, make_tree: Tree) -> None:
    folder = make_tree(("a", "b"), suffix=suffix)
    colour = np.broadcast_to(colours((250, 130, 10)), (3, 32, 32))
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
@pytest.mark.parametrize("shape", [(1, 500), (500, 1), (201, 200)])
def test_any_shape_becomes_the_asked_square(shape: tuple[int, int], fit: str,
                                            tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", np.full((3, *shape), 9, np.uint8))
    picture = read_picture(path, 16, fit)
    assert picture.shape == (3, 16, 16) and picture.dtype == np.uint8 and picture.max() == 9
    assert (picture == 0).any() == (fit == "pad" and 1 in shape)


def halve(content: bytes) -> bytes:
    """The first half of a file."""
    return content[:len(content) // 2]


def flip(content: bytes) -> bytes:
    """A file with a byte changed in its middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x55]) + content[middle + 1:]


def _broken_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.png")


NOISE = np.random.RandomState(0).randint(0, 256, (40, 40, 3)).astype(np.uint8)


def encoded(suffix: str, *options: int) -> bytes:
    """A picture of noise in this format."""
    return cv2.imencode(suffix, NOISE, options)[1].tobytes()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(
        ">I", zlib.crc32(kind + content))


def after(content: bytes, mark: bytes, length: int, new: bytes) -> bytes:
    """`content` with `new` in place of `length` bytes after the first `mark`."""
    place = content.index(mark) + len(mark)
    return content[:place] + new + content[place + length:]


JPEG, PNG, WEBP, BMP = map(encoded, (".jpg", ".png", ".webp", ".bmp"))
STEPS = encoded(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
PARTED = encoded(".jpg", cv2.IMWRITE_JPEG_RST_INTERVAL, 2)
THUMBNAIL = after(JPEG, b"\xff\xd8", 0, b"\xff\xe1" + struct.pack(">H", len(JPEG) + 2) + JPEG)
# What decoders warn of, or what other programs add, while every pixel is there.
WHOLE = {
    "JFIF revision 0.00": (after(JPEG, b"JFIF\0", 2, b"\0\0"), JPEG),
    "Se 0": (after(JPEG, b"\xff\xda\x00\x0c\x03\x01\0\x02\x11\x03\x11\0", 1, b"\0"), JPEG),
    "bytes before EOI": (JPEG[:-2] + b"abcdef" + JPEG[-2:], JPEG),
    "bytes after EOI": (JPEG + b"\xff\xda film" * 9, JPEG),
    "odd ICC profile": (after(JPEG, b"\xff\xd8", 0, b"\xff\xe2\0\x12ICC_PROFILE\0\5\2ab"), JPEG),
    "thumbnail": (THUMBNAIL, JPEG), "filler": (after(JPEG, b"\xff\xd8", 0, b"\xff" * 3), JPEG),
    "progressive": (STEPS, STEPS), "restart marks": (PARTED, PARTED),
    "iCCP": (after(PNG, PNG[:33], 0, chunk(b"iCCP", b"x\0\0bad")), PNG),
    "tRNS": (after(PNG, PNG[:33], 0, chunk(b"tRNS", b"bad")), PNG),
    "wrong sum of text": (after(PNG, PNG[:33], 0, chunk(b"tEXt", b"a\0b")[:-4] + bytes(4)), PNG),
    "bytes after a PNG": (PNG + b"more", PNG), "bytes after a WebP": (WEBP + b"more", WEBP),
    "no size in a BMP": (after(BMP, b"BM", 4, bytes(4)), BMP), "after a BMP": (BMP + b"x", BMP),
}
TRAILER = b"\xff" * 40
LOST = {
    "half a JPEG": halve(JPEG), "half a progressive JPEG": halve(STEPS),
    "half a JPEG with a thumbnail": THUMBNAIL[:-len(JPEG) // 2],
    "a copy that ends in zeros": halve(JPEG) + bytes(len(JPEG) // 2),
    "0xff in a JPEG": halve(JPEG) + TRAILER + JPEG[len(JPEG) // 2 + 40:],
    "a part too short": after(PARTED, b"\xff\xd1", 60, b""),
    "half a PNG": halve(PNG), "a PNG without end": PNG[:-12], "a PNG changed": flip(PNG),
    "half a WebP": halve(WEBP), "half a BMP": halve(BMP), "a BMP one byte short": BMP[:-1],
}


def turned_by_exif(jpeg: bytes, orientation: int = 6) -> bytes:
    """A JPEG with an EXIF entry; orientation 6: to be turned by 90° clockwise when shown."""
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = b"MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4)
    segment = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


def decode(folder: Path, content: bytes) -> ndarray:
    """A 40×40 picture, read from a file without a suffix, as decoders look at the content."""
    (folder / "a").write_bytes(content)
    return read_picture(folder / "a", 40, "pad")


def test_exif_grey_alpha_and_16_bits_are_read_as_seen(tmp_path: Path) -> None:
    def png(picture: ndarray) -> ndarray:
        return decode(tmp_path, cv2.imencode(".png", picture)[1].tobytes())

    upright = np.rot90(decode(tmp_path, JPEG), -1, (1, 2))
    assert np.array_equal(decode(tmp_path, turned_by_exif(JPEG)), upright)
    colour = png(NOISE)
    assert np.array_equal(png(np.dstack([NOISE, NOISE[:, :, :1]])), colour), "alpha"
    assert np.array_equal(png(NOISE.astype(np.uint16) * 257), colour), "16 bits"
    assert np.array_equal(png(NOISE[:, :, 0]), np.repeat(colour[2:], 3, 0)), "grey"


@pytest.mark.parametrize("kind", WHOLE)
def test_a_picture_with_all_its_pixels_is_whole(kind: str, tmp_path: Path,
                                                capfd: pytest.CaptureFixture[str]) -> None:
    odd, plain = (decode(tmp_path, content) for content in WHOLE[kind])
    assert np.array_equal(odd, plain) and capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", LOST)
def test_a_picture_that_lost_pixels_is_named(kind: str, make_tree: Tree,
                                             capfd: pytest.CaptureFixture[str]) -> None:
    """Alone, and among others that give no more than a warning."""
    folder = make_tree(("ant", "bee"))
    path = folder / "train" / "bee" / "image1.png"
    (folder / "train" / "ant" / "image0.png").write_bytes(WHOLE["JFIF revision 0.00"][0])
    path.write_bytes(LOST[kind])
    with pytest.raises(InputError) as error:
        read_picture(path, 32, "pad")
    assert refusal(folder, image_size=32) == str(error.value)
    assert re.match(f"{path} is (damaged|not a readable image)", str(error.value))
    assert capfd.readouterr().err == "", "a decoder spoke for itself"
    assert not list(folder.parent.rglob("*.npz")), "a faulty tree was cached"


FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "class missing in train": ("train/cow", lambda path: path.rename(path / "../../gone"),
                               "train/cow holds no picture"),
    "HEIC alone": ("test/bee", lambda path: [file.rename(file.with_suffix(".HEIC"))
                                             for file in path.iterdir()],
                   "test/bee holds no picture (left out: 2 × .heic): add some, as .png"),
    "text": ("train/cow/image3.png", lambda path: path.write_text("this is not an image\n"),
             "train/cow/image3.png is not a readable image"),
    "zero bytes": ("train/ant/image0.png", lambda path: path.write_bytes(b""),
                   "train/ant/image0.png is not a readable image"),
    "broken link": ("train/bee/image1.png", _broken_link, "train/bee/image1.png cannot be read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_tree_is_one_line_naming_the_place(
        fault: str, make_tree: Tree, capfd: pytest.CaptureFixture[str]) -> None:
    place, damage, message = FAULTS[fault]
    folder = make_tree()
    damage(folder / place)
    assert refusal(folder, image_size=32).startswith(f"{folder}/{message}")
    assert capfd.readouterr().err == "" and not list(folder.parent.rglob("*.npz"))


def test_a_class_folder_without_pictures_is_named_where_there_are_no_parts(tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/{i}.png" for name in ("ant", "bee") for i in range(4)), "cow/1.heic")
    assert refusal(tmp_path).startswith(f"{tmp_path}/cow holds no picture (left out: 1 × .heic)")


def test_what_may_not_be_read_is_named(make_tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, and a file: root may read both, so the system is asked by another name."""
    folder, scan, read = make_tree(), os.scandir, open

    def refuse(path: str, *_: object, **__: object) -> object:
        if str(path).endswith(("train/bee", "image3.png")):
            raise PermissionError(13, "Permission denied", path)
        return (scan if os.path.isdir(path) else read)(path, *_, **__)
    monkeypatch.setattr("builtins.open", refuse)
    assert refusal(folder).startswith(f"{folder}/train/ant/image3.png cannot be read (Permission")
    monkeypatch.setattr(os, "scandir", refuse)
    assert refusal(folder).startswith(f"{folder}/train/bee cannot be read (Permission denied): mak")


# The cache of decoded trees.


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of each file decoded since the test began."""
    seen, decode = [], cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda content, flags: (
        seen.append(len(content)), decode(content, flags))[1])
    return seen


def savez(**arrays: object) -> bytes:
    """What `np.savez` writes."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def cache_file(tmp_path: Path) -> Path:
    """The one file in the cache."""
    [path] = (tmp_path / "cache").rglob("*.*")
    return path


def test_the_second_load_decodes_nothing_and_is_the_same(make_tree: Tree, decoded: list[int],
                                                         tmp_path: Path) -> None:
    folder = make_tree(size=100)
    for asked in ({}, {"image_size": 48}, {"image_size": 48, "fit": "crop"}):
        first = load(folder, **asked)
        assert cache_file(tmp_path).parent == tmp_path / "cache" / "cifar10-study"
        assert len(decoded) >= 18, "made for another size or fit"
        decoded.clear()
        again = load(folder, **asked)
        side = asked.get("image_size", 64)
        assert not decoded and again.image_size == side and first.notes == again.notes
        assert f"18 of 18 pictures resized to {side}×{side} (--fit " in first.notes[0]
        assert (first.identity, first.split_hash) == (again.identity, again.split_hash)


def _same_size_and_time(folder: Path) -> None:
    """Two pictures change places, and keep what the system says of a file."""
    one, other = (write_image(folder / f"train/cow/image{i}.bmp", BLACK + i) for i in (7, 8))
    for path in (one, other):
        os.utime(path, (1, 1))
    load(folder)
    one.write_bytes(other.read_bytes())
    os.utime(one, (1, 1))


CHANGES: dict[str, Callable[[Path], object]] = {
    "moved": lambda folder: (folder / "train/bee/image0.png").rename(folder / "train/ant/new.png"),
    "replaced as it was": _same_size_and_time,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_tree_is_decoded_again(change: str, make_tree: Tree, decoded: list[int],
                                         tmp_path: Path) -> None:
    folder = make_tree()
    before = load(folder).identity
    CHANGES[change](folder)
    decoded.clear()
    changed = load(folder).identity
    assert decoded and changed != before
    cache_file(tmp_path)
    decoded.clear()
    for path in folder.rglob("*.*"):
        os.utime(path, (5, 5))  # only touched
    assert load(folder).identity == changed and not decoded


class Payload:
    """Makes a folder where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("unpickled",)


@pytest.mark.parametrize("damage", [
    halve, flip, lambda content: b"", lambda content: savez(a=1),
    lambda content: savez(key=np.array([Payload()]))])
def test_a_damaged_cache_is_never_unpickled_and_decoded_again(
        damage: Callable[[bytes], bytes], make_tree: Tree, decoded: list[int], tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_tree()
    first = load(folder)
    path = cache_file(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    decoded.clear()
    assert load(folder).identity == first.identity and decoded
    decoded.clear()
    load(folder)
    assert not decoded, "the damaged cache was not replaced"
    assert not Path("unpickled").exists()


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


def test_two_trees_of_one_name_have_two_caches(make_tree: Tree, decoded: list[int]) -> None:
    one, other = make_tree(name="one/set"), make_tree(name="other/set", train=5)
    first = load(one).identity
    assert load(other).identity != first
    decoded.clear()
    assert load(one).identity == first and not decoded


def test_the_page_on_own_pictures_draws_a_folder_that_can_be_trained_on(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, after = (ROOT / "docs" / "own-pictures.md").read_text().split("<!-- draw -->\n```python\n")
    monkeypatch.chdir(tmp_path)
    exec(after.split("```")[0], {})
    splits = load("photos")
    assert [len(splits.train), len(splits.val), len(splits.test)] == [152, 21, 43]
    assert splits.classes == ("checkerboard", "disc", "horizontal stripes")
