"""analyze.py from checkpoint to report: numbers that agree, folders kept apart, bad input."""
import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import analyze as script
from analyze import Options, analyze
from common.analysis import figures, inputs, scores
from common.analysis.faithfulness import faithfulness, heat_below
from common.analysis.gradcam import grad_cam, hires_cam
from common.config import Recipe, Runtime, Stage
from common.data.augment import Preprocess
from common.data.sources import load_splits
from common.data.splits import CLASSES
from common.errors import InputError
from common.files import read_checkpoint, sha256
from common.models.build import build
from common.plots import STYLE
from common.training.lifecycle import build_model, open_run
from common.training.loop import fit
from common.words import percent
from conftest import write_image

TINY = Recipe(model="improved_cnn", epochs=1, lr=1e-2, batch_size=25)
FIGURES = {"confusion", "reliability", "errors", "heat_right", "faithfulness"}


def trained(folder: Path, recipe: Recipe, data_dir: Path | None = None) -> Path:
    """The best.pt of a run of one epoch, in the precision in which an analysis computes."""
    runtime = Runtime(data_dir=data_dir and str(data_dir), device="cpu", amp="off",
                      out=str(folder), run_name="tiny")
    splits = load_splits(recipe, runtime)
    run = open_run("script", recipe, runtime, splits, build_model(recipe, splits))
    fit(run, Stage("train", recipe.epochs, recipe.lr))
    return run.folder / "best.pt"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint trained on the drawn set."""
    recipe = replace(TINY, synthetic=True, train_limit=300, val_size=100)
    return trained(tmp_path_factory.mktemp("drawn"), recipe)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint trained on noise under CIFAR-10's class names, and the noise: four images a
    class to train on, three to test."""
    home, rng = tmp_path_factory.mktemp("cifar"), np.random.RandomState(0)
    for k in range(70):
        name = ("train" if k < 40 else "test", CLASSES[k % 10], f"{k}.png")
        write_image(home.joinpath("tree", *name), rng.randint(0, 256, (3, 32, 32), np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        return trained(home, TINY, home / "tree"), home / "tree"


def analysis_of(drawn: Path, out: Path) -> Path:
    """The folder of an analysis of 300 images of the drawn set, its figures small."""
    options = Options(str(drawn), limit=300, faithfulness=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "MOST", 4)
        patch.setitem(STYLE, "savefig.dpi", 30)
        return analyze(options, Runtime(device="cpu", out=str(out)))


@pytest.fixture(scope="module")
def analysed(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of `analysis_of`, and the titles of its figures."""
    titles, save = [], Figure.savefig

    def noting(figure, file, **settings):
        titles.append(figure.get_suptitle())
        save(figure, file, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", noting)
        return analysis_of(drawn, tmp_path_factory.mktemp("analysed")), titles


def strict(path: Path) -> dict:
    """A JSON file that holds only what every reader of JSON knows."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_numbers_agree_with_each_other(analysed: tuple[Path, list[str]]) -> None:
    folder, _ = analysed
    result, rows = strict(folder / "analysis.json"), table(folder / "predictions.csv")
    classes, confusion = result["classes"], np.array(result["confusion"])
    assert len(rows) == result["images"] == confusion.sum() == 300
    recount = Counter((row["true"], row["predicted"]) for row in rows)
    assert {(classes[i], classes[j]): n for (i, j), n in np.ndenumerate(confusion) if n} == recount
    assert [row["support"] for row in result["per_class"]] == confusion.sum(1).tolist()
    assert result["errors"] == 300 - confusion.trace()
    assert result["top1"] == pytest.approx(confusion.trace() / 300)
    confidences, losses = ([float(row[key]) for row in rows] for key in ("confidence", "loss"))
    assert result["nll"] == pytest.approx(np.mean(losses))
    assert result["calibration"]["mean_confidence"] == pytest.approx(np.mean(confidences))
    assert sum(result["calibration"]["count"]) == 300

    counts = table(folder / "confusion.csv")
    assert [[int(row[name]) for name in classes] for row in counts] == confusion.tolist()
    for row, expected in zip(table(folder / "per_class.csv"), result["per_class"], strict=True):
        shown = {key: expected[key] for key in scores.CLASS_COLUMNS}
        assert row == {key: "" if value is None else str(value) for key, value in shown.items()}
    highest = [row["loss"] for row in result["shown"]["errors"]]
    wrong = [float(row["loss"]) for row in rows if row["true"] != row["predicted"]]
    assert highest == sorted(wrong, reverse=True)[:25]
    right = result["shown"]["heat_right"]
    assert all(row["true"] == row["predicted"] for row in right) and len(right) == 30


def test_every_figure_is_there_and_says_what_and_of_which_run(
    analysed: tuple[Path, list[str]],
) -> None:
    folder, titles = analysed
    drawn = {path.stem for path in folder.glob("*.png")}
    assert drawn == FIGURES and len(set(titles)) == len(titles) == len(FIGURES)
    assert all(title.endswith("tiny: 300 test images, synthetic") for title in titles)


def test_the_report_stands_alone_and_shows_the_numbers_of_analysis_json(
    analysed: tuple[Path, list[str]],
) -> None:
    folder, _ = analysed
    result = strict(folder / "analysis.json")
    page = (folder / "report.html").read_text().replace("&nbsp;", " ")
    sources = re.findall(r'\b(?:src|href|srcset|data|action)\s*=\s*"([^"]{0,30})', page)
    assert len(sources) == len(FIGURES)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"<script|<link|@import|url\(|https?:|file:", page)
    rows = [re.findall(r"<td.*?>(.*?)</td>", row) for row in re.findall(r"<tr>.*?</tr>", page)]
    for row in result["per_class"]:
        ends = " to ".join(percent(end, 1)[:-2] for end in row["recall_interval_95"])
        shares = [percent(row["recall"], 1), ends, percent(row["precision"], 1)]
        assert [row["class"], *shares, f"{row['f1']:.3f}", str(row["support"])] in rows
    for one in result["most_confused_pairs"]:
        assert [" and ".join(one["classes"]), str(one["images"])] in rows
    for shown in (percent(result["top1"], 1), percent(result["calibration"]["ece"], 1),
                  f"{result['nll']:.4f}", result["heat_maps"]["where"], result["source"],
                  result["request"]["ckpt"][:12]):
        assert shown in page
    assert "test images (synthetic)" in page and "It closed with" not in page


def test_the_same_command_writes_the_same_bytes_and_the_checkpoint_stays(
    analysed: tuple[Path, list[str]], drawn: Path
) -> None:
    folder, _ = analysed
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert analysis_of(drawn, folder.parent.parent) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert sha256(drawn) == strict(folder / "analysis.json")["request"]["ckpt"]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures: they take most of the time of a small analysis."""
    for name in ("confusion", "reliability", "cases", "faithfulness"):
        monkeypatch.setattr(figures, name, lambda *_, **__: None)


def test_the_data_of_the_training_is_found_again(
    cifar: tuple[Path, Path], tmp_path: Path, undrawn: None
) -> None:
    ckpt, tree = cifar
    here = Runtime(device="cpu", out=str(tmp_path), offline=True)
    folder = analyze(Options(str(ckpt), faithfulness=2), here)  # no --data-dir
    assert strict(folder / "analysis.json")["images"] == 30
    assert "It closed with" not in (folder / "report.html").read_text(), "not CIFAR-10's test set"
    moved = tree.rename(tree.with_name("moved"))
    try:
        with pytest.raises(InputError, match="--data-dir"):
            analyze(Options(str(ckpt), faithfulness=2), here)
    finally:
        moved.rename(tree)


def test_another_analysis_never_overwrites_one(
    cifar: tuple[Path, Path], tmp_path: Path, undrawn: None
) -> None:
    def name(given: str | None = None, **options: object) -> str:
        """Folder name of one more analysis."""
        place = Runtime(device="cpu", out=str(tmp_path), run_name=given)
        return analyze(Options(str(cifar[0]), limit=6, faithfulness=2, **options), place).name

    names = [name(), name(seed=1), name(seed=1), name(), name(split="val")]
    assert names == ["tiny", "tiny-2", "tiny-2", "tiny", "tiny-val"], "named after the run"
    assert name("mine") == name("mine") == "mine"
    with pytest.raises(InputError, match="mine holds something else: choose another --name"):
        name("mine", seed=1)


def test_val_is_the_split_that_training_held_out(
    cifar: tuple[Path, Path], tmp_path: Path, undrawn: None
) -> None:
    ckpt, tree = cifar
    options = Options(str(ckpt), split="val", faithfulness=2)
    folder = analyze(options, Runtime(device="cpu", out=str(tmp_path)))
    held = load_splits(TINY, Runtime(data_dir=str(tree))).val.index.tolist()
    assert [int(row["index"]) for row in table(folder / "predictions.csv")] == held
    result, metrics = strict(folder / "analysis.json"), read_checkpoint(ckpt)["metrics"]
    assert result["top1"] == pytest.approx(metrics["val_top1"])
    assert result["nll"] == pytest.approx(metrics["val_loss"], rel=1e-3)
    assert not result["is_cifar10"], "its class names are, its pixels are not"


def test_one_image_gives_no_interval_rather_than_a_wrong_one(
    cifar: tuple[Path, Path], tmp_path: Path
) -> None:
    options = Options(str(cifar[0]), limit=1, cam="gradcam", layer="blocks.0")
    folder = analyze(options, Runtime(device="cpu", out=str(tmp_path)))
    result = strict(folder / "analysis.json")
    assert result["images"] == len(table(folder / "predictions.csv")) == 1
    differences = result["faithfulness"]["differences"]
    assert differences.keys() == {"all"}
    assert differences["all"].keys() == {"hirescam", "chance", "centre"}
    gain = differences["all"]["chance"]["deletion"]
    assert gain["low"] is None and gain["n"] == 1
    page = (folder / "report.html").read_text()
    assert "Grad-CAM for 32-pixel inputs, maps of 16×16 (blocks.0)" in page
    assert "heat maps (Grad-CAM)" in page


def subject(model: nn.Module) -> inputs.Subject:
    """As much of a Subject as heat maps need; its layer `look` passes the input on."""
    prepare = Preprocess((0.0,) * 3, (1.0,) * 3, Recipe(), torch.device("cpu"))
    cams = {"hirescam": partial(hires_cam, model, ["look"]),
            "gradcam": partial(grad_cam, model, "look")}
    return inputs.Subject(Path(), "", model, {}, Recipe(), (), prepare, cams, "hirescam", "")


def test_heat_below_is_the_share_of_the_lower_half() -> None:
    maps = torch.zeros(3, 4, 4)  # the last without heat, which has no half
    maps[0, 0], maps[0, 3], maps[1, 2:] = 0.25, 0.75, 1
    found = heat_below(maps)
    assert found["n"] == 2 and found["mean"] == pytest.approx((0.75 + 1) / 2)
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
    targets, one = torch.zeros(120, dtype=torch.int64), subject(model)
    found = faithfulness(one, images, targets)
    assert found["images"] == 120
    assert found["curves"].keys() == {"hirescam", "gradcam", "chance", "centre"}
    for control in ("chance", "centre"):
        by = found["differences"]["all"][control]
        assert by["deletion"]["high"] < 0 < by["insertion"]["low"] and by["deletion"]["n"] == 120
    curve, control = (found["curves"][kind]["deletion"] for kind in ("hirescam", "centre"))
    gaps = [one["mean"] - other["mean"] for one, other in zip(curve, control, strict=True)]
    area = np.trapezoid(gaps, found["shares"])
    by = found["differences"]["all"]["centre"]
    assert area == pytest.approx(by["deletion"]["mean"], abs=1e-6)
    assert len(curve) == 5 and curve[-1]["mean"] == pytest.approx(0.5)


def test_heat_is_that_of_the_method_asked_for_at_any_number_of_images(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.training.loop.EVAL_PIXELS", 12 * 32 * 32)
    torch.manual_seed(0)
    model = build("improved_cnn").eval()
    hires = partial(hires_cam, model, ("blocks.0", "blocks.1"))
    plain = partial(grad_cam, model, "blocks.2")
    one = replace(subject(model), cams={"hirescam": hires, "gradcam": plain})
    images, targets = torch.randint(256, (7, 3, 32, 32), dtype=torch.uint8), torch.arange(7)
    clean = one.prepare.clean(images)
    # Two and three images a pass, where memory holds no more.
    assert [len(part) for part, _ in one.portions(images, targets)] == [3, 2, 2]
    for cam, explain in one.cams.items():
        expected = explain(clean, targets)
        torch.testing.assert_close(replace(one, cam=cam).heat(images, targets), expected)
    assert one.heat(images[:0], targets[:0]).shape == (0, 32, 32)


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


def test_changed_data_is_said_in_one_line_and_refused_for_val(
    drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = inputs.open_subject(drawn)
    splits, generator = inputs.open_splits(one, Runtime(device="cpu")), torch.Generator()
    inputs.pick_split(one, splits, "val", None, generator)
    assert capsys.readouterr().out == ""
    changed = replace(splits, identity="2" * 16)
    assert len(inputs.pick_split(one, changed, "test", 7, generator)) == 7
    assert capsys.readouterr().out == (
        "this data is not the training's: its images, labels or classes differ\n")
    old = replace(one, card={key: one.card[key] for key in one.card.keys() - {"identity"}})
    for card, other in ((one, changed), (old, replace(splits, split_hash="2" * 16))):
        with pytest.raises(InputError, match="--split val: this data does not give"):
            inputs.pick_split(card, other, "val", None, generator)


def test_what_a_checkpoint_remembers_is_no_flag_of_the_users(drawn: Path, tmp_path: Path) -> None:
    """Trained with --smoke --data-dir DIR: the drawn set, whatever the card says of DIR."""
    one = inputs.open_subject(drawn)
    one.card["data_dir"] = str(tmp_path)
    assert inputs.open_splits(one, Runtime(device="cpu")).source == "synthetic"


@pytest.mark.parametrize("foreign", ["", "[1]", "{", "null"])
def test_a_foreign_record_is_another_analysis(foreign: str, tmp_path: Path) -> None:
    place = Runtime(out=str(tmp_path))
    assert inputs.open_folder(place, "run", {"seed": 0}).name == "run"
    assert inputs.open_folder(place, "run", {"seed": 0}).name == "run"
    (tmp_path / "analyze" / "run" / "request.json").write_text(foreign)
    assert inputs.open_folder(place, "run", {"seed": 0}).name == "run-2"


@pytest.mark.parametrize("change", [
    {"classes": [*CLASSES[:9]]}, {"recipe": {"momentous": 1}}, {"resize": 2}, {"mean": (0.5,)}])
def test_a_card_that_contradicts_itself_is_one_line(
    change: dict, drawn: Path, tmp_path: Path
) -> None:
    torch.save(read_checkpoint(drawn) | change, tmp_path / "x.pt")
    with pytest.raises(InputError, match="x.pt does not (describe itself|fit its own desc)") as one:
        inputs.open_subject(tmp_path / "x.pt")
    assert "\n" not in str(one.value)


@pytest.mark.parametrize(("flags", "words"), [
    ("--ckpt nowhere.pt", "No such file"),
    ("--ckpt {drawn} --data-dir {few}", "no effect on drawn images"),
    ("--ckpt {cifar} --data-dir nothing", "nothing is no folder"),
    ("--ckpt {cifar} --data-dir {few}", "but the data has airplane, bird: give data"),
    ("--ckpt {drawn} --cam gradcam --layer blocks.9", "choose from blocks.0.0, blocks.0.1"),
    ("--ckpt {drawn} --layer blocks.1", "--layer is one of Grad-CAM"),
    ("--limit 0", "whole number from 1 to"),
    ("--split train", "invalid choice"),
    ("--images a.png --limit 5", "--limit has no effect on your own pictures"),
])
def test_bad_input_is_one_line_and_exit_2(
    flags: str, words: str, drawn: Path, cifar: tuple[Path, Path],
    make_tree: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str]
) -> None:
    few = make_tree(("airplane", "bird"), train=20) if "{few}" in flags else None
    filled = flags.format(drawn=drawn, cifar=cifar[0], few=few)
    monkeypatch.setattr(sys, "argv", ["analyze.py", *filled.split()])
    with pytest.raises((InputError, SystemExit)) as stopped:
        script.main()
    said = str(stopped.value) if stopped.type is InputError else capsys.readouterr().err
    assert stopped.value.code == 2 and words in said and said.count("\n") <= 1
