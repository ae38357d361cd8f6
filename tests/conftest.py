"""What several test files share: a cache of its own for each test, small image trees, and scripts
run as a user runs them or called in this process."""
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # plain `pytest` does not put the repository's root on the path

from common.data.splits import Splits, as_split, divide  # noqa: E402
from common.data.sources import DRAWN_CLASSES, draw  # noqa: E402

REAL_DATA = os.environ.get("CIFAR10_DIR")
# The tests are small: on a busy machine a second thread waits more than it works.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches live in tmp_path and $CIFAR10_DIR is unset, also for subprocesses: no test reads or
    writes the user's files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("CIFAR10_DIR", raising=False)


@pytest.fixture
def cifar10_dir() -> Path:
    """The folder that $CIFAR10_DIR named when pytest started; skips where it named none."""
    if not REAL_DATA:
        pytest.skip("CIFAR10_DIR is not set")
    return Path(REAL_DATA).resolve()


def write_image(path: Path, image: np.ndarray) -> Path:
    """Write (3, H, W) uint8 RGB in the suffix's format, lossless but for JPEG; returns `path`."""
    suffix = path.suffix.lower()
    lossless = [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == ".webp" else []
    bgr = np.ascontiguousarray(image.transpose(1, 2, 0)[:, :, ::-1])
    _, content = cv2.imencode(suffix, bgr, lossless)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.tobytes())
    return path


@pytest.fixture
def make_tree(tmp_path: Path) -> Callable[..., Path]:
    """A function that builds a class-folder tree of noise images, `train` and `test` of them a
    class, and returns its folder."""
    def make(classes: tuple[str, ...] = ("ant", "bee", "cow"), train: int = 4, test: int = 2,
             size: int = 32, suffix: str = ".png", name: str = "tree") -> Path:
        rng = np.random.RandomState(0)
        for half, count in (("train", train), ("test", test)):
            for label in classes:
                for i in range(count):
                    image = rng.randint(0, 256, (3, size, size)).astype(np.uint8)
                    path = tmp_path / name / half / label / f"image{i}{suffix}"
                    write_image(path, image)
        return tmp_path / name
    return make


@pytest.fixture(scope="session")
def splits() -> Splits:
    """400 train / 100 val / 100 test drawn images."""
    pools = {"train": as_split(*draw(50, seed=0)), "test": as_split(*draw(10, seed=1))}
    return divide(pools, DRAWN_CLASSES, "synthetic", val_size=100)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, in place of their files."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: figures.append(figure))
    return figures


def environment(**variables: str) -> dict[str, str]:
    """Of a script: one thread, no data of the user's, and `variables`."""
    ours = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
    ours.pop("CIFAR10_DIR", None)
    return ours


def run(cwd: Path, script: str, *words: object, timeout: float = 300,
        **variables: str) -> subprocess.CompletedProcess[str]:
    """One of the scripts, or `-c CODE`, run to its end in `cwd`: exit code, stdout and stderr."""
    target = str(ROOT / script) if script.endswith(".py") else script
    return subprocess.run([sys.executable, target, *map(str, words)], cwd=cwd, capture_output=True,
                          text=True, timeout=timeout, env=environment(**variables))


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The only line on stderr of a process that failed as it should."""
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run` in tmp_path."""
    return partial(run, tmp_path)


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
         capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """A function that calls the `main` of a script or module in this process, which saves the
    seconds that torch takes to load: exit code and output. Works in tmp_path; errors are raised."""
    monkeypatch.chdir(tmp_path)

    def call(script: str, *words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [str(ROOT / script), *map(str, words)])
        code = importlib.import_module(script.removesuffix(".py")).main() or 0
        return code, capsys.readouterr().out
    return call
