"""analyze.py from checkpoint to report: numbers that agree, folders kept apart, bad input."""

import csv
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import train_baseline
from analyze import Options, analyze
from common.analysis import figures, inputs, scores
from common.analysis.faithfulness import faithfulness, heat_below, heat_on_shapes
from common.analysis.gradcam import grad_cam, hires_cam
from common.config import Recipe, Runtime
from common.data import synthetic
from common.data.augment import Augmentation, Preprocess
from common.data.sources import CLASSES, load_splits
from common.data.splits import as_split
from common.errors import InputError
from common.files import read_checkpoint, sha256
from common.metrics import confusion_matrix
from common.models.build import build
from conftest import ROOT, write_image

TINY = replace(train_baseline.DEFAULT, model="improved_cnn", epochs=2, lr=1e-2, batch_size=25)
FIGURES = {
    "confusion",
    "per_class",
    "reliability",
    "errors",
    "heat_right",
    "heat_wrong",
    "heat_methods",
    "faithfulness",
}


def trained(folder: Path, recipe: Recipe, data_dir: Path | None = None) -> Path:
    """The best.pt of a run of two epochs, in the precision in which an analysis computes."""
    place = Runtime(data_dir=data_dir and str(data_dir), device="cpu", amp="off", run_name="tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train_baseline.train(recipe, place)
    return folder / "runs" / "train_baseline" / "tiny" / "best.pt"


def noise_tree(
    folder: Path,
    classes: tuple[str, ...],
    size: int = 32,
    train: int = 4,
    test: int = 3,
    seed: int = 0,
) -> Path:
    """A class-folder tree of noise images, their names the official kind of index."""
    rng = np.random.RandomState(seed)
    for half, count in (("train", train), ("test", test)):
        for k, name in enumerate(classes):
            for i in range(count):
                write_image(
                    folder / half / name / f"{i * len(classes) + k}.png",
                    rng.randint(0, 256, (3, size, size)).astype(np.uint8),
                )
    return folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint trained on the drawn set."""
    return trained(
        tmp_path_factory.mktemp("drawn"),
        replace(TINY, synthetic=True, train_limit=300, val_size=100),
    )


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint trained on noise under CIFAR-10's class names, and the noise."""
    home = tmp_path_factory.mktemp("cifar")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        tree = noise_tree(home / "tree", CLASSES)
        return trained(home, TINY, tree), tree


@pytest.fixture(scope="module")
def analysed(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of an analysis of the drawn set, and the titles of its figures."""
    titles, save = [], Figure.savefig

    def noting(figure, file, **settings):
        titles.append(figure.get_suptitle() or figure.axes[0].get_title())
        save(figure, file, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", noting)
        options = Options(str(drawn), faithfulness=12)
        out = str(tmp_path_factory.mktemp("analysed"))
        return analyze(options, Runtime(device="cpu", out=out)), titles


def strict(path: Path) -> dict:
    """A JSON file that holds only what every reader of JSON knows."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_numbers_agree_with_each_other_and_with_the_training_run(
    analysed: tuple[Path, list[str]], drawn: Path
) -> None:
    folder, _ = analysed
    result, rows = strict(folder / "analysis.json"), table(folder / "predictions.csv")
    classes, confusion = result["classes"], np.array(result["confusion"])
    assert (
        classes == list(read_checkpoint(drawn)["classes"])
        and len(rows) == result["images"] == confusion.sum() == 1000
    )
    recount = Counter((row["true"], row["predicted"]) for row in rows)
    assert {(classes[i], classes[j]): n for (i, j), n in np.ndenumerate(confusion) if n} == recount
    assert [row["support"] for row in result["per_class"]] == confusion.sum(1).tolist()
    assert result["errors"] == 1000 - confusion.trace() and result["top1"] == pytest.approx(
        confusion.trace() / 1000
    )
    assert result["nll"] == pytest.approx(np.mean([float(row["loss"]) for row in rows]))
    assert result["calibration"]["mean_confidence"] == pytest.approx(
        np.mean([float(row["confidence"]) for row in rows])
    )
    assert sum(result["calibration"]["count"]) == 1000
    run = json.loads((drawn.parent / "result.json").read_text())
    assert (result["top1"], result["nll"]) == pytest.approx(
        (run["test_top1"], run["test_loss"]), abs=2e-3  # two images: other layouts round otherwise
    )
    assert result["interval_95"] == pytest.approx(run["test_interval_95"])

    written = [
        [int(value) for value in row[1:]]
        for row in csv.reader(open(folder / "confusion.csv"))
        if row[0] != "true"
    ]
    assert written == confusion.tolist()
    for row, expected in zip(table(folder / "per_class.csv"), result["per_class"], strict=True):
        assert (
            row["class"] == expected["class"]
            and float(row["f1"]) == expected["f1"]
            and int(row["support"]) == expected["support"]
        )
    losses = [row["loss"] for row in result["shown"]["errors"]]
    assert losses == sorted(losses, reverse=True) and len(losses) == 25
    assert losses[0] == max(float(row["loss"]) for row in rows if row["true"] != row["predicted"])
    for one, kind in zip(result["shown"]["heat_wrong"], result["most_confused"], strict=True):
        assert (one["true"], one["predicted"]) == (kind["true"], kind["predicted"])
        assert one["confidence"] >= one["second_confidence"]


def test_every_figure_is_there_and_says_what_and_of_which_run(
    analysed: tuple[Path, list[str]],
) -> None:
    folder, titles = analysed
    drawn = {path.stem for path in folder.glob("*.png")}
    assert FIGURES <= drawn <= {*FIGURES, "heat_planes"}
    assert len(titles) == len(set(titles)) == len(drawn)
    assert all(title.endswith("tiny: 1,000 test images, synthetic") for title in titles)


def test_the_report_stands_alone_and_shows_the_numbers_of_analysis_json(
    analysed: tuple[Path, list[str]],
) -> None:
    folder, _ = analysed
    result = strict(folder / "analysis.json")
    page = (folder / "report.html").read_text().replace("&nbsp;", " ")
    sources = re.findall(r'\b(?:src|href|srcset|data|action)\s*=\s*"([^"]{0,30})', page)
    assert len(sources) == len(list(folder.glob("*.png")))
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"<script|<link|@import|url\(|https?:|file:", page)
    rows = [re.findall(r"<td.*?>(.*?)</td>", row) for row in re.findall(r"<tr>.*?</tr>", page)]
    for row in result["per_class"]:
        cells = next(
            cells for cells in rows if cells and cells[0] == row["class"] and len(cells) == 5
        )
        precision = row["precision"]
        assert cells[1] == f"{100 * row['recall']:.1f} %"
        assert cells[2] == ("–" if precision is None else f"{100 * precision:.1f} %")
        assert cells[3:] == [f"{row['f1']:.3f}", f"{row['support']:,}"]
    for one in result["most_confused"]:
        assert [one["true"], one["predicted"], str(one["images"])] in rows
    for shown in (
        f"{100 * result['top1']:.1f} %",
        f"{100 * result['calibration']['ece']:.1f} %",
        f"{result['nll']:.4f}",
        result["heat_maps"]["where"],
        result["source"],
        result["request"]["ckpt"][:12],
    ):
        assert shown in page
    assert "Synthetic: these images are drawn" in page and "It closed with" not in page
    assert result["on_shape"]["area"]["n"] > 0 and "On drawn shapes lies" in page


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures: they take most of the time of a small analysis."""
    for name in ("confusion", "recall_and_precision", "reliability", "cases", "faithfulness"):
        monkeypatch.setattr(figures, name, lambda *_, **__: None)


def test_the_data_of_the_training_is_found_again(
    cifar: tuple[Path, Path], tmp_path: Path, undrawn: None
) -> None:
    ckpt, tree = cifar
    here = Runtime(device="cpu", out=str(tmp_path), offline=True)
    folder = analyze(Options(str(ckpt), faithfulness=2), here)  # no --data-dir
    assert strict(folder / "analysis.json")["images"] == len(list((tree / "test").rglob("*.png")))
    moved = tree.with_name("moved")
    tree.rename(moved)
    try:
        with pytest.raises(InputError, match="--data-dir"):
            analyze(Options(str(ckpt), faithfulness=2), here)
    finally:
        moved.rename(tree)


def test_the_same_command_writes_the_same_bytes_and_the_checkpoint_stays(
    cifar: tuple[Path, Path], tmp_path: Path
) -> None:
    (ckpt, tree), moved = cifar, tmp_path / "moved.pt"
    before = sha256(shutil.copy(ckpt, moved))
    place = Runtime(device="cpu", data_dir=str(tree), out=str(tmp_path))
    folder = analyze(Options(str(moved), faithfulness=2, open_errors=3), place)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert folder.name in ("tiny", TINY.name()) and "report.html" in files
    assert len(strict(folder / "analysis.json")["shown"]["errors"]) == 3
    assert analyze(Options(str(moved), faithfulness=2, open_errors=3), place) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert sha256(moved) == sha256(ckpt) == before
    assert (
        "It closed with" not in (folder / "report.html").read_text()
    ), "30 images are not the test set"


def test_another_analysis_never_overwrites_one(
    cifar: tuple[Path, Path], tmp_path: Path, undrawn: None
) -> None:
    ckpt, tree = cifar

    def name(given: str | None = None, **options: object) -> str:
        """Folder name of one more analysis."""
        place = Runtime(device="cpu", data_dir=str(tree), out=str(tmp_path), run_name=given)
        return analyze(Options(str(ckpt), limit=6, faithfulness=2, **options), place).name

    names = [name(), name(seed=1), name(seed=1), name(), name(split="val")]
    assert names == ["tiny", "tiny-2", "tiny-2", "tiny", "tiny-val"], "named after the run"
    assert name("mine") == name("mine") == "mine"
    with pytest.raises(InputError, match="mine holds something else: choose another --name"):
        name("mine", seed=1)


def test_val_is_the_split_that_training_held_out(
    cifar: tuple[Path, Path], tmp_path: Path, undrawn: None
) -> None:
    ckpt, tree = cifar
    folder = analyze(
        Options(str(ckpt), split="val", faithfulness=2),
        Runtime(device="cpu", data_dir=str(tree), out=str(tmp_path)),
    )
    held = load_splits(TINY, Runtime(data_dir=str(tree))).val.index.tolist()
    assert [int(row["index"]) for row in table(folder / "predictions.csv")] == held
    result = strict(folder / "analysis.json")
    assert result["top1"] == pytest.approx(read_checkpoint(ckpt)["metrics"]["val_top1"])
    assert not result["is_cifar10"], "its class names are, its pixels are not"


@pytest.mark.parametrize("limit", [1, 7])
def test_one_image_gives_no_interval_rather_than_a_wrong_one(
    limit: int, cifar: tuple[Path, Path], tmp_path: Path
) -> None:
    ckpt, tree = cifar
    folder = analyze(
        Options(str(ckpt), limit=limit, cam="gradcam", layer="blocks.0"),
        Runtime(device="cpu", data_dir=str(tree), out=str(tmp_path)),
    )
    result = strict(folder / "analysis.json")
    assert (
        result["images"]
        == len(table(folder / "predictions.csv"))
        == result["faithfulness"]["images"]
        == limit
    )
    differences = result["faithfulness"]["differences"]
    assert result["heat_maps"]["cam"] == "gradcam" and differences.keys() == {"all"}
    assert differences["all"].keys() == {"hirescam", "chance", "centre"}
    gain = differences["all"]["chance"]["deletion"]
    assert (gain["low"] is None) == (limit == 1) and gain["n"] == limit
    page = (folder / "report.html").read_text()
    assert "Grad-CAM for 32-pixel inputs, maps of 16×16 (blocks.0)" in page
    assert "heat maps (Grad-CAM)" in page
    never = [row for row in result["per_class"] if not row["support"]]
    assert never and all(row["recall"] is None and row["f1"] is None for row in never)


def subject(model: nn.Module, size: int) -> inputs.Subject:
    """As much of a Subject as heat maps need; its layer `look` passes the input on."""
    prepare = Preprocess((0.0,) * 3, (1.0,) * 3, 1, Augmentation(), torch.device("cpu"))
    return inputs.Subject(Path(), "", model, {}, Recipe(), (), size, prepare, "hirescam",
                          ("look",), "look", "")


def test_heat_below_is_the_share_of_the_lower_half() -> None:
    maps = torch.zeros(3, 4, 4)
    maps[0, 0], maps[0, 3] = 0.25, 0.75
    maps[1, 2:] = 1
    found = heat_below(maps)
    assert found["n"] == 2 and found["mean"] == pytest.approx(
        (0.75 + 1) / 2
    ), "a map without heat has no half"
    assert heat_below(torch.ones(1, 5, 3))["mean"] == pytest.approx(2 / 5), "not the middle row"
    assert heat_below(maps[:0]) == {"mean": None, "std": None, "low": None, "high": None, "n": 0}


class Light(nn.Module):
    """Is the surer of its first class the more bright pixels there are, wherever they lie."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        seen = self.look(x - 0.4).mean((1, 2, 3))
        return torch.stack([80 * seen, -80 * seen], 1)


def test_faithfulness_prefers_the_true_places_over_both_controls() -> None:
    """Of a model that sees one corner alone, another in each image, HiResCAM finds it, and neither
    another image's map nor the centre does."""
    model = Light()
    images = torch.zeros(120, 3, 16, 16, dtype=torch.uint8)
    for i, image in enumerate(images):
        y, x = 12 * (i % 2), 12 * (i // 2 % 2)
        image[:, y:y + 4, x:x + 4] = 160 + i % 90
    targets, one = torch.zeros(120, dtype=torch.int64), subject(model, 16)
    found = faithfulness(one, images, targets)
    assert found["images"] == 120
    assert found["curves"].keys() == {"hirescam", "gradcam", "chance", "centre"}
    for control in ("chance", "centre"):
        by = found["differences"][control]
        assert by["deletion"]["high"] < 0 < by["insertion"]["low"] and by["deletion"]["n"] == 120
    curve, control = (found["curves"][kind]["deletion"] for kind in ("hirescam", "centre"))
    area = np.trapezoid(np.subtract(curve["mean"], control["mean"]), found["shares"])
    assert area == pytest.approx(found["differences"]["centre"]["deletion"]["mean"], abs=1e-6)
    assert len(curve["mean"]) == 5 and curve["mean"][-1] == pytest.approx(0.5)
    fewer = faithfulness(one, images, targets, ("hirescam", "centre"))
    assert fewer["differences"] == {"centre": found["differences"]["centre"]}


def test_heat_is_that_of_the_method_asked_for_at_any_number_of_images(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.training.loop.EVAL_PIXELS", 12 * 32 * 32)
    model = seeded_cnn()
    one = replace(subject(model, 32), layers=("blocks.0", "blocks.1"), layer="blocks.2")
    images = torch.randint(256, (7, 3, 32, 32), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))
    targets, clean = torch.arange(7), one.prepare.clean(images)
    for cam, expected in (("hirescam", hires_cam(model, one.layers, clean, targets)),
                          ("gradcam", grad_cam(model, "blocks.2", clean, targets))):
        torch.testing.assert_close(replace(one, cam=cam).heat(images, targets), expected)
        # Two and three images a pass, where memory holds no more.
        assert [len(part) for part, _ in one.portions(images, targets)] == [3, 2, 2]
        torch.testing.assert_close(one.heat(images, targets, cam), expected)
    assert one.heat(images[:0], targets[:0]).shape == (0, 32, 32)


def seeded_cnn() -> nn.Module:
    """ImprovedCNN with seeded weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build("improved_cnn").eval()


def test_heat_on_shapes_is_counted_where_they_were_drawn() -> None:
    """A map that is hot where the image differs from its mean finds the shape's own pixels."""
    pool = synthetic.POOLS["test"]
    (drawn, labels), places = synthetic.draw(*pool), synthetic.places(*pool)
    split = as_split(drawn, labels, [str(i) for i in range(len(labels))]).to("cpu")
    shapes = [i for i in range(60) if labels[i] < synthetic.SHAPES]
    one, shown = subject(nn.Identity(), 32), torch.from_numpy(places[shapes]).float()
    outside = 1 - shown.mean((1, 2))
    for heat, gain in ((shown, outside), (torch.ones_like(shown), 0 * outside)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(inputs.Subject, "heat", lambda *_, heat=heat: heat)
            found = heat_on_shapes(one, split, "test", torch.from_numpy(labels), shapes)
        assert found["heat"]["n"] == len(shapes)
        assert found["area"]["mean"] == pytest.approx(shown.mean().item())
        assert found["gain"]["mean"] == pytest.approx(gain.mean().item(), abs=1e-6)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(inputs.Subject, "heat", lambda *_, heat=heat: heat[:1])
            alone = heat_on_shapes(one, split, "test", torch.from_numpy(labels), shapes[:1])
        assert alone["gain"]["mean"] == pytest.approx(gain[0].item(), abs=1e-6)


def test_uneven_classes_and_one_never_predicted() -> None:
    labels = torch.tensor([0] * 6 + [1] * 2 + [2])
    logits = torch.nn.functional.one_hot(torch.tensor([0] * 8 + [2]), 4).double()
    found = scores.scores(logits, labels, "abcd")
    assert found["top1"] == pytest.approx(7 / 9) and found["balanced_top1"] == pytest.approx(2 / 3)
    columns = ("precision", "recall", "f1", "support")
    rows = [tuple(row[key] for key in columns) for row in found["per_class"]]
    assert rows == [
        (0.75, 1.0, pytest.approx(12 / 14), 6),
        (None, 0.0, 0.0, 2),
        (1.0, 1.0, 1.0, 1),
        (None, None, None, 0),
    ]
    assert found["calibration"]["bins"] == len(found["calibration"]["count"]) == 5


def test_best_and_worst_of_many_classes() -> None:
    rows = [{"class": str(k), "recall": k / 100, "support": int(k != 99)} for k in range(100)]
    shown = [row["class"] for row in scores.best_and_worst(rows)]
    assert shown == [str(k) for k in [*range(98, 78, -1), *range(19, -1, -1)]]


def test_changed_data_is_said_in_one_line_and_refused_for_val(
    drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = inputs.open_subject(drawn)
    splits = inputs.open_splits(one, Runtime(device="cpu"))
    generator = torch.Generator()
    inputs.pick_split(
        one, replace(splits, identity=one.card.get("identity", "")), "val", None, generator
    )
    assert capsys.readouterr().out == ""
    one.card["identity"], changed = "1" * 16, replace(splits, identity="2" * 16)
    assert len(inputs.pick_split(one, changed, "test", 7, generator)) == 7
    assert (
        capsys.readouterr().out
        == "this data is not the training's: its images, labels or classes differ\n"
    )
    with pytest.raises(InputError, match="--split val: this data does not give"):
        inputs.pick_split(one, changed, "val", None, generator)


def test_what_a_checkpoint_remembers_is_no_flag_of_the_users(drawn: Path, tmp_path: Path) -> None:
    """Trained with --smoke --data-dir DIR: the drawn set, whatever the card says of DIR."""
    one = inputs.open_subject(drawn)
    one.card["data_dir"] = str(tmp_path)
    assert inputs.open_splits(one, Runtime(device="cpu")).source == "synthetic"
    with pytest.raises(InputError, match="no effect on drawn images"):
        inputs.open_splits(one, Runtime(device="cpu", data_dir=str(tmp_path)))


@pytest.mark.parametrize("foreign", ["", "[1]", "{", "null"])
def test_a_foreign_record_is_another_analysis(foreign: str, tmp_path: Path) -> None:
    place = Runtime(out=str(tmp_path))
    assert inputs.open_folder(place, "run", {"seed": 0}).name == "run"
    assert inputs.open_folder(place, "run", {"seed": 0}).name == "run"
    (tmp_path / "analyze" / "run" / "request.json").write_text(foreign)
    assert inputs.open_folder(place, "run", {"seed": 0}).name == "run-2"


# Runs the script once for every command line in one interpreter, each as its own process would.
DRIVER = """
import contextlib, io, json, runpy, sys
answers = []
for line in json.loads(sys.argv[2]):
    sys.argv, out, err, code = [sys.argv[1], *line], io.StringIO(), io.StringIO(), None
    script = sys.argv[0]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        except BaseException as error:
            code = repr(error)
    answers.append([code, err.getvalue()])
    sys.argv = [None, script]
print(json.dumps(answers))
"""
BAD = {
    "missing": "does not exist",
    "folder": "is a folder",
    "empty": "is empty",
    "truncated": "not a readable checkpoint",
    "html": "not a readable checkpoint",
    "pickle": "not a readable checkpoint",
    "zipped pickle": "not a readable checkpoint",
    "list": "holds a list",
    "last.pt": "lacks 'probe'",
    "state dict": "lacks 'format'",
    "format": "has format 99",
    "weights": "recorded logits",
    "architecture": "does not fit its own description",
    "outputs": "does not fit its own description",
    "classes": "does not fit its own description",
    "no recipe": "lacks 'recipe'",
    "strange recipe": "does not describe itself",
    "resize": "does not describe itself",
    "mean": "does not describe itself",
    "--data-dir": "no effect on drawn images",
    "no data": "--data-dir",
    "fewer classes": "but the data has airplane, automobile, bird at",
    "another split": "held out",
    "too little data": "was trained on: --val-size",
    "layer": "choose from blocks.0.0, blocks.0.1",
    "layer without Grad-CAM": "--layer is one of Grad-CAM",
    "--limit": "whole number of at least 1",
    "no effect": "--limit has no effect on your own pictures",
    "no picture": "no picture there",
    "--split": "invalid choice",
    "--device": "sees no CUDA GPU",
    **{f"bit {i}": "" for i in range(24)},
}


class Malicious:
    """Touches a file when unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple:
        return Path.touch, (self.victim,)


def flipped(content: bytes, at: int) -> bytes:
    """The bytes with one bit changed."""
    return content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]


def places(path: Path, count: int) -> list[int]:
    """Offsets in a zip file's records: one in each tensor, some in the pickle, the rest evenly."""
    with zipfile.ZipFile(path) as archive:
        content, records = path.read_bytes(), archive.infolist()
    begin = {
        r.filename: r.header_offset
        + 30
        + sum(
            int.from_bytes(content[r.header_offset + i : r.header_offset + i + 2], "little")
            for i in (26, 28)
        )
        for r in records
    }
    tensors = [r for r in records if "/data/" in r.filename]
    pickled = next(r for r in records if r.filename.endswith("data.pkl"))
    spots = [begin[r.filename] + r.file_size // 2 for r in tensors]
    spots += [begin[pickled.filename] + i * pickled.file_size // 5 for i in range(5)]
    largest = max(tensors, key=lambda r: r.file_size)
    spots += [
        begin[largest.filename] + i * largest.file_size // (count + 1)
        for i in range(1, count - len(spots) + 1)
    ]
    return spots[:count]


@pytest.fixture(scope="module")
def answers(
    drawn: Path, cifar: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, tuple], Path]:
    """Exit code and stderr for every case of BAD, and the file that a malicious one would leave."""
    home = tmp_path_factory.mktemp("bad")
    ckpt, tree = cifar
    whole, card, victim = drawn.read_bytes(), read_checkpoint(drawn), home / "executed"

    def file(name: str, content: bytes) -> list[str]:
        (home / name).write_bytes(content)
        return ["--ckpt", str(home / name)]

    def saved(name: str, value: object) -> list[str]:
        torch.save(value, home / name)
        return ["--ckpt", str(home / name)]

    shifted = {key: value + 0.01 for key, value in card["weights"].items()}
    real = ["--ckpt", str(ckpt), "--data-dir"]
    (home / "void").mkdir()
    few = noise_tree(home / "few", CLASSES[:3], train=20)
    other = noise_tree(home / "other", CLASSES, train=6)
    valued = saved(
        "valued.pt",
        {**read_checkpoint(ckpt), "recipe": {**read_checkpoint(ckpt)["recipe"], "val_size": 39}},
    )
    lines = {
        "missing": ["--ckpt", str(home / "nowhere.pt")],
        "folder": ["--ckpt", str(home)],
        "empty": file("empty.pt", b""),
        "truncated": file("half.pt", whole[: len(whole) // 2]),
        "html": file("page.pt", b"<!DOCTYPE html><html><body>404</body></html>\n"),
        "pickle": file("bare.pt", pickle.dumps(Malicious(victim))),
        "zipped pickle": saved("zip.pt", {**card, "recipe": Malicious(victim)}),
        "list": saved("list.pt", [1, 2]),
        "last.pt": ["--ckpt", str(drawn.parent / "last.pt")],
        "state dict": saved("state.pt", card["weights"]),
        "format": saved("format.pt", {**card, "format": 99}),
        "weights": saved("weights.pt", {**card, "weights": shifted}),
        "architecture": saved("arch.pt", {**card, "arch": {**card["arch"], "name": "se_resnet18"}}),
        "outputs": saved("outputs.pt", {**card, "arch": {**card["arch"], "num_classes": 7}}),
        "classes": saved("classes.pt", {**card, "classes": card["classes"][:9]}),
        "no recipe": saved(
            "norecipe.pt", {key: value for key, value in card.items() if key != "recipe"}
        ),
        "strange recipe": saved(
            "recipe.pt", {**card, "recipe": {**card["recipe"], "momentous": 1}}
        ),
        "resize": saved("resize.pt", {**card, "resize": 2}),
        "mean": saved("mean.pt", {**card, "mean": (0.5,)}),
        "--data-dir": ["--ckpt", str(drawn), "--data-dir", str(tree)],
        "no data": [*real, str(home / "nothing"), "--offline"],
        "fewer classes": [*real, str(few)],
        "another split": [*real, str(other), "--split", "val"],
        "too little data": [*valued, "--data-dir", str(tree)],
        "layer": ["--ckpt", str(drawn), "--cam", "gradcam", "--layer", "blocks.9"],
        "layer without Grad-CAM": ["--ckpt", str(drawn), "--layer", "blocks.1"],
        "--limit": ["--ckpt", str(drawn), "--limit", "0"],
        "no effect": ["--ckpt", str(drawn), "--images", "a.png", "--limit", "5"],
        "no picture": ["--ckpt", str(drawn), "--images", str(home / "void")],
        "--split": ["--split", "train"],
        "--device": ["--ckpt", str(drawn), "--device", "cuda"],
        **{
            f"bit {i}": file(f"bit{i}.pt", flipped(whole, at))
            for i, at in enumerate(places(drawn, 24))
        },
    }
    assert lines.keys() == BAD.keys()
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(ROOT / "analyze.py"), json.dumps(list(lines.values()))],
        cwd=home,
        capture_output=True,
        text=True,
        timeout=300,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(home / "cache"),
            "CUDA_VISIBLE_DEVICES": "",
        },
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(lines, json.loads(done.stdout), strict=True)), victim


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_2(
    case: str, answers: tuple[dict[str, tuple], Path]
) -> None:
    code, error = answers[0][case]
    assert code == 2, error
    assert (
        len(error.splitlines()) == 1
        and error.startswith("analyze.py: ")
        and BAD[case] in error
        and "Traceback" not in error
    )
    assert not answers[1].exists(), "the checkpoint's own code ran"


def test_scores_of_each_class_against_plain_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    labels, preds = torch.randint(5, (2, 200), generator=generator)
    labels[labels == 3] = 2  # a class without images
    preds[preds == 4] = 2  # a class that is never predicted
    rows = scores.class_rows(confusion_matrix(preds, labels, 5), "abcde")
    pairs = list(zip(labels.tolist(), preds.tolist()))
    for k, row in enumerate(rows):
        right = pairs.count((k, k))
        there, called = labels.tolist().count(k), preds.tolist().count(k)
        assert (row["class"], row["support"]) == ("abcde"[k], there)
        assert row["precision"] == (right / called if called else None)
        assert row["recall"] == (right / there if there else None)
        assert row["f1"] == (2 * right / (there + called) if there else None)
