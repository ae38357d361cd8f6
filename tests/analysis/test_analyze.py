"""analyze.py from checkpoint to report: numbers that agree with each other, folders that are never overwritten, and bad input."""
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
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import train_baseline
from analyze import Options, analyze
from common.analysis.faithfulness import faithfulness, halves, heat_maps
from common.data.sources import CLASSES, load_splits
from common.analysis import figures
from common.plots import _save
from common import plots
from common.data import synthetic
from common.data.augment import Augmentation
from common.config import Recipe, Runtime
from common.data.augment import Preprocess
from common.errors import InputError
from common.files import read_checkpoint, sha256
from common.analysis.gradcam import grad_cam
from conftest import ROOT, write_image

TINY = replace(train_baseline.DEFAULT, model="improved_cnn", epochs=2, lr=1e-2, batch_size=25)
FIGURES = ("confusion", "per_class", "reliability", "errors", "gradcam_right", "gradcam_wrong", "faithfulness")


def trained(folder: Path, recipe: Recipe, data_dir: Path | None = None) -> Path:
    """The best.pt of a one-epoch run of the baseline."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train_baseline.train(recipe, Runtime(data_dir=data_dir and str(data_dir), device="cpu", run_name="tiny"))
    return folder / "runs" / "train_baseline" / "tiny" / "best.pt"


def noise_tree(folder: Path, classes: tuple[str, ...], size: int = 32, train: int = 4, test: int = 3, seed: int = 0) -> Path:
    """A class-folder tree of noise images, their names the official kind of index."""
    rng = np.random.RandomState(seed)
    for half, count in (("train", train), ("test", test)):
        for k, name in enumerate(classes):
            for i in range(count):
                write_image(folder / half / name / f"{i * len(classes) + k}.png", rng.randint(0, 256, (3, size, size)).astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint trained on the drawn set."""
    return trained(tmp_path_factory.mktemp("drawn"), replace(TINY, synthetic=True, train_limit=300, val_size=100))


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
    titles, save = [], _save

    def noting(figure, path):
        titles.append(figure.get_suptitle() or figure.axes[0].get_title())
        save(figure, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.plots._save", noting)
        return analyze(Options(str(drawn), faithfulness=12), Runtime(device="cpu", out=str(tmp_path_factory.mktemp("analysed")))), titles


def strict(path: Path) -> dict:
    """A JSON file that holds only what every reader of JSON knows."""
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")
    return json.loads(path.read_text(), parse_constant=refuse)


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_numbers_agree_with_each_other_and_with_the_training_run(analysed: tuple[Path, list[str]], drawn: Path) -> None:
    folder, _ = analysed
    result, rows = strict(folder / "analysis.json"), table(folder / "predictions.csv")
    classes, confusion = result["classes"], np.array(result["confusion"])
    assert classes == list(synthetic.CLASSES) and len(rows) == result["images"] == confusion.sum() == 1000
    recount = Counter((row["true"], row["predicted"]) for row in rows)
    assert {(classes[i], classes[j]): n for (i, j), n in np.ndenumerate(confusion) if n} == recount
    assert [row["support"] for row in result["per_class"]] == confusion.sum(1).tolist()
    assert result["errors"] == 1000 - confusion.trace() and result["top1"] == pytest.approx(confusion.trace() / 1000)
    assert result["nll"] == pytest.approx(np.mean([float(row["loss"]) for row in rows]))
    assert result["calibration"]["mean_confidence"] == pytest.approx(np.mean([float(row["confidence"]) for row in rows]))
    assert sum(result["calibration"]["count"]) == 1000
    run = json.loads((drawn.parent / "result.json").read_text())
    assert (result["top1"], result["nll"]) == pytest.approx((run["test_top1"], run["test_loss"]), abs=1e-5)
    assert result["interval_95"] == pytest.approx(run["test_interval_95"])

    written = [[int(value) for value in row[1:]] for row in csv.reader(open(folder / "confusion.csv")) if row[0] != "true"]
    assert written == confusion.tolist()
    for row, expected in zip(table(folder / "per_class.csv"), result["per_class"], strict=True):
        assert row["class"] == expected["class"] and float(row["f1"]) == expected["f1"] and int(row["support"]) == expected["support"]
    losses = [row["loss"] for row in result["gallery"]]
    assert losses == sorted(losses, reverse=True) and len(losses) == 25 and losses[0] == max(float(row["loss"]) for row in rows if row["true"] != row["predicted"])
    for one, kind in zip(result["typical"], result["most_confused"], strict=True):
        assert (one["true"], one["predicted"]) == (kind["true"], kind["predicted"]) and one["confidence"] >= one["second_confidence"]


def test_every_figure_is_there_and_says_synthetic(analysed: tuple[Path, list[str]]) -> None:
    folder, titles = analysed
    assert sorted(path.stem for path in folder.glob("*.png")) == sorted(FIGURES)
    assert len(titles) == len(FIGURES) and all("synthetic" in title for title in titles)


def test_the_report_stands_alone_and_shows_the_numbers_of_analysis_json(analysed: tuple[Path, list[str]]) -> None:
    folder, _ = analysed
    result, page, text = strict(folder / "analysis.json"), (folder / "report.html").read_text(), (folder / "report.md").read_text()
    sources = re.findall(r'\b(?:src|href|srcset|data|action)\s*=\s*"([^"]{0,30})', page)
    assert len(sources) == len(FIGURES) and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"<script|<link|@import|url\(|https?:|file:", page)
    assert all(f"]({name}.png)" in text for name in FIGURES)
    cells = [[re.sub("<[^>]+>", "", cell) for cell in re.findall(r"<td.*?</td>", row)] for row in re.findall(r"<tr>.*?</tr>", page)]
    for row in result["per_class"]:
        shown = next(cell for cell in cells if cell and cell[0] == row["class"] and len(cell) == 6)
        low, high = row["recall_interval_95"]
        assert shown[1:] == [f"{row['precision']:.1%}", f"{row['recall']:.1%}", f"{low:.1%} to {high:.1%}", f"{row['f1']:.3f}", f"{row['support']:,}"]
    for one in result["most_confused"]:
        assert [one["true"], one["predicted"], f"{one['images']:,}", f"{one['images'] / result['errors']:.1%}"] in cells
    for shown in (f"{result['top1']:.2%}", f"{result['calibration']['ece']:.2%}", f"{result['nll']:.4f}", result["gradcam"]["layer"], result["source"],
                  f"{result['faithfulness']['areas']['gradcam']['deletion']['mean']:.3f}", result["request"]["ckpt"][:12]):
        assert shown in page and shown.replace("_", r"\_") in text
    assert "Synthetic: these images are drawn" in page and "Claims of" not in page


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures: they take most of the time of a small analysis."""
    for name in ("confusion", "class_bars", "reliability", "error_gallery", "cam_grid", "cam_pairs", "faithfulness"):
        monkeypatch.setattr(figures, name, lambda *_, **__: None)


def test_the_data_of_the_training_is_found_again(cifar: tuple[Path, Path], tmp_path: Path, undrawn: None) -> None:
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


def test_the_same_command_writes_the_same_bytes_and_the_checkpoint_stays(cifar: tuple[Path, Path], tmp_path: Path) -> None:
    (ckpt, tree), moved = cifar, tmp_path / "moved.pt"
    before = sha256(shutil.copy(ckpt, moved))
    place = Runtime(device="cpu", data_dir=str(tree), out=str(tmp_path))
    folder = analyze(Options(str(moved), faithfulness=2, open_errors=3), place)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert folder == tmp_path / "analyze" / "improved_cnn-seed0" and "report.html" in files and len(strict(folder / "analysis.json")["gallery"]) == 3
    assert analyze(Options(str(moved), faithfulness=2, open_errors=3), place) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert sha256(moved) == sha256(ckpt) == before
    assert "Claims of the first study" in (folder / "report.html").read_text()


def test_another_analysis_never_overwrites_one(cifar: tuple[Path, Path], tmp_path: Path, undrawn: None) -> None:
    ckpt, tree = cifar

    def name(given: str | None = None, **options: object) -> str:
        """Folder name of one more analysis."""
        place = Runtime(device="cpu", data_dir=str(tree), out=str(tmp_path), run_name=given)
        return analyze(Options(str(ckpt), limit=6, faithfulness=2, **options), place).name

    assert [name(), name(seed=1), name(seed=1), name(), name(split="val")] == [
        "improved_cnn-seed0", "improved_cnn-seed0-2", "improved_cnn-seed0-2", "improved_cnn-seed0", "improved_cnn-seed0-val"]
    assert name("mine") == name("mine") == "mine"
    with pytest.raises(InputError, match="mine holds something else: choose another --name"):
        name("mine", seed=1)


def test_val_is_the_split_that_training_held_out(cifar: tuple[Path, Path], tmp_path: Path, undrawn: None) -> None:
    ckpt, tree = cifar
    folder = analyze(Options(str(ckpt), split="val", faithfulness=2), Runtime(device="cpu", data_dir=str(tree), out=str(tmp_path)))
    held = load_splits(TINY, Runtime(data_dir=str(tree))).val.index.tolist()
    assert [int(row["index"]) for row in table(folder / "predictions.csv")] == held
    result = strict(folder / "analysis.json")
    assert result["top1"] == pytest.approx(read_checkpoint(ckpt)["metrics"]["val_top1"]) and result["is_cifar10"]


@pytest.mark.parametrize("limit", [1, 7])
def test_one_image_gives_no_interval_rather_than_a_wrong_one(limit: int, cifar: tuple[Path, Path], tmp_path: Path) -> None:
    ckpt, tree = cifar
    folder = analyze(Options(str(ckpt), limit=limit, layer="blocks.0"), Runtime(device="cpu", data_dir=str(tree), out=str(tmp_path)))
    result = strict(folder / "analysis.json")
    assert result["images"] == len(table(folder / "predictions.csv")) == result["faithfulness"]["images"] == limit
    assert result["gradcam"] == {"layer": "blocks.0", "map": [32, 16, 16], "input_size": 32, "chosen": True}
    area = result["faithfulness"]["areas"]["gradcam"]["deletion"]
    assert (area["low"] is None) == (limit == 1) and area["n"] == limit
    assert "as asked for" in (folder / "report.html").read_text()


class Halves(nn.Module):
    """Class 0 is the brightness of the upper half, class 1 that of the lower."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        seen = self.look(x).mean((1, 3))
        return 4 * torch.stack([seen[:, : seen.shape[1] // 2].mean(1), seen[:, seen.shape[1] // 2 :].mean(1)], 1)


def test_halves_finds_the_half_that_decides() -> None:
    model, prepare = Halves(), Preprocess((0.0,) * 3, (1.0,) * 3, 1, Augmentation(), torch.device("cpu"))
    images = torch.full((130, 3, 8, 8), 51, dtype=torch.uint8)
    images[:, :, 4:] = 255
    found = halves(partial(heat_maps, model, "look", prepare), model, prepare, images, 0, 1)
    # both maps follow the brightness (their channel weights are constant): 255 below against 51 above
    assert found["images"] == 130 and found["heat_below"]["predicted"]["n"] == 130
    assert found["heat_below"]["predicted"]["mean"] == pytest.approx(5 / 6, abs=0.03) and found["heat_below"]["difference"]["mean"] == pytest.approx(0, abs=1e-6)
    whole, without_lower, without_upper = (torch.tensor([4 * a, 4 * b]).softmax(0)[1].item() for a, b in ((0.2, 1.0), (0.2, 0.0), (0.0, 1.0)))
    assert found["drop"]["lower"]["mean"] == pytest.approx(whole - without_lower, abs=1e-6)
    assert found["drop"]["upper"]["mean"] == pytest.approx(whole - without_upper, abs=1e-6)
    empty = halves(partial(heat_maps, model, "look", prepare), model, prepare, images[:0], 0, 1)
    assert empty["images"] == 0 and empty["drop"]["lower"] == {"mean": None, "low": None, "high": None, "n": 0}


def test_faithfulness_prefers_the_true_places_over_both_controls() -> None:
    """A model that sees only one corner: Grad-CAM of its input finds it, random maps and the centre do not."""
    class Corner(Halves):
        def forward(self, x: Tensor) -> Tensor:
            seen = (self.look(x) * self.window).mean((1, 2, 3))
            return torch.stack([60 * seen, -60 * seen], 1)
    model, prepare = Corner(), Preprocess((0.0,) * 3, (1.0,) * 3, 1, Augmentation(), torch.device("cpu"))
    model.register_buffer("window", torch.zeros(16, 16))
    model.window[:4, :4] = 1
    images = torch.zeros(120, 3, 16, 16, dtype=torch.uint8)
    images[:, :, :4, :4] = torch.randint(100, 256, (120, 1, 1, 1), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    seen: list[int] = []
    targets, half = torch.zeros(120, dtype=torch.int64), [True] * 40 + [False] * 80
    found = faithfulness(model, "look", (4, 4), prepare, images, targets, torch.Generator().manual_seed(0), {"some": half}, seen.append)
    assert sum(seen) == 3 * 120 and found["images"] == 120
    for group, n in (("all", 120), ("some", 40)):
        for control in ("random", "centre"):
            by = found["differences"][group][control]
            assert by["deletion"]["high"] < 0 < by["insertion"]["low"] and by["deletion"]["n"] == n
    area = found["areas"]["gradcam"]["deletion"]["mean"] - found["areas"]["centre"]["deletion"]["mean"]
    assert area == pytest.approx(found["differences"]["all"]["centre"]["deletion"]["mean"], abs=1e-6)
    curve = found["curves"]["gradcam"]["deletion"]
    assert len(curve["mean"]) == 11 and curve["mean"][0] > 0.9 and curve["mean"][-1] == pytest.approx(0.5)
    torch.testing.assert_close(heat_maps(model, "look", prepare, images, targets), grad_cam(model, "look", prepare.clean(images), targets))


# Runs the script once for every command line in one fresh interpreter; each as its own process would.
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
    "missing": "does not exist", "folder": "does not exist", "empty": "is empty", "truncated": "not a readable checkpoint",
    "html": "not a readable checkpoint", "pickle": "not a readable checkpoint", "zipped pickle": "not a readable checkpoint", "list": "holds a list",
    "last.pt": "probe is missing", "state dict": "format is missing", "format": "has format 99", "weights": "recorded logits",
    "architecture": "does not fit its own description", "outputs": "does not fit its own description", "classes": "does not fit its own description",
    "no recipe": "does not describe itself", "strange recipe": "does not describe itself", "resize": "does not describe itself",
    "mean": "does not describe itself",
    "--data-dir": "needs no data", "no data": "--offline forbids", "fewer classes": "knows 10 classes", "another size": "32-pixel images, but the data has 40",
    "another split": "held out", "too little data": "cannot be split", "layer": "choose from blocks.0.0, blocks.0.1",
    "--limit": "at least 1", "--split": "invalid choice", "--device": "sees no CUDA GPU",
    **{f"bit {i}": "" for i in range(24)},
}  # fmt: skip


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
    """Offsets inside the records of a zip file: one in each of the largest, tensors all, then more of them evenly."""
    with zipfile.ZipFile(path) as archive:
        content, records = path.read_bytes(), archive.infolist()
    begin = {r.filename: r.header_offset + 30 + sum(int.from_bytes(content[r.header_offset + i : r.header_offset + i + 2], "little") for i in (26, 28))
             for r in records}
    tensors = [r for r in records if "/data/" in r.filename]
    pickled = next(r for r in records if r.filename.endswith("data.pkl"))
    spots = [begin[r.filename] + r.file_size // 2 for r in tensors]
    spots += [begin[pickled.filename] + i * pickled.file_size // 5 for i in range(5)]
    largest = max(tensors, key=lambda r: r.file_size)
    spots += [begin[largest.filename] + i * largest.file_size // (count + 1) for i in range(1, count - len(spots) + 1)]
    return spots[:count]


@pytest.fixture(scope="module")
def answers(drawn: Path, cifar: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, tuple], Path]:
    """Exit code and stderr of analyze.py for every case of BAD, and the file that a malicious checkpoint would leave."""
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
    small = noise_tree(home / "small", CLASSES, size=40)
    few = noise_tree(home / "few", CLASSES[:3], train=20)
    other = noise_tree(home / "other", CLASSES, train=6)
    valued = saved("valued.pt", {**read_checkpoint(ckpt), "recipe": {**read_checkpoint(ckpt)["recipe"], "val_size": 39}})
    lines = {
        "missing": ["--ckpt", str(home / "nowhere.pt")], "folder": ["--ckpt", str(home)], "empty": file("empty.pt", b""),
        "truncated": file("half.pt", whole[: len(whole) // 2]), "html": file("page.pt", b"<!DOCTYPE html><html><body>404</body></html>\n"),
        "pickle": file("bare.pt", pickle.dumps(Malicious(victim))), "zipped pickle": saved("zip.pt", {**card, "recipe": Malicious(victim)}),
        "list": saved("list.pt", [1, 2]), "last.pt": ["--ckpt", str(drawn.parent / "last.pt")], "state dict": saved("state.pt", card["weights"]),
        "format": saved("format.pt", {**card, "format": 99}), "weights": saved("weights.pt", {**card, "weights": shifted}),
        "architecture": saved("arch.pt", {**card, "arch": {**card["arch"], "name": "se_resnet18"}}),
        "outputs": saved("outputs.pt", {**card, "arch": {**card["arch"], "num_classes": 7}}),
        "classes": saved("classes.pt", {**card, "classes": card["classes"][:9]}),
        "no recipe": saved("norecipe.pt", {key: value for key, value in card.items() if key != "recipe"}),
        "strange recipe": saved("recipe.pt", {**card, "recipe": {**card["recipe"], "momentous": 1}}),
        "resize": saved("resize.pt", {**card, "resize": 2}), "mean": saved("mean.pt", {**card, "mean": (0.5,)}),
        "--data-dir": ["--ckpt", str(drawn), "--data-dir", str(tree)], "no data": [*real, str(home / "nothing"), "--offline"],
        "fewer classes": [*real, str(few)], "another size": [*real, str(small)], "another split": [*real, str(other), "--split", "val"],
        "too little data": [*valued, "--data-dir", str(tree)], "layer": ["--ckpt", str(drawn), "--layer", "blocks.9"],
        "--limit": ["--ckpt", str(drawn), "--limit", "0"], "--split": ["--split", "train"], "--device": ["--ckpt", str(drawn), "--device", "cuda"],
        **{f"bit {i}": file(f"bit{i}.pt", flipped(whole, at)) for i, at in enumerate(places(drawn, 24))},
    }  # fmt: skip
    assert lines.keys() == BAD.keys()
    done = subprocess.run([sys.executable, "-c", DRIVER, str(ROOT / "analyze.py"), json.dumps(list(lines.values()))], cwd=home, capture_output=True,
                          text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(home / "cache"), "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    return dict(zip(lines, json.loads(done.stdout), strict=True)), victim


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_2(case: str, answers: tuple[dict[str, tuple], Path]) -> None:
    code, error = answers[0][case]
    assert code == 2, error
    assert len(error.splitlines()) == 1 and error.startswith("analyze.py: ") and BAD[case] in error and "Traceback" not in error
    assert not answers[1].exists(), "the checkpoint's own code ran"
