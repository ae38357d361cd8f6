"""The compiler check, the extension it builds, and the search for Rust, with faults planted."""
import io
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

from common import toolchain

ELF = b"\x7fELF\x02\x01\x01" + bytes(57)


@pytest.fixture(scope="session")
def checked(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, list[str]]:
    """Exit code and rows of the check on a closure of two packages, which leaves the extension
    loaded in this process; skips without a compiler."""
    if not shutil.which("c++"):
        pytest.skip("no compiler")
    small = tmp_path_factory.mktemp("check") / "small.txt"
    small.write_text("# two packages\npytest>=8\ntqdm\n")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as said:
        patch.setattr("sys.argv", ["toolchain"])
        patch.setattr(toolchain, "REQUIREMENTS", small)
        return toolchain.main(), said.getvalue().splitlines()


def make_distribution(folder: Path, name: str, requires: tuple[str, ...] = (),
                      files: dict[str, bytes] | None = None) -> None:
    """An installed distribution made by hand; no list of its files where `files` is None."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0"]
    lines += [f"Requires-Dist: {line}" for line in requires]
    (info / "METADATA").write_text("\n".join(lines))
    for path, content in (files or {}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    if files is not None:
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))


@pytest.mark.parametrize("seed", range(8))
def test_extension_counts_as_torch_does(checked: object, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    k = int(torch.randint(1, 120, (), generator=generator))
    n = (0, 1, 2, 1000, 32_768, 32_769, 65_537, 200_003)[seed]  # the work is cut at 32,768
    dtype = (torch.int64, torch.uint8, torch.int32)[seed % 3]
    pairs = torch.randint(k, (n, 2), generator=generator).to(dtype)
    labels, preds = pairs.unbind(1)  # not contiguous
    expected = torch.zeros(k, k, dtype=torch.int64)
    expected.index_put_((labels.long(), preds.long()), torch.tensor(1), accumulate=True)
    counts = torch.ops.cifar10_study.confusion(labels, preds, k)
    assert counts.dtype == torch.int64 and torch.equal(counts, expected)
    assert int(counts.sum()) == n


@pytest.mark.parametrize("labels, preds, message", [
    (torch.full((100_000,), 3), torch.zeros(100_000), "not in"),
    (torch.tensor([0, -1]), torch.zeros(2), "class -1"),
    (torch.zeros(2), torch.tensor([0, 7]), "or 7 at 1"),
    (torch.zeros(2), torch.zeros(3), "one length"),
    (torch.zeros(2, 2), torch.zeros(2, 2), "vectors"),
])
def test_extension_refuses_what_is_no_label(checked: object, labels: torch.Tensor,
                                            preds: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torch.ops.cifar10_study.confusion(labels.long(), preds.long(), 3)


def test_check_passes_here(checked: tuple[int, list[str]]) -> None:
    failed, rows = checked
    assert not failed and len(rows) == 4 and all(row.startswith("ok    ") for row in rows), rows
    assert "Python 3." in rows[0] and torch.__version__ in rows[0]
    assert rows[1].startswith("ok    compile    works on c")
    assert "equals PyTorch" in rows[2]
    assert rows[3].startswith("ok    packages") and rows[3].endswith("no Rust")


def test_fault_is_a_row_and_exit_1(run_script: Callable, tmp_path: Path) -> None:
    (tmp_path / "small.txt").write_text("tqdm\n")
    done = run_script("-c", "import pathlib\nfrom common import toolchain\n"
                      "toolchain.REQUIREMENTS = pathlib.Path('small.txt')\n"
                      "toolchain.run_script(toolchain.main)", PATH="/nowhere", CXX="")
    assert (done.returncode, done.stderr) == (1, "")
    rows = done.stdout.splitlines()
    assert [row.split("  ")[0] for row in rows] == ["ok", "FAIL", "FAIL", "ok"]
    assert "c++ is not on PATH: install it" in rows[2]


@pytest.mark.parametrize("compiler, said", [
    ("/bin/false", "/bin/false fails and does not say why"),
    ("no-such-compiler -v", "no-such-compiler is not on PATH"), ("/bin/ls", "/bin/ls: ")])
def test_bad_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
                                  compiler: str, said: str) -> None:
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setattr(toolchain, "check_compile", toolchain.check_versions)
    monkeypatch.setattr(toolchain, "closure", lambda lines: {})
    monkeypatch.setattr("sys.argv", ["toolchain"])
    assert toolchain.main() == 1
    _, _, row, _ = capsys.readouterr().out.splitlines()
    assert row.startswith(f"FAIL  extension  {said}")


def test_import_is_light(run_script: Callable) -> None:
    done = run_script("-c", "import sys, common.toolchain; print('torch' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("mark", toolchain.MARKS)
def test_mark_is_found_across_blocks(tmp_path: Path, mark: bytes) -> None:
    library = tmp_path / "library.so"
    block = 1 << 20
    for before in (0, block - len(ELF) - 5, 2 * block - len(ELF) - len(mark) + 1):
        library.write_bytes(ELF + bytes(before) + mark + bytes(100))
        assert toolchain.rust_marks(library) == [mark.decode()]


@pytest.mark.parametrize("content, expected", [
    (ELF + b"rust_eh_personality\0__gxx_personality_v0" + bytes(3 << 20), []),
    (b"!<arch>\n/rustc/1.80", ["/rustc/"]),
    (b"#!/bin/sh\necho /rustc/ rustc version 1", []),
    (b"", []),
])
def test_clean_and_foreign_files_are_told_apart(tmp_path: Path, content: bytes,
                                                expected: list[str]) -> None:
    (tmp_path / "file").write_bytes(content)
    assert toolchain.rust_marks(tmp_path / "file") == expected


def test_every_package_that_failed_is_named(tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    tool = ELF + b"\0rustc version 1.80.0 (051478957 2024-07-21)"
    files = {"pkg/__init__.py": b"# /rustc/", "pkg/clean.so": ELF, "../bin/tool": tool,
             "pkg/gone.so": ELF}
    make_distribution(tmp_path / "site", "planted", files=files)
    make_distribution(tmp_path / "site", "three", files={"three.so": ELF + b"/rustc/"})
    (tmp_path / "site/pkg/gone.so").unlink()
    monkeypatch.setattr("sys.path", [str(tmp_path / "site")])
    monkeypatch.setattr(toolchain, "REQUIREMENTS", tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("planted\nthree\nabsent\n")

    def said() -> str:
        try:
            return toolchain.check_packages()
        except RuntimeError as error:
            return str(error)

    assert said() == ("planted is built with Rust (tool: rustc version ); "
                      "three is built with Rust (three.so: /rustc/)")
    (tmp_path / "site/planted-1.0.dist-info/RECORD").unlink()
    assert said().startswith("planted has no list of its files: install it again; three is ")
    (tmp_path / "site/three.so").write_bytes(ELF)
    (tmp_path / "list.txt").write_text("three")
    assert said() == "1 package, no Rust"


def test_closure_follows_extras_only_where_asked(tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    house = ("wall[stone]>=1 ; platform_system != 'x'", "roof (>=4)", "ghost")
    wall = ("quarry>=2; extra == 'stone'", "house")
    make_distribution(tmp_path, "house", house)
    make_distribution(tmp_path, "wall", wall)
    for name in ("quarry", "roof"):
        make_distribution(tmp_path, name)
    monkeypatch.setattr("sys.path", [str(tmp_path)])

    def names(line: str) -> set[str]:
        return {*toolchain.closure([line])}

    everything = {"house", "wall", "quarry", "roof"}
    assert names("House>=1  # the root") == names("wall[stone]") == everything
    assert names("wall") == everything  # through house, which asks for stone
    assert names("ghost") == names("") == names("# nothing") == set()
    make_distribution(tmp_path, "fence", ("quarry; extra == 'stone'",))
    assert names("fence") == {"fence"}


@pytest.mark.slow
def test_whole_closure_holds_no_rust(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the one mark that nearly every Rust binary holds: all six take half a minute."""
    monkeypatch.setattr(toolchain, "MARKS", toolchain.MARKS[:1])
    assert toolchain.check_packages().endswith("no Rust")
