"""The compiler check, the extension it builds, and the search for Rust, with faults planted."""
import importlib.util
import os
import subprocess
import sysconfig
from collections.abc import Callable
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
import torch

from common import toolchain

ELF = b"\x7fELF\x02\x01\x01" + bytes(57)
compile_ready = toolchain.compile_ready.__wrapped__  # asked afresh at every call


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that holds the built extension, which this process has loaded too; skips without a compiler."""
    folder = tmp_path_factory.mktemp("extension")
    try:
        toolchain.find_compiler()
    except RuntimeError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        assert "equals PyTorch" in toolchain.check_extension()
    return folder


@pytest.fixture
def check(run_script: Callable, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs the check on a small closure under changed environment variables."""
    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "small.txt").write_text("# two packages\npytest>=8\ntqdm\n")
        return run_script("-m", "common.toolchain", "--requirements", tmp_path / "small.txt", timeout=180, **environment)
    return run


def make_distribution(folder: Path, name: str, requires: list[str] = [], files: dict[str, bytes] | None = None) -> PathDistribution:
    """An installed distribution made by hand; no list of its files where `files` is None."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *(f"Requires-Dist: {r}" for r in requires)]))
    for path, content in (files or {}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    if files is not None:
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))
    return PathDistribution(info)


@pytest.mark.parametrize("seed", range(8))
def test_extension_counts_as_torch_does(cache: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    k = int(torch.randint(1, 120, (), generator=generator))
    n = (0, 1, 2, 1000, 32_768, 32_769, 65_537, 200_003)[seed]  # the work is cut at 32,768
    dtype = (torch.int64, torch.uint8, torch.int32)[seed % 3]
    labels, preds = torch.randint(k, (n, 2), generator=generator).to(dtype).unbind(1)  # not contiguous
    expected = torch.zeros(k, k, dtype=torch.int64).index_put_((labels.long(), preds.long()), torch.tensor(1), accumulate=True)
    counts = torch.ops.cifar10_study.confusion(labels, preds, k)
    assert counts.dtype == torch.int64 and torch.equal(counts, expected) and int(counts.sum()) == n


def test_extension_puts_true_classes_in_rows(cache: Path) -> None:
    counts = torch.ops.cifar10_study.confusion(torch.tensor([0, 0, 2]), torch.tensor([1, 1, 0]), 3)
    assert counts.tolist() == [[0, 2, 0], [0, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("labels, preds, message", [
    (torch.full((100_000,), 3), torch.zeros(100_000), "not in"), (torch.tensor([0, -1]), torch.zeros(2), "class -1"),
    (torch.zeros(2), torch.tensor([0, 7]), "or 7 at 1"), (torch.zeros(2), torch.zeros(3), "one length"), (torch.zeros(2, 2), torch.zeros(2, 2), "vectors"),
])
def test_extension_refuses_what_is_no_label(cache: Path, labels: torch.Tensor, preds: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torch.ops.cifar10_study.confusion(labels.long(), preds.long(), 3)


def test_check_passes_here(cache: Path, check: Callable) -> None:
    done = check(XDG_CACHE_HOME=str(cache))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout and "failed: none" in done.stdout and done.stderr == ""
    for row in ("PyTorch ", "C++ compiler ", "torch.compile ", "C++ extension ", "pytest ", "pluggy ", "tqdm "):
        assert f"\nok    {row}" in done.stdout
    assert [entry.suffix for entry in (cache / "cifar10-study").iterdir()] == [".so"]


@pytest.mark.parametrize("variable, value, said", [
    ("CXX", "/bin/false", "/bin/false fails with exit status 1"),
    ("XDG_CACHE_HOME", "{tmp}/small.txt/below", "not writable (Not a directory): set XDG_CACHE_HOME"),
    pytest.param("PATH", "{tmp}", "g++ or clang++ or c++ is not on PATH: install a compiler", marks=pytest.mark.slow),
])
def test_fault_is_a_row_and_exit_1(check: Callable, tmp_path: Path, variable: str, value: str, said: str) -> None:
    done = check(**{variable: value.format(tmp=tmp_path)})
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert any(line.startswith("FAIL  C++ extension") and said in line for line in rows), done.stdout
    assert "ok    pytest" in done.stdout and "failed: none" not in done.stdout


@pytest.mark.parametrize("compiler, said", [("/bin/false", "it says nothing"), ("/bin/true", "compiles nothing"), ("no-such-compiler -v", "not on PATH")])
def test_bad_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch, compiler: str, said: str) -> None:
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    for device in ("cpu", "cuda"):
        assert said in compile_ready(device) and "\n" not in compile_ready(device)
    with pytest.raises(RuntimeError, match=said):
        toolchain.build_extension()


def test_compilers_are_looked_up_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RuntimeError, match=r"g\+\+ or clang\+\+ or c\+\+ is not on PATH"):
        toolchain.find_compiler()
    for name in ("c++", "clang++", "g++"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
        assert toolchain.find_compiler() == [str(tmp_path / name)]
    monkeypatch.setenv("CXX", "clang++ -m64")
    assert toolchain.find_compiler() == [str(tmp_path / "clang++"), "-m64"]


def test_compile_ready_agrees_with_the_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert compile_ready("cpu") is None
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert "Python.h" in compile_ready("cpu")


def test_missing_module_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert compile_ready("cuda") == "triton is not installed: pip install triton"
    assert compile_ready("cpu") == "setuptools is not installed: pip install setuptools"


def test_import_is_light(run_script: Callable) -> None:
    done = run_script("-c", "import sys, common.toolchain; print('torch' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("mark", toolchain.MARKS)
def test_mark_is_found_across_blocks(tmp_path: Path, mark: bytes) -> None:
    library = tmp_path / "library.so"
    for before in (0, (1 << 20) - len(ELF) - 5, (2 << 20) - len(ELF) - len(mark) + 1):
        library.write_bytes(ELF + bytes(before) + mark + bytes(100))
        assert toolchain.rust_marks(library) == [mark.decode()]


def test_clean_and_foreign_files_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for content, expected in ((ELF + b"rust_eh_personality\0__gxx_personality_v0" + bytes(3 << 20), []), (b"!<arch>\n/rustc/1.80", ["/rustc/"]),
                              (b"#!/bin/sh\necho /rustc/ rustc version 1", None), (b"", None)):
        file.write_bytes(content)
        assert toolchain.rust_marks(file) == expected


def test_planted_rust_is_named(tmp_path: Path) -> None:
    files = {"pkg/__init__.py": b"# /rustc/", "pkg/clean.so": ELF, "../bin/tool": ELF + b"\0rustc version 1.80.0 (051478957 2024-07-21)", "pkg/gone.so": ELF}
    distribution = make_distribution(tmp_path / "site", "planted", files=files)
    (tmp_path / "site/pkg/gone.so").unlink()
    with pytest.raises(RuntimeError, match=r"^built with Rust: tool \(rustc version \)$"):
        toolchain.scan(distribution)
    (tmp_path / "bin/tool").write_bytes(ELF)
    assert toolchain.scan(distribution) == "2 compiled files, 0.00 MB, no Rust"
    (tmp_path / "site/planted-1.0.dist-info/RECORD").unlink()
    with pytest.raises(RuntimeError, match="cannot be searched"):
        toolchain.scan(distribution)


def test_closure_follows_extras_only_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_distribution(tmp_path, "house", ["wall[stone,tall]>=1 ; platform_system != 'x'", "opencv-python (>=4)", "ghost"])
    make_distribution(tmp_path, "wall", ["quarry>=2; extra == 'stone'", "forest; extra == 'wood'", "house", "wall[wood]; extra == 'all'"])
    for name in ("quarry", "forest", "opencv-python-headless"):
        make_distribution(tmp_path, name)
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    found = {distribution.name for distribution in toolchain.closure(["House>=1  # the root"]).values()}
    assert found == {"house", "wall", "quarry", "opencv-python-headless"}
    assert {d.name for d in toolchain.closure(["wall[all]"]).values()} == {"house", "wall", "quarry", "forest", "opencv-python-headless"}
    assert toolchain.closure(["ghost", "", "# nothing"]) == {}


def test_numpy_and_its_closure_hold_no_rust() -> None:
    words = {name: toolchain.scan(distribution) for name, distribution in toolchain.closure(["numpy>=1", "matplotlib"]).items()}
    assert "no Rust" in words["numpy[]"] and {"kiwisolver[]", "pillow[]"} <= words.keys()


@pytest.mark.slow
def test_whole_closure_holds_no_rust() -> None:
    found = toolchain.closure(toolchain.REQUIREMENTS.read_text().splitlines())
    assert len({distribution.name for distribution in found.values()}) > 20
    assert any("no Rust" in toolchain.scan(distribution) for distribution in found.values())


@pytest.mark.slow
def test_read_only_cache_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tmp_path.joinpath("locked").mkdir(mode=0o555)
    if os.access(tmp_path / "locked", os.W_OK):
        pytest.skip("this user may write to read-only folders")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "locked"))
    with pytest.raises(RuntimeError, match="not writable"):
        toolchain.build_extension()
