"""Figures: what they show, read back from the axes or the pixels, and how they are saved."""
import warnings
from pathlib import Path
from typing import BinaryIO

import cv2
import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from common.plots import ACCENT, MUTED, TRAIN, VAL, mosaic, new_figure
from common.training.display import curves, sample_grid


def history(head: int, tune: int) -> list[dict[str, object]]:
    """`head` epochs at 1e-3, then `tune` epochs of a rate that ends at 0; the last but one is
    best."""
    total = head + tune
    return [{"stage": "head" if i < head else "finetune", "epoch": i + 1,
             "train_loss": 2 - i / total, "train_top1": 0.3 + 0.5 * i / total,
             "val_loss": 1.8 - i / total, "val_top1": 0.9 if i == max(total - 2, 0) else 0.4,
             "lr": 1e-3 if i < head else 1e-4 * (total - 1 - i)} for i in range(total)]


def solid(colours: list[tuple[int, int, int]], each: int,
          size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """`each` one-coloured images per class, and their labels."""
    labels = np.tile(np.arange(len(colours)), each)
    images = np.asarray(colours, np.uint8)[labels][:, :, None, None]
    return np.broadcast_to(images, (len(labels), 3, size, size)), labels


def count(path: Path, colour: tuple[int, int, int]) -> int:
    """Pixels of exactly this RGB colour."""
    return int((cv2.imread(str(path))[:, :, ::-1] == colour).all(2).sum())


def test_sample_grid_shows_whole_images_of_each_class(tmp_path: Path) -> None:
    images, labels = solid([(201, 3, 3), (3, 202, 3)], each=10)
    keep = (labels == 0) | (np.arange(len(labels)) < 8)  # 10 of the first class, 4 of the second
    sample_grid(images[keep], labels[keep], ["red", "green"], tmp_path / "grid.png", "synthetic")
    tile = (3 * 32) ** 2
    assert count(tmp_path / "grid.png", (201, 3, 3)) == pytest.approx(10 * tile, rel=0.03)
    assert count(tmp_path / "grid.png", (3, 202, 3)) == pytest.approx(4 * tile, rel=0.03)


def test_sample_grid_stops_at_twenty_classes(tmp_path: Path, kept: list[Figure]) -> None:
    images, labels = solid([(k, k, k) for k in range(30)], each=1, size=16)
    sample_grid(images, labels, [f"class {k}" for k in range(30)], tmp_path / "g.png", "many")
    (axes,) = kept[0].axes
    assert [t.get_text() for t in axes.get_yticklabels()] == [f"class {k}" for k in range(20)]
    assert kept[0].get_suptitle() == "many (first 20 of 30 classes)"


def test_curves_mark_stage_and_best_epoch(tmp_path: Path, kept: list[Figure]) -> None:
    curves(history(4, 8), tmp_path / "c.png", "synthetic: B2")
    loss, accuracy, *rates = kept[0].axes
    assert len(rates) == 2
    for axes in kept[0].axes:
        dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
        assert [list(line.get_xdata()) for line in dashed] == [[4.5, 4.5]]
    stars = [line for axes in (loss, accuracy) for line in axes.lines if line.get_marker() == "*"]
    assert [line.get_xdata()[0] for line in stars] == [11, 11]
    assert [line.get_ydata()[0] for line in stars] == pytest.approx([1.8 - 10 / 12, 90])
    legend = [text.get_text() for text in accuracy.get_legend().get_texts()]
    assert {"best epoch: 11, val 90.00 %", "stage finetune begins"} < {*legend}
    for axes in rates:
        assert axes.get_xlim() == loss.get_xlim()
    assert kept[0].get_suptitle() == "synthetic: B2"


def test_a_spike_of_the_first_epoch_flattens_nothing(tmp_path: Path, kept: list[Figure]) -> None:
    rows = history(6, 0)
    curves(rows, tmp_path / "c.png", "calm")
    rows[0]["train_loss"] = 80.0
    curves(rows, tmp_path / "c.png", "spike")
    calm, spiked = (figure.axes[0] for figure in kept)
    assert 2 < calm.get_ylim()[1] < 2.5 and spiked.get_ylim()[1] < 4


@pytest.mark.parametrize("head, tune", [(1, 0), (4, 30)])
def test_curves_are_drawn_at_every_length(head: int, tune: int, tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    curves(history(head, tune), path, "synthetic")
    height, width = cv2.imread(str(path)).shape[:2]
    assert 1200 < width < 1500 and 600 < height < 800
    for colour in (TRAIN, VAL, ACCENT, MUTED):
        assert count(path, tuple(bytes.fromhex(colour[1:]))) > 10, colour


def test_curves_of_one_stage_have_no_stage_line_and_a_single_epoch_is_a_dot(
        tmp_path: Path, kept: list[Figure]) -> None:
    curves(history(1, 0), tmp_path / "c.png", "one epoch")
    assert [line.get_marker() for line in kept[0].axes[0].lines] == [".", ".", "*"]
    assert not any(line.get_linestyle() == "--" for axes in kept[0].axes for line in axes.lines)
    assert "plain cross-entropy" in kept[0].get_supxlabel()


def drawn(name: str, path: Path) -> None:
    """A figure whose title, note, tick and text all say `name`."""
    with new_figure(path, name, (6, 3), name) as figure:
        axes = figure.subplots()
        axes.set_xticks([0, 1], [name, "other"])
        axes.text(0.5, 0.5, name)
        figure.draw_without_rendering()


@pytest.mark.parametrize("name", ["$5", "$0_$10", "a_b^c % {d}", "\\frac$1$", "20251124"])
def test_a_name_is_text_and_never_markup(name: str, tmp_path: Path, kept: list[Figure]) -> None:
    drawn(name, tmp_path / "f.png")
    seen = kept[0].findobj(Text)
    assert [text.get_text() for text in seen].count(name) >= 4  # title, tick, text and note
    assert not any(text.get_parse_math() for text in seen)


@pytest.mark.parametrize("name", ["$0_$10", "数据 كلب 🐈", "a\tb\x1b"])
def test_any_name_is_drawn_without_a_warning(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn(name, tmp_path / "f.png")
    assert cv2.imread(str(tmp_path / "f.png")).std() > 0


def test_a_figure_has_bounds_whatever_it_shows(tmp_path: Path, kept: list[Figure]) -> None:
    with new_figure(tmp_path / "f.png", "1,500 classes", (500, 0.3 * 1500)):
        pass
    assert max(kept[0].get_size_inches()) < 31


def test_mosaic_enlarges_by_a_whole_number(tmp_path: Path, kept: list[Figure]) -> None:
    tiles = np.random.RandomState(0).randint(0, 255, (2, 3, 3, 8, 8)).astype(np.uint8)
    with mosaic(tmp_path / "m.png", "title", tiles, tile_px=30, below=0.25) as axes:
        canvas = axes.images[0].get_array()
    assert canvas.shape == (2 * (8 + 2 + 2), 3 * (8 + 2), 3)
    assert (canvas[12:20, 10:18] == tiles[1, 1].transpose(1, 2, 0)).all()
    assert (canvas[20:24] == 255).all() and (canvas[:, 18:20] == 255).all()
    assert kept[0].get_size_inches().tolist() == pytest.approx([30 * 4 / 150, 24 * 4 / 150])


def test_titles_are_made_of_names_and_fit(tmp_path: Path, kept: list[Figure]) -> None:
    with new_figure(tmp_path / "f.png", "run caf\udce9 " + "x" * 500 + "\nwhat it shows", (6, 3)):
        pass
    first, second = kept[0].get_suptitle().split("\n")
    assert first.startswith("run caf? xxx") and len(first) == 100 and second == "what it shows"


def test_same_figure_twice_is_the_same_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    for name in ("a.png", "b.png"):
        drawn("synthetic", tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]
    assert dict(matplotlib.rcParams) == before


def test_failed_save_keeps_the_old_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_the_disk(self: Figure, file: BinaryIO, **_: object) -> None:
        """Half a file, then the error of a full disk."""
        file.write(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "c.png").write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", fill_the_disk)
    with pytest.raises(OSError, match="No space"):
        drawn("synthetic", tmp_path / "c.png")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("c.png", b"old")]
