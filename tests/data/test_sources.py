"""The official batches, whole and damaged; the download; the drawn set; and the real images."""
import hashlib
import io
import itertools
import pickle
import socket
import struct
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy import ndarray
from pytest import MonkeyPatch

from common.config import Recipe, Runtime
from common.data import sources
from common.data.sources import CLASSES, FOLDER, URL, load_splits
from common.data.splits import Splits
from common.errors import InputError
from conftest import ROOT, write_image
from loading import in_source_order, load, refusal

Archive = Callable[..., bytes]
Batches = dict[str, bytes]
Answer = Callable[[BaseHTTPRequestHandler], object]
BATCH_NAMES = ("data_batch_1", "data_batch_2"), ("test_batch",)
ALL_NAMES = tuple(itertools.chain(*BATCH_NAMES))
ARCHIVE_NAME = "cifar-10-python.tar.gz"
NUMPY_1, NUMPY_2 = b"numpy.core.multiarray", b"numpy._core.multiarray"


def found(folder: Path, offline: bool = False) -> Splits:
    """The splits where only $CIFAR10_DIR names the folder, so that a download may be tried."""
    with MonkeyPatch.context() as patch:
        patch.setenv("CIFAR10_DIR", str(folder))
        return load_splits(Recipe(), Runtime(offline=offline))


def not_found(folder: Path, offline: bool = False) -> str:
    """The line that says why nothing was found or fetched."""
    with pytest.raises(InputError) as error:
        found(folder, offline)
    message = str(error.value)
    assert message and "\n" not in message
    return message


# Official batches.


def pickled_batch(images: ndarray, labels: ndarray, module: bytes) -> bytes:
    """A batch byte for byte as Python 2 wrote the official ones: protocol 2, byte strings."""
    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    numbers = b"](" + b"".join(b"K" + bytes([value]) for value in labels) + b"e"
    names = b"](" + b"".join(text(b"%05d.png" % i) for i in range(len(labels))) + b"e"
    empty = b"c" + module + b"\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    shape = b"(K\x01J" + struct.pack("<i", len(images)) + b"M\x00\x0c\x86"
    dtype = (b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|")
             + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb")
    pixels = b"\x89T" + struct.pack("<I", images.size) + images.tobytes() + b"tb"
    return (b"\x80\x02}(" + text(b"batch_label") + text(b"a batch") + text(b"labels") + numbers
            + text(b"data") + empty + shape + dtype + pixels + text(b"filenames") + names + b"u.")


def batch_arrays(n: int, seed: int) -> tuple[ndarray, ndarray]:
    """(n, 3, 32, 32) noise and n shuffled labels, every class as often."""
    rng = np.random.RandomState(seed)
    images = rng.randint(0, 256, (n, 3, 32, 32)).astype(np.uint8)
    return images, rng.permutation(np.arange(n) % 10)


def trust(monkeypatch: MonkeyPatch, contents: Batches) -> None:
    """Take these bytes for the official ones."""
    sums = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    train, test = ([(name, sums[name]) for name in half] for half in BATCH_NAMES)
    monkeypatch.setattr(sources, "BATCHES", {"train": train, "test": test})


@pytest.fixture
def batches(monkeypatch: MonkeyPatch) -> Batches:
    """The content of two train batches of 60 images and a test batch of 20, trusted; they name
    numpy's core in either way."""
    contents = {}
    for seed, (name, n) in enumerate(zip(ALL_NAMES, (60, 60, 20))):
        contents[name] = pickled_batch(*batch_arrays(n, seed), (NUMPY_1, NUMPY_2)[seed % 2])
    trust(monkeypatch, contents)
    return contents


@pytest.fixture
def official(batches: Batches, tmp_path: Path) -> Path:
    """A folder that holds the trusted batches as the unpacked archive does."""
    folder = tmp_path / "official" / FOLDER
    folder.mkdir(parents=True)
    for name, content in batches.items():
        (folder / name).write_bytes(content)
    return folder.parent


def test_official_batches_are_read_as_they_were_written(official: Path) -> None:
    splits = load(official)
    images, labels = in_source_order(splits)
    first, second, test = batch_arrays(60, 0), batch_arrays(60, 1), batch_arrays(20, 2)
    assert np.array_equal(images, np.concatenate([first[0], second[0]]))
    assert np.array_equal(labels, np.concatenate([first[1], second[1]]))
    assert np.array_equal(splits.test.images, test[0])
    assert np.array_equal(splits.test.labels, test[1])
    for split, n in ((splits.train, 108), (splits.val, 12), (splits.test, 20)):
        assert split.images.dtype is torch.uint8 and split.labels.dtype is torch.int64
        assert len(split) == n and split.names == tuple(map(str, split.index.tolist()))
    assert splits.classes == CLASSES and splits.source == "official batches"


def test_the_batch_folder_itself_and_the_variable_will_do(official: Path,
                                                          monkeypatch: MonkeyPatch) -> None:
    whole = load(official).identity
    assert load(official / FOLDER).identity == found(official).identity == whole
    monkeypatch.chdir(official.parent)
    official.rename(official.with_name("data"))
    assert load_splits(Recipe(), Runtime(offline=True)).identity == whole


@pytest.mark.parametrize(("name", "damage"), [
    ("data_batch_2", lambda path: path.unlink()), ("test_batch", lambda path: path.unlink()),
    ("data_batch_2", lambda path: path.write_bytes(path.read_bytes()[:-1000])),
    ("test_batch", lambda path: path.write_bytes(path.read_bytes().replace(b"\x07", b"\x08", 1)))])
def test_a_missing_or_damaged_batch_is_named(name: str, damage: Callable[[Path], object],
                                             official: Path) -> None:
    path = official / FOLDER / name
    damage(path)
    assert refusal(official).startswith(f"{path} is missing or damaged (its md5 is not")


@pytest.mark.parametrize("name", [
    "os system", "builtins eval", "numpy load", "numpy.core.multiarray fromstring"])
def test_a_pickle_may_name_nothing_but_arrays(name: str, official: Path, batches: Batches,
                                              tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    """Even one whose md5 is the official one."""
    marker = tmp_path / "marker"
    content = f"c{name.replace(' ', chr(10))}\n(S'touch {marker}'\ntR.".encode()
    (official / FOLDER / "data_batch_1").write_bytes(content)
    trust(monkeypatch, {**batches, "data_batch_1": content})
    with pytest.raises(pickle.UnpicklingError, match=f"{name.replace(' ', '.')} is not allowed"):
        load(official)
    assert not marker.exists()


def test_numbered_files_give_the_order_and_split_of_the_official_batches(official: Path,
                                                                         tmp_path: Path) -> None:
    folder = tmp_path / "numbered"
    halves = {"train": (batch_arrays(60, 0), batch_arrays(60, 1)), "test": (batch_arrays(20, 2),)}
    for half, parts in halves.items():
        images, labels = map(np.concatenate, zip(*parts))
        for i, (image, label) in enumerate(zip(images, labels)):
            name = (f"{i:05d}" if i % 2 else f"{i}") + (".png" if i % 3 else ".webp")
            write_image(folder / half / CLASSES[label] / name, image)
    batches, tree = load(official), load(folder)
    assert (batches.split_hash, batches.identity) == (tree.split_hash, tree.identity)
    assert torch.equal(batches.val.index, tree.val.index)
    assert (batches.mean, batches.std) == (tree.mean, tree.std)


# The drawn set, and flags without effect.


def test_the_drawn_set_needs_nothing_and_says_so(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "DRAWN_POOLS", {"train": (60, 0), "test": (10, 1)})
    splits = load_splits(Recipe(synthetic=True, train_limit=500), Runtime(offline=True))
    assert splits.source == "synthetic" and splits.notes == () and splits.image_size == 32
    assert [len(splits.train), len(splits.val), len(splits.test)] == [500, 60, 100]
    with pytest.raises(InputError, match="synthetic: all images are 32×32"):
        load_splits(Recipe(synthetic=True, fit="crop"), Runtime())


def test_a_data_dir_beside_the_drawn_set_is_refused(official: Path) -> None:
    line = refusal(official, synthetic=True)
    assert line.startswith(f"--data-dir {official} has no effect on drawn images")


@pytest.mark.parametrize("flag", [{"image_size": 64}, {"fit": "crop"}])
def test_image_size_and_fit_are_refused_for_images_of_32_pixels(flag: dict[str, object],
                                                                official: Path) -> None:
    assert refusal(official, **flag).startswith("--image-size and --fit are for pictures in class")
    assert load(official, image_size=32).image_size == 32


# The download.


@pytest.fixture(autouse=True)
def direct(monkeypatch: MonkeyPatch) -> None:
    """No proxy stands between these tests and their own server."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def pack(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    """A .tar.gz of files (bytes) and ready-made members."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, member in members.items():
            data = member if isinstance(member, bytes) else b""
            info = tarfile.TarInfo() if isinstance(member, bytes) else member
            info.name, info.size = name, len(data)
            tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


@pytest.fixture
def archive(batches: Batches, monkeypatch: MonkeyPatch) -> Archive:
    """A function that packs the trusted batches and others beside them, and has that trusted."""
    def make(**others: tarfile.TarInfo | bytes) -> bytes:
        content = pack({**{f"{FOLDER}/{name}": batches[name] for name in batches}, **others})
        monkeypatch.setattr(sources, "ARCHIVE_MD5", hashlib.md5(content).hexdigest())
        return content
    return make


@contextmanager
def serve(answer: Answer) -> Iterator[None]:
    """A local server that answers each request by `answer` and stands for the official one."""
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                answer(self)
            except ConnectionError:
                self.close_connection = True  # the client asks once for redirects and hangs up

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, MonkeyPatch.context() as patch:
        patch.setattr(sources, "URL", f"http://127.0.0.1:{server.server_port}/{ARCHIVE_NAME}")
        forever = {"poll_interval": 0.01}
        threading.Thread(target=server.serve_forever, kwargs=forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


def sending(content: bytes, announced: int | None = None) -> Answer:
    """An answer that sends `content` and hangs up, having announced so many bytes."""
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(announced or len(content)))
        request.end_headers()
        request.wfile.write(content)
    return answer


def names_three_ways(message: str, folder: Path) -> bool:
    """Whether the line names a folder of one's own, a fetch by hand, and the drawn set."""
    by_hand = f"by hand and unpack it in {folder}"
    return all(part in message for part in ("--data-dir DIR", by_hand, "--synthetic"))


def files_in(folder: Path) -> set[str]:
    """All that is in `folder`, by name."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_download_is_unpacked_and_used_without_network_from_then_on(archive: Archive,
                                                                      tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    with serve(sending(archive())):
        first = found(folder)
    assert np.array_equal(first.test.images, batch_arrays(20, 2)[0])
    assert files_in(folder) == {ARCHIVE_NAME, FOLDER, *(f"{FOLDER}/{name}" for name in ALL_NAMES)}
    assert found(folder, offline=True).identity == first.identity
    assert socket.getdefaulttimeout() is None


def test_an_interrupted_download_leaves_only_a_part_and_a_retry_mends_it(archive: Archive,
                                                                         tmp_path: Path) -> None:
    content, folder = archive(), tmp_path / "data"
    with serve(sending(content[: len(content) // 2], announced=len(content))):
        assert names_three_ways(not_found(folder), folder)
    part = folder / f"{ARCHIVE_NAME}.part"
    assert list(folder.iterdir()) == [part] and part.stat().st_size == len(content) // 2
    assert "--offline" in not_found(folder, offline=True)
    with serve(sending(content)):
        assert len(found(folder).test) == 20
    assert not part.exists()


CUT_CHUNK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\nless than announced"
ANSWERS: dict[str, Answer] = {
    "not found": lambda request: request.send_error(404),
    "no http": lambda request: request.wfile.write(b"hello, this is no HTTP\r\n\r\n"),
    "cut chunk": lambda request: request.wfile.write(CUT_CHUNK),
    "stall": lambda request: time.sleep(30),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_server_that_misbehaves_is_one_line_within_seconds(
        answer: str, archive: Archive, monkeypatch: MonkeyPatch, tmp_path: Path) -> None:
    archive()
    monkeypatch.setattr("common.files.TIMEOUT_S", 0.5)
    folder, started = tmp_path / "data", time.monotonic()
    with serve(ANSWERS[answer]):
        message = not_found(folder)
    assert "cannot be downloaded" in message and names_three_ways(message, folder)
    assert time.monotonic() - started < 10 and files_in(folder) <= {ARCHIVE_NAME + ".part"}
    assert socket.getdefaulttimeout() is None


def test_no_network_is_one_line_within_seconds(monkeypatch: MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]  # at which nothing will listen
    monkeypatch.setattr(sources, "URL", f"http://127.0.0.1:{port}/{ARCHIVE_NAME}")
    folder, started = tmp_path / "data", time.monotonic()
    message = not_found(folder)
    assert time.monotonic() - started < 15 and names_three_ways(message, folder)
    assert message.startswith(f"no CIFAR-10 in {folder} and it cannot be downloaded (")


def test_offline_does_not_even_try(monkeypatch: MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sources, "download_url", lambda *args: pytest.fail("a download was tried"))
    folder = tmp_path / "data"
    message = not_found(folder, offline=True)
    assert "is no folder" in message and "--offline" in message
    assert names_three_ways(message, folder) and URL in message and not folder.exists()


def test_an_archive_fetched_by_hand_is_used_wherever_it_lies(archive: Archive,
                                                             tmp_path: Path) -> None:
    (tmp_path / ARCHIVE_NAME).write_bytes(archive())
    assert len(load(tmp_path).test) == 20


def test_half_an_archive_is_not_used_and_not_fetched_into_a_folder_of_the_users(
        archive: Archive, monkeypatch: MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sources, "download_url", lambda *args: pytest.fail("a download was tried"))
    (tmp_path / ARCHIVE_NAME).write_bytes(archive()[:-100])
    line = refusal(tmp_path, offline=False)
    assert line.startswith(f"{tmp_path} holds {ARCHIVE_NAME}, so no whole data of a known kind")


def link(target: str) -> tarfile.TarInfo:
    """A tar member that is a link."""
    info = tarfile.TarInfo()
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


EVIL: dict[str, dict[str, bytes | tarfile.TarInfo]] = {
    "path above": {f"{FOLDER}/../../evil": b"x"},
    "symlink above": {f"{FOLDER}/evil": link("../../outside")},
    "through a symlink": {f"{FOLDER}/up": link(".."), f"{FOLDER}/up/evil": link("../../outside"),
                          f"{FOLDER}/up/evil/x": b"x"},
}


@pytest.mark.parametrize("attack", EVIL)
def test_an_archive_that_reaches_out_is_refused_and_leaves_nothing(attack: str, archive: Archive,
                                                                   tmp_path: Path) -> None:
    folder, outside = tmp_path / "deep" / "data", tmp_path / "deep" / "outside"
    folder.mkdir(parents=True)
    outside.write_text("untouched")
    (folder / ARCHIVE_NAME).write_bytes(archive(**EVIL[attack]))
    assert refusal(folder).startswith(f"{folder / ARCHIVE_NAME} cannot be unpacked (")
    assert files_in(tmp_path) == {"deep", "deep/data", f"deep/data/{ARCHIVE_NAME}", "deep/outside"}
    assert outside.read_text() == "untouched"


@pytest.mark.parametrize("content", [
    pack({"other/file": b"x"}), b"no archive", pack({"x": b"1" * 5000})[:60]],
    ids=["other content", "text", "truncated"])
def test_an_archive_of_something_else_is_refused(content: bytes, monkeypatch: MonkeyPatch,
                                                 tmp_path: Path) -> None:
    monkeypatch.setattr(sources, "ARCHIVE_MD5", hashlib.md5(content).hexdigest())
    (tmp_path / ARCHIVE_NAME).write_bytes(content)
    assert f"{tmp_path / ARCHIVE_NAME} cannot be unpacked (" in refusal(tmp_path)
    assert files_in(tmp_path) == {ARCHIVE_NAME}


# The real images.


@pytest.mark.slow
def test_real_cifar_10(cifar10_dir: Path) -> None:
    splits = load(cifar10_dir)
    for split, each in ((splits.train, 4500), (splits.val, 500), (splits.test, 1000)):
        assert torch.bincount(split.labels).tolist() == [each] * 10
    assert splits.classes == CLASSES and splits.is_cifar10
    _, labels = in_source_order(splits)
    assert labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3], "not in the official order"
    assert splits.test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert splits.split_hash == "d35c25fad089738a"


def test_the_guide_turns_tiny_imagenet_into_a_class_folder_set(tmp_path: Path) -> None:
    """Its commands, run on a folder laid out as the archive is: images a level deeper, val in one
    folder with a list, test unlabelled."""
    root, image = tmp_path / "tiny-imagenet-200", np.zeros((3, 64, 64), np.uint8)
    classes = ("n01443537", "n01629819")
    for name in classes:
        for i in range(6):
            write_image(root / "train" / name / "images" / f"{name}_{i}.JPEG", image)
        (root / "train" / name / f"{name}_boxes.txt").write_text("n_0.JPEG\t0\t0\t62\t62\n")
    rows = ""
    for i in range(4):
        write_image(root / "val" / "images" / f"val_{i}.JPEG", image)
        rows += f"val_{i}.JPEG\t{classes[i % 2]}\t0\t32\t44\t62\n"
    (root / "val" / "val_annotations.txt").write_text(rows)
    write_image(root / "test" / "images" / "test_0.JPEG", image)
    _, after = (ROOT / "docs/guide.md").read_text().split("<!-- tiny-imagenet -->\n```sh\n")
    subprocess.run(["bash", "-euc", after.split("```")[0]], cwd=tmp_path, check=True)
    splits = load(root, val_size=2)
    assert splits.classes == classes and splits.image_size == 64
    assert [len(splits.train), len(splits.val), len(splits.test)] == [10, 2, 4]
    assert splits.test.labels.tolist() == [0, 0, 1, 1]
