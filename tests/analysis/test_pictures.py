"""analyze.py --images: a line a picture, a table of all, heat maps; what is broken is named."""
import csv
import html
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from common.analysis import pictures
from common.analysis.figures import PX
from common.analysis.inputs import Subject
from common.config import Recipe, Runtime, Stage
from common.data.splits import Splits
from common.errors import InputError, RunError
from common.training.lifecycle import build_model, open_run
from common.training.loop import fit
from conftest import ROOT, write_image

TINY = Recipe(epochs=1, batch_size=50)
HERE = Runtime(device="cpu", out="out")


@pytest.fixture(scope="module")
def ckpt(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint trained on drawn images."""
    runtime = Runtime(device="cpu", out=str(tmp_path_factory.mktemp("trained")), run_name="tiny")
    run = open_run("script", TINY, runtime, splits, build_model(TINY, splits))
    fit(run, Stage("train", 1, 1e-2))
    return run.folder / "best.pt"


def explain(ckpt: Path, *paths: object) -> int:
    """Exit code of `analyze.py --images` with these paths, in the current folder."""
    return pictures.explain_pictures(str(ckpt), "hirescam", None, [*map(str, paths)], HERE)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three photos, one of them broken, among files that are none."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.RandomState(0)
    for name in ("a <b>$5.png", "sub/猫.JPG", ".hidden/c.png", "._d.png"):
        pixels = rng.randint(0, 256, (3, 32, 32)).astype(np.uint8)
        write_image(tmp_path / "photos" / name, pixels)
    (tmp_path / "photos" / "broken.png").write_bytes(b"\x89PNG\r\n")
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    return tmp_path / "photos"


def test_pictures_are_named_explained_and_the_broken_left_out(
    ckpt: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain(ckpt, photos, photos / "nowhere.png") == 1
    _, *lines, last = capsys.readouterr().out.splitlines()
    for name, line in zip(["a <b>$5.png", "broken.png", "猫.JPG", "nowhere.png"], lines,
                          strict=True):
        left_out = name in ("broken.png", "nowhere.png")
        assert name in line and line.startswith("left out: ") == left_out
    assert last.startswith("2 pictures, 2 left out; report: ")

    folder = Path("out/analyze/tiny-pictures")
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [Path(row["name"]).name for row in table] == ["a <b>$5.png", "猫.JPG"]
    for row in table:
        shares = [float(row[f"probability{i}"]) for i in (1, 2, 3)]
        assert shares == sorted(shares, reverse=True) and sum(shares) <= 1 + 1e-6
        assert f"{row['class1']} {100 * shares[0]:.1f} %" in "\n".join(lines)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert html.escape("a <b>$5.png") in page and "<b>$5" not in page
    assert page.count("<li>") == 2 and page.count("data:image/png;base64,") == 1
    assert (folder / "pictures.png").stat().st_size > 10_000


def test_pictures_need_no_training_data_and_keep_their_folder(
    ckpt: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.analysis.inputs.load_splits", None)
    assert explain(ckpt, "photos/sub") == explain(ckpt, "photos/sub") == 0
    assert explain(ckpt, "photos/a <b>$5.png") == 0
    names = sorted(path.name for path in Path("out/analyze").iterdir())
    assert names == ["tiny-pictures", "tiny-pictures-2"]


def test_the_figure_is_bounded_and_explains_the_second_class_where_it_is_close(
    ckpt: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(pictures, "SHOWN", 2)
    draw = pictures.strips
    monkeypatch.setattr(pictures, "strips", lambda parts, *rest: (seen.extend(parts),
                                                                  draw(parts, *rest)))
    for second in (3.0, 1.0):
        probs = torch.tensor([[0.0, 3.5, second, *[-5.0] * 7]]).softmax(1)
        monkeypatch.setattr(Subject, "probs", lambda *_, probs=probs: probs)
        explain(ckpt, *[photos / "a <b>$5.png"] * 3)
    named = [re.findall(r"[a-z]+(?= [\d.]+ %)", caption) for _, caption in seen]
    assert named == [["ring", "square"]] * 2 + [["ring"]] * 2
    assert [strip.shape[1] // PX for strip, _ in seen] == [3, 3, 2, 2]
    folder = Path("out/analyze/tiny-pictures")
    assert len((folder / "predictions.csv").read_text(encoding="utf-8").splitlines()) == 4


def test_a_folder_without_pictures_is_one_line(ckpt: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no picture there"):
        explain(ckpt, tmp_path)


def test_no_report_is_named_where_no_picture_can_be_read(
    ckpt: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report of an earlier run, when the picture was whole, is neither named nor lost."""
    file = photos / "a <b>$5.png"
    assert explain(ckpt, file) == 0
    report = Path("out/analyze/tiny-pictures/report.html")
    before = report.read_bytes()
    file.write_bytes(b"\x89PNG\r\n")
    capsys.readouterr()
    with pytest.raises(RunError, match="1 picture, none of which can be read: no report"):
        explain(ckpt, file)
    assert "report.html" not in capsys.readouterr().out and report.read_bytes() == before


def test_the_lines_for_python_work_as_they_stand(
    ckpt: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (ROOT / "docs/python.md").read_text(encoding="utf-8").split("```")[1]
    code = lines.removeprefix("python\n")
    assert len([line for line in code.splitlines() if line]) <= 10
    shutil.copy(ckpt, "best.pt")
    shutil.copy(photos / "sub/猫.JPG", "photo.jpg")
    before = {path.name for path in Path().iterdir()}
    scope: dict = {}
    exec(code, scope)
    network, image, heat = scope["network"], scope["image"], scope["heat"]
    assert capsys.readouterr().out.split()[0] in " ".join(network.classes)
    assert {path.name for path in Path().iterdir()} == {*before, "heat.png"}, "nothing else is made"
    assert heat.shape == (32, 32) and 0 <= heat.min() <= heat.max() <= 1
    assert cv2.imread("heat.png", cv2.IMREAD_GRAYSCALE).shape == (32, 32)

    pixels = cv2.imread("photo.jpg")[:, :, ::-1]  # (H, W, 3), RGB
    assert torch.equal(network.read(pixels), image)
    assert torch.equal(network.read(Path("photo.jpg")), image)
    wide = network.read(np.full((10, 40, 3), (200, 100, 0), np.uint8))
    assert wide[0, :, 16, 16].tolist() == [200, 100, 0] and not wide[0, :, 0].any(), "padded"
