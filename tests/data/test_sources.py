"""Every source of images, whole and damaged; the cache; the download; and the split."""
import hashlib
import io
import itertools
import json
import os
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

import cv2
import numpy as np
import pytest
import torch

from common.data.folders import _decode
from common.data.sources import FOLDER, URL
from common.config import Recipe, Runtime
from common.data.sources import CLASSES, load_splits
from common.data.splits import Splits, channel_statistics, make_splits
from common.errors import InputError
from conftest import ROOT, write_image

Tree = Callable[..., Path]
Archive = Callable[..., bytes]
BATCH_NAMES = ("data_batch_1", "data_batch_2"), ("test_batch",)
ARCHIVE_NAME = "cifar-10-python.tar.gz"
NUMPY_1, NUMPY_2 = b"numpy.core.multiarray", b"numpy._core.multiarray"


def load(folder: Path | str, offline: bool = True, **recipe: object) -> Splits:
    """The splits of a folder; `recipe` holds sizes and the seed."""
    return load_splits(Recipe(**recipe), Runtime(data_dir=str(folder), offline=offline))


def refusal(folder: Path | str, **arguments: object) -> str:
    """The line that refuses a folder; a traceback or a second line fails the test."""
    with pytest.raises(InputError) as error:
        load(folder, **arguments)
    message = str(error.value)
    assert "\n" not in message and message
    return message


def in_source_order(splits: Splits) -> tuple[torch.Tensor, torch.Tensor]:
    """Train and val images and labels put back at their index in the source."""
    index = torch.cat([splits.train.index, splits.val.index])
    back = index.argsort()
    assert torch.equal(index[back], torch.arange(len(index))), "train and val are not the whole source"
    return torch.cat([splits.train.images, splits.val.images])[back], torch.cat([splits.train.labels, splits.val.labels])[back]


# Official batches.


def pickled_batch(images: np.ndarray, labels: np.ndarray, module: bytes = NUMPY_1) -> bytes:
    """A batch byte for byte as Python 2 wrote the official ones: protocol 2, keys and pixels as byte strings."""
    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def integers(values: np.ndarray) -> bytes:
        return b"](" + b"".join(b"K" + bytes([value]) for value in values) + b"e"

    array = (b"c" + module + b"\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R(K\x01J" + struct.pack("<i", len(images))
             + b"M\x00\x0c\x86cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
             + b"\x89T" + struct.pack("<I", images.size) + images.tobytes() + b"tb")
    return (b"\x80\x02}(" + text(b"batch_label") + text(b"a batch") + text(b"labels") + integers(labels) + text(b"data") + array
            + text(b"filenames") + b"](" + b"".join(text(b"%05d.png" % i) for i in range(len(labels))) + b"eu.")


def batch_arrays(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3, 32, 32) noise and n shuffled labels, every class as often."""
    rng = np.random.RandomState(seed)
    return rng.randint(0, 256, (n, 3, 32, 32)).astype(np.uint8), rng.permutation(np.arange(n) % 10)


def trust(monkeypatch: pytest.MonkeyPatch, contents: dict[str, bytes]) -> None:
    """Take these bytes for the official ones."""
    monkeypatch.setattr("common.data.sources.BATCHES", tuple({name: hashlib.md5(contents[name]).hexdigest() for name in half} for half in BATCH_NAMES))


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The content of two train batches of 60 images and a test batch of 20, trusted."""
    sizes = dict(zip(itertools.chain(*BATCH_NAMES), (60, 60, 20)))
    contents = {name: pickled_batch(*batch_arrays(n, seed)) for seed, (name, n) in enumerate(sizes.items())}
    trust(monkeypatch, contents)
    return contents


@pytest.fixture
def official(batches: dict[str, bytes], tmp_path: Path) -> Path:
    """A folder that holds the trusted batches as the unpacked archive does."""
    for name, content in batches.items():
        path = tmp_path / "official" / FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "official"


def test_official_batches_are_read_as_they_were_written(official: Path) -> None:
    splits = load(official)
    images, labels = in_source_order(splits)
    expected = [batch_arrays(60, 0), batch_arrays(60, 1)]
    assert np.array_equal(images, np.concatenate([part[0] for part in expected]))
    assert np.array_equal(labels, np.concatenate([part[1] for part in expected]))
    assert np.array_equal(splits.test.images, batch_arrays(20, 2)[0]) and np.array_equal(splits.test.labels, batch_arrays(20, 2)[1])
    assert splits.test.index.tolist() == list(range(20))
    assert {split.images.dtype for split in (splits.train, splits.val, splits.test)} == {torch.uint8}
    assert {split.labels.dtype for split in (splits.train, splits.val, splits.test)} == {torch.int64}
    assert (splits.classes, splits.image_size, splits.source) == (CLASSES, 32, "CIFAR-10, official batches")
    assert (len(splits.train), len(splits.val), len(splits.test)) == (108, 12, 20)


def test_the_pickles_of_these_tests_are_what_torchvision_reads(batches: dict[str, bytes]) -> None:
    entry = pickle.loads(batches["data_batch_1"], encoding="latin1")
    assert np.array_equal(entry["data"].reshape(-1, 3, 32, 32), batch_arrays(60, 0)[0]) and entry["labels"] == batch_arrays(60, 0)[1].tolist()


def test_the_batch_folder_itself_and_the_variable_will_do(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load(official)
    assert load(official / FOLDER).split_hash == whole.split_hash
    monkeypatch.setenv("CIFAR10_DIR", str(official))
    assert load_splits(Recipe(), Runtime(offline=True)).split_hash == whole.split_hash
    monkeypatch.delenv("CIFAR10_DIR")
    monkeypatch.chdir(official.parent)
    official.rename(official.with_name("data"))
    assert load_splits(Recipe(), Runtime(offline=True)).split_hash == whole.split_hash


@pytest.mark.parametrize("module", [NUMPY_1, NUMPY_2])
def test_either_name_of_numpys_core_is_read(module: bytes, official: Path, batches: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    content = pickled_batch(*batch_arrays(60, 7), module)
    (official / FOLDER / "data_batch_2").write_bytes(content)
    trust(monkeypatch, {**batches, "data_batch_2": content})
    assert np.array_equal(in_source_order(load(official))[0][60:], batch_arrays(60, 7)[0])


@pytest.mark.parametrize("damage", [lambda content: content[:-1000], lambda content: b"", lambda content: content[:99] + b"\x00" + content[100:]],
                         ids=["truncated", "empty", "one byte changed"])
@pytest.mark.parametrize("name", ["data_batch_2", "test_batch"])
def test_a_damaged_batch_is_named(damage: Callable[[bytes], bytes], name: str, official: Path) -> None:
    path = official / FOLDER / name
    path.write_bytes(damage(path.read_bytes()))
    assert refusal(official).startswith(f"{path} is damaged (md5 differs")


@pytest.mark.parametrize("name", ["data_batch_1", "test_batch"])
def test_a_missing_batch_is_named(name: str, official: Path) -> None:
    path = official / FOLDER / name
    path.unlink()
    assert refusal(official).startswith(f"{path} is missing")


@pytest.mark.parametrize("global_name", ["os system", "posix system", "builtins exec", "builtins getattr", "numpy load", "numpy.core.multiarray fromstring",
                                         "numpy.lib.npyio load", "common.data Path"])
def test_a_pickle_may_name_nothing_but_arrays(global_name: str, official: Path, batches: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    module, name = global_name.split()
    content = f"\x80\x02c{module}\n{name}\n.".encode("latin1")
    path = official / FOLDER / "data_batch_1"
    path.write_bytes(content)
    trust(monkeypatch, {**batches, "data_batch_1": content})
    assert f"{path} is not an official CIFAR-10 batch ({module}.{name} is not allowed)" in refusal(official)


def test_a_malicious_pickle_with_the_right_md5_runs_nothing(official: Path, batches: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    content = f"cos\nsystem\n(S'touch {marker}'\ntR.".encode()
    pickle.loads(content)
    assert marker.exists(), "the payload is harmless, so this test shows nothing"
    marker.unlink()
    path = official / FOLDER / "test_batch"
    path.write_bytes(content)
    trust(monkeypatch, {**batches, "test_batch": content})
    assert str(path) in refusal(official) and not marker.exists()


@pytest.mark.parametrize("content", [b"not a pickle", b"", b"\x80\x02}.", b"\x80\x02N.", b"\x80\x02]K\x01a.", b"\x80\x02(lp0\nI1"])
def test_a_pickle_of_something_else_is_named(content: bytes, official: Path, batches: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    path = official / FOLDER / "data_batch_1"
    path.write_bytes(content)
    trust(monkeypatch, {**batches, "data_batch_1": content})
    assert f"{path} is not an official CIFAR-10 batch" in refusal(official)


# The download.


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy stands between these tests and their own server."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def pack(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    """A .tar.gz of files (bytes) and ready-made members."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, member in members.items():
            info = tarfile.TarInfo(name) if isinstance(member, bytes) else member
            info.name = name
            info.size = len(member) if isinstance(member, bytes) else 0
            tar.addfile(info, io.BytesIO(member) if isinstance(member, bytes) else None)
    return content.getvalue()


@pytest.fixture
def archive(batches: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Archive:
    """A function that packs the trusted batches, with other members beside them, and has the result trusted."""
    def make(**others: tarfile.TarInfo | bytes) -> bytes:
        content = pack({**{f"{FOLDER}/{name}": batch for name, batch in batches.items()}, **others})
        monkeypatch.setattr("common.data.sources.ARCHIVE_MD5", hashlib.md5(content).hexdigest())
        return content
    return make


@contextmanager
def serve(answer: Callable[[BaseHTTPRequestHandler], object]) -> Iterator[str]:
    """The address of a file on a local server that answers each request by `answer`."""
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                answer(self)
            except ConnectionError:
                self.close_connection = True  # the client asks once for redirects and hangs up

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/{ARCHIVE_NAME}"
        finally:
            server.shutdown()


def sending(content: bytes, announced: int | None = None) -> Callable[[BaseHTTPRequestHandler], None]:
    """An answer that sends `content` and hangs up, having announced so many bytes."""
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(content) if announced is None else announced))
        request.end_headers()
        request.wfile.write(content)
    return answer


def closed_port() -> int:
    """A local port at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def names_three_ways(message: str, folder: Path) -> bool:
    """Whether the line names a path, the address to fetch by hand and where to put it, and the drawn set."""
    return all(part in message for part in ("--data-dir DIR", f"fetch {URL} by hand and unpack it in {folder}", "--synthetic"))


def files_in(folder: Path) -> set[str]:
    """All that is in `folder`, by name."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_download_is_unpacked_and_used_without_network_from_then_on(archive: Archive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with serve(sending(archive())) as url:
        monkeypatch.setattr("common.data.sources.URL", url)
        first = load(tmp_path / "new" / "data", offline=False)
    assert np.array_equal(first.test.images, batch_arrays(20, 2)[0]) and first.classes == CLASSES
    assert files_in(tmp_path / "new" / "data") == {ARCHIVE_NAME, FOLDER, *(f"{FOLDER}/{name}" for name in itertools.chain(*BATCH_NAMES))}
    assert load(tmp_path / "new" / "data").split_hash == first.split_hash
    assert socket.getdefaulttimeout() is None


def test_an_interrupted_download_leaves_only_a_part_and_a_retry_mends_it(archive: Archive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content, folder = archive(), tmp_path / "data"
    with serve(sending(content[: len(content) // 2], announced=len(content))) as url:
        monkeypatch.setattr("common.data.sources.URL", url)
        assert names_three_ways(refusal(folder, offline=False), folder)
    assert files_in(folder) == {ARCHIVE_NAME + ".part"} and (folder / f"{ARCHIVE_NAME}.part").stat().st_size == len(content) // 2
    assert "--offline" in refusal(folder)
    with serve(sending(content)) as url:
        monkeypatch.setattr("common.data.sources.URL", url)
        assert len(load(folder, offline=False).test) == 20
    assert not list(folder.glob("*.part"))


def test_a_download_with_the_wrong_md5_is_refused(archive: Archive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = archive()
    with serve(sending(content[:-1] + bytes([content[-1] ^ 1]))) as url:
        monkeypatch.setattr("common.data.sources.URL", url)
        assert "cannot be downloaded" in refusal(tmp_path / "data", offline=False)
    assert files_in(tmp_path / "data") == {ARCHIVE_NAME + ".part"}


def _not_found(request: BaseHTTPRequestHandler) -> None:
    request.send_error(404)


def _no_http(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"hello, this is no HTTP\r\n\r\n")


def _hang_up(request: BaseHTTPRequestHandler) -> None:
    request.connection.shutdown(socket.SHUT_RDWR)


def _cut_chunk(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\nfar less than was announced")


def _stall(request: BaseHTTPRequestHandler) -> None:
    time.sleep(30)


def _in_circles(request: BaseHTTPRequestHandler) -> None:
    request.send_response(302)
    request.send_header("Location", f"/{time.perf_counter_ns()}")
    request.end_headers()


@pytest.mark.parametrize("answer", [_not_found, _no_http, _hang_up, _cut_chunk, _stall, _in_circles])
def test_a_server_that_misbehaves_is_one_line_within_seconds(answer: Callable[[BaseHTTPRequestHandler], None], archive: Archive,
                                                             monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    archive()
    monkeypatch.setattr("common.data.sources.TIMEOUT_S", 0.5)
    started = time.monotonic()
    with serve(answer) as url:
        monkeypatch.setattr("common.data.sources.URL", url)
        message = refusal(tmp_path / "data", offline=False)
    assert "cannot be downloaded" in message and names_three_ways(message, tmp_path / "data")
    assert time.monotonic() - started < 10 and files_in(tmp_path / "data") <= {ARCHIVE_NAME + ".part"}
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_no_network_is_one_line_within_seconds(host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("common.data.sources.URL", f"http://{host}:{closed_port()}/{ARCHIVE_NAME}")
    started = time.monotonic()
    message = refusal(tmp_path / "data", offline=False)
    assert time.monotonic() - started < 15
    assert message.startswith(f"no CIFAR-10 in {tmp_path / 'data'} and it cannot be downloaded (") and names_three_ways(message, tmp_path / "data")


def test_offline_does_not_even_try(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("common.data.sources.download_url", lambda *args: pytest.fail("a download was tried"))
    message = refusal(tmp_path / "data")
    assert "--offline forbids a download" in message and names_three_ways(message, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_an_archive_fetched_by_hand_is_used_offline(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / ARCHIVE_NAME).write_bytes(archive())
    assert len(load(tmp_path).test) == 20


def test_half_an_archive_fetched_by_hand_is_not_used(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / ARCHIVE_NAME).write_bytes(archive()[:-100])
    assert "--offline forbids a download" in refusal(tmp_path)


def link(target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    """A tar member that is a link."""
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


EVIL: dict[str, dict[str, bytes | tarfile.TarInfo]] = {
    "path above": {"../evil": b"x"},
    "path above from within": {f"{FOLDER}/../../evil": b"x"},
    "symlink above": {f"{FOLDER}/evil": link("../../outside")},
    "absolute symlink": {f"{FOLDER}/evil": link("/etc/passwd")},
    "hard link above": {f"{FOLDER}/evil": link("../outside", tarfile.LNKTYPE)},
    "write through a symlink": {f"{FOLDER}/up": link(".."), f"{FOLDER}/up/evil": link("../../outside"), f"{FOLDER}/up/evil/x": b"x"},
    "device": {f"{FOLDER}/evil": link("", tarfile.CHRTYPE)},
}


@pytest.mark.parametrize("attack", EVIL)
def test_an_archive_that_reaches_out_is_refused_and_leaves_nothing(attack: str, archive: Archive, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "deep" / "outside").write_text("untouched")
    (folder / ARCHIVE_NAME).write_bytes(archive(**EVIL[attack]))
    assert refusal(folder).startswith(f"{folder / ARCHIVE_NAME} cannot be unpacked (")
    assert files_in(tmp_path) == {"deep", "deep/data", f"deep/data/{ARCHIVE_NAME}", "deep/outside"}
    assert (tmp_path / "deep" / "outside").read_text() == "untouched"


@pytest.mark.parametrize("content", [pack({"other/file": b"x"}), b"no archive", pack({"x": b"1" * 5000})[:60]], ids=["other content", "text", "truncated"])
def test_an_archive_of_something_else_is_refused(content: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("common.data.sources.ARCHIVE_MD5", hashlib.md5(content).hexdigest())
    (tmp_path / ARCHIVE_NAME).write_bytes(content)
    assert f"{tmp_path / ARCHIVE_NAME} cannot be unpacked (" in refusal(tmp_path)
    assert files_in(tmp_path) == {ARCHIVE_NAME}


# The command.


DRIVER = """
import json, runpy, sys
script = sys.argv[1]
for line in json.loads(sys.argv[2]):
    sys.argv = [script, *line]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        print(stop.code)
"""


def test_the_command_answers_missing_and_damaged_data_with_one_line_and_exit_2(make_tree: Tree, run_script: Callable[..., subprocess.CompletedProcess[str]],
                                                                               tmp_path: Path) -> None:
    path = make_tree() / "train" / "bee" / "image0.png"
    path.write_text("this is not an image\n")
    nowhere = f"http://127.0.0.1:{closed_port()}"  # as a proxy: the real address, and no network
    lines = [[], ["--data-dir", str(path.parents[2])], ["--offline", "--data-dir", str(tmp_path / "empty")]]
    done = run_script("-c", DRIVER, ROOT / "train_baseline.py", json.dumps(lines), http_proxy=nowhere, https_proxy=nowhere, no_proxy="")
    assert done.stdout.split() == ["2", "2", "2"], done.stderr
    unreachable, damaged, offline = done.stderr.splitlines()
    assert unreachable.startswith("train_baseline.py: no CIFAR-10 in data and it cannot be downloaded (") and "--synthetic" in unreachable
    assert damaged == f"train_baseline.py: {path} is not a readable image: remove or replace it"
    assert offline.startswith(f"train_baseline.py: no CIFAR-10 in {tmp_path / 'empty'} and --offline forbids a download")
    assert not (tmp_path / "runs").exists()


# The real images.


@pytest.mark.slow
def test_real_cifar_10(cifar10_dir: Path) -> None:
    splits = load(cifar10_dir)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (45_000, 5_000, 10_000)
    for split, each in ((splits.train, 4500), (splits.val, 500), (splits.test, 1000)):
        assert torch.bincount(split.labels).tolist() == [each] * 10
    assert splits.classes == CLASSES and splits.image_size == 32
    assert splits.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-3) and splits.std == pytest.approx((0.2470, 0.2434, 0.2616), abs=1e-3)
    assert in_source_order(splits)[1][:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3], "not in the official order"
    assert splits.test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert splits.split_hash == "d35c25fad089738a"


def test_the_readme_turns_tiny_imagenet_into_a_class_folder_set(tmp_path):
    """Its commands, run on a folder laid out as the archive is: images a level deeper, val in one folder with a list, test unlabelled."""
    root, rng = tmp_path / "tiny-imagenet-200", np.random.RandomState(0)
    classes = ("n01443537", "n01629819")
    for name in classes:
        for i in range(6):
            write_image(root / "train" / name / "images" / f"{name}_{i}.JPEG", rng.randint(0, 256, (3, 64, 64)).astype(np.uint8))
        (root / "train" / name / f"{name}_boxes.txt").write_text("n_0.JPEG\t0\t0\t62\t62\n")
    for i in range(4):
        write_image(root / "val" / "images" / f"val_{i}.JPEG", rng.randint(0, 256, (3, 64, 64)).astype(np.uint8))
    (root / "val" / "val_annotations.txt").write_text("".join(f"val_{i}.JPEG\t{classes[i % 2]}\t0\t32\t44\t62\n" for i in range(4)))
    write_image(root / "test" / "images" / "test_0.JPEG", rng.randint(0, 256, (3, 64, 64)).astype(np.uint8))
    commands = (ROOT / "README.md").read_text().split("<!-- tiny-imagenet -->\n```sh\n")[1].split("```")[0]
    subprocess.run(["bash", "-euc", commands], cwd=tmp_path, check=True)
    splits = load_splits(Recipe(val_size=2), Runtime(data_dir=str(root)))
    assert splits.classes == classes and splits.image_size == 64
    assert (len(splits.train), len(splits.val), len(splits.test)) == (10, 2, 4) and splits.test.labels.tolist() == [0, 0, 1, 1]
