"""What the report says about given numbers, that it escapes what it quotes, and its figures at their extremes."""
import copy
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from common.analysis import figures
from common import plots
from common.analysis import report
from common.analysis.findings import claims, findings

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def sure(low: float, high: float, n: int = 100) -> dict[str, float | int]:
    """An interval."""
    return {"mean": (low + high) / 2, "low": low, "high": high, "n": n}


def by(random: tuple[dict, dict], centre: tuple[dict, dict]) -> dict[str, Any]:
    """Differences of (deletion, insertion) areas to both controls."""
    return {name: dict(zip(("deletion", "insertion"), pair)) for name, pair in (("random", random), ("centre", centre))}


BETTER, WORSE, SAME = (sure(-0.2, -0.1), sure(0.1, 0.2)), (sure(0.1, 0.2), sure(-0.2, -0.1)), (sure(-0.1, 0.1), sure(-0.1, 0.2))


@pytest.fixture
def result() -> dict[str, Any]:
    """An analysis of 10,000 CIFAR-10 images, 1,000 a class: cat and dog 150 errors, bird and deer 40, perfect otherwise."""
    confusion = np.diag([1000] * 10)
    for true, predicted, images in ((3, 5, 100), (5, 3, 50), (2, 4, 40)):
        confusion[true, true] -= images
        confusion[true, predicted] += images
    recall = confusion.diagonal() / 1000
    point = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 100}
    band = {"mean": [0.9, 0.1], "low": [0.8, 0.0], "high": [1.0, 0.2]}
    return {
        "request": {"ckpt": "a1b2c3d4e5f6" + "0" * 52, "seed": 0}, "source": "CIFAR-10, official batches", "split": "test", "classes": CIFAR10,
        "checkpoint": {"file": "best.pt", "model": "improved_cnn", "trained_on": "CIFAR-10, official batches", "split_hash": "00ff", "metrics": None},
        "is_cifar10": True, "synthetic": False, "images": 10_000, "errors": 190, "top1": 0.981, "interval_95": [0.978, 0.984], "nll": 0.1, "brier": 0.05,
        "per_class": [{"class": name, "precision": 1.0, "recall": r, "recall_interval_95": [r - 0.01, r], "f1": 1.0, "support": 1000}
                      for name, r in zip(CIFAR10, recall.tolist())],
        "confusion": confusion.tolist(),
        "most_confused": [{"true": "cat", "predicted": "dog", "images": 100}, {"true": "dog", "predicted": "cat", "images": 50},
                          {"true": "bird", "predicted": "deer", "images": 40}],
        "most_confused_pairs": [{"classes": ["cat", "dog"], "images": 150}, {"classes": ["bird", "deer"], "images": 40}],
        "calibration": {"ece": 0.01, "mean_confidence": 0.99, "overconfidence": sure(0.005, 0.015)},
        "faithfulness": {"images": 500, "steps": 10, "fraction": [0, 1], "curves": {kind: {"deletion": band, "insertion": band} for kind in figures.KINDS},
                         "areas": {kind: {"deletion": point, "insertion": point} for kind in figures.KINDS},
                         "differences": {"all": by(BETTER, SAME), "bird": by(BETTER, BETTER)}},
        "gradcam": {"layer": "blocks.2", "map": [128, 4, 4], "input_size": 32, "chosen": False},
        "planes_as_ships": {"images": 30, "heat_below": {"predicted": sure(0.6, 0.7), "true": sure(0.4, 0.5), "difference": sure(0.1, 0.2)},
                            "drop": {"lower": sure(0.4, 0.5), "upper": sure(0.1, 0.2), "difference": sure(0.2, 0.4)}},
        "versions": {"hardware": "a machine", "torch": "2.8", "git_commit": None},
    }  # fmt: skip


def test_findings_say_what_the_numbers_say(result: dict[str, Any]) -> None:
    assert findings(result) == [
        "Top-1 is 98.10% (95 % interval 97.80% to 98.40%): 190 errors in 10,000 images.",
        "Recall is highest for airplane 100.0%, automobile 100.0%, lowest for cat 90.0%, dog 95.0%.",
        "Most confused are cat and dog: 150 errors (cat → dog 100, dog → cat 50), 78.9% of all; then bird and deer (40).",
        "The network is over-confident: mean confidence is 99.00%, ECE 1.00%; confidence minus accuracy is +1.00 points (+0.50 to +1.50).",
        "Grad-CAM against random maps, 500 images: more faithful; deletion area −0.150 (−0.200 to −0.100), insertion area +0.150 (+0.100 to +0.200).",
        "Grad-CAM against the centre prior, 500 images: no measurable difference; deletion area +0.000 (−0.100 to +0.100), "
        "insertion area +0.050 (−0.100 to +0.200).",
    ]


@pytest.mark.parametrize(("gap", "words"), [
    (sure(-0.02, -0.01), "The network is under-confident"), (sure(-0.01, 0.01), "No measurable over- or under-confidence"),
    ({"mean": 0.2, "low": None, "high": None, "n": 1}, "+20.00 points (one image)")])
def test_confidence(result: dict[str, Any], gap: dict, words: str) -> None:
    result["calibration"]["overconfidence"] = gap
    assert any(words in sentence for sentence in findings(result))


@pytest.mark.parametrize(("pair", "words"), [
    (BETTER, ": more faithful;"), (WORSE, ": less faithful;"), (SAME, ": no measurable difference;"),
    ((BETTER[0], SAME[1]), "more faithful by deletion, no measurable difference by the other measure"),
    ((SAME[0], BETTER[1]), "more faithful by insertion, no measurable difference by the other measure"),
    ((BETTER[0], WORSE[1]), "more faithful by one measure, less by the other"), ((WORSE[0], SAME[1]), "less faithful")])
def test_a_heat_map_is_faithful_only_beyond_chance(result: dict[str, Any], pair: tuple[dict, dict], words: str) -> None:
    result["faithfulness"]["differences"]["all"] = by(pair, SAME)
    assert words in findings(result)[4]


def test_a_perfect_network_has_no_confusions(result: dict[str, Any]) -> None:
    result.update(errors=0, most_confused=[], most_confused_pairs=[], confusion=np.diag([1000] * 10).tolist(), synthetic=True)
    assert findings(result)[0].endswith("0 errors in 10,000 images, all of them synthetic.") and "onfused" not in " ".join(findings(result))
    assert claims(result)[1][1:] == ("open", "0 of 0 errors are between cat and dog; any and other, the largest other pair: 0.")


def verdicts(result: dict[str, Any]) -> list[str]:
    return [verdict for _, verdict, _ in claims(result)]


def test_claims_need_an_interval_on_one_side(result: dict[str, Any]) -> None:
    assert verdicts(result) == ["confirmed"] * 4
    other = copy.deepcopy(result)
    other["per_class"][1]["recall_interval_95"] = [0.96, 0.98]
    other["confusion"][3][5] = 0  # 50 cat-dog errors against 40 of bird and deer
    other["faithfulness"]["differences"]["bird"] = by(BETTER, SAME)
    other["planes_as_ships"]["heat_below"]["predicted"] = sure(0.3, 0.4)  # against the claim, while blanking speaks for it
    assert verdicts(other) == ["open"] * 4 and "The two tests disagree." in claims(other)[3][2]
    other["per_class"][9]["recall_interval_95"] = [0.94, 0.96]
    other["confusion"][5][3] = 5
    other["faithfulness"]["differences"]["bird"] = by(SAME, WORSE)
    other["planes_as_ships"]["drop"]["difference"] = sure(-0.1, 0.1)
    assert verdicts(other) == ["refuted"] * 4
    none = {"mean": None, "low": None, "high": None, "n": 0}
    other["planes_as_ships"] = {"images": 0, "heat_below": dict.fromkeys(("predicted", "true", "difference"), none), "drop": {}}
    other["faithfulness"]["differences"]["bird"] = by((none, none), (none, none))
    assert verdicts(other)[2:] == ["open", "open"] and "on 0 birds" in claims(other)[2][2]
    other["is_cifar10"] = False
    assert claims(other) == []


def test_names_of_classes_and_files_are_quoted_not_obeyed(result: dict[str, Any], tmp_path: Path) -> None:
    evil = '<script>alert("x")</script> | [a](http://b) `c`'
    result.update(is_cifar10=False, classes=[evil, *CIFAR10[1:]], source=evil)
    result["per_class"][0]["class"] = result["most_confused"][0]["true"] = result["checkpoint"]["file"] = evil
    (tmp_path / "analysis.json").write_text(json.dumps(result))
    report.write(tmp_path)
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "<img" not in page
    row = next(line for line in text.splitlines() if line.startswith("| \\<script"))
    assert row.replace("\\|", "").count("|") == 5 and r"\[a\](http" in row and r"\`c\`" in row


def test_the_words_of_the_report_match_what_was_given(result: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "analysis.json").write_text(json.dumps(result))
    lines = report.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert lines[-1] == f"report: {tmp_path / 'report.html'}" and len(lines) == 6 + 4 + 1
    assert page.count('class="tag confirmed"') == 4 and "the deepest layer with a map of at least 4×4" in page and "ynthetic" not in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["analysis.json", "report.html", "report.md"]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures in place of files."""
    kept: list[Figure] = []
    monkeypatch.setattr("common.plots._save", lambda figure, path: kept.append(figure))
    return kept


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_confusion_cells_hold_count_and_percent(kept: list[Figure], tmp_path: Path) -> None:
    figures.confusion([[3, 1], [0, 1200]], ["a", "b"], tmp_path / "c.png", "t")
    assert texts(kept[0]) == ["3", "75.0", "1", "25.0", "1,200", "100.0"]
    figures.confusion(np.eye(120, dtype=int), [f"class {k}" for k in range(120)], tmp_path / "c.png", "t")
    assert not texts(kept[1]) and len(kept[1].axes[0].get_yticks()) == 40


def test_gallery_captions(kept: list[Figure], tmp_path: Path) -> None:
    row = {"true": "airplane", "predicted": "ship", "second": "a very long name", "index": 1234, "loss": 5.678, "confidence": 0.97, "second_confidence": 0.02}
    figures.error_gallery(np.zeros((1, 3, 32, 32), np.uint8), [row], tmp_path / "e.png", "t")
    assert texts(kept[0]) == ["T: airplane → P: ship", "index 1,234 · loss 5.68\nship 97.0% · a very long… 2.0%"]


def test_a_map_without_evidence_is_black_and_its_overlay_the_plain_image(kept: list[Figure], tmp_path: Path) -> None:
    image = np.full((2, 3, 32, 32), 200, np.uint8)
    maps = np.stack([np.zeros((32, 32)), np.pad(np.ones((32, 16)), ((0, 0), (0, 16)))]).astype(np.float32)
    figures.cam_grid(image, maps, np.array([0, 0]), ["a"], tmp_path / "g.png", "t", "Grad-CAM at x")
    (axes,) = kept[0].axes
    canvas, px = axes.images[0].get_array(), 112
    pictures = [canvas[20:90, start + 10 : start + 100] for start in (0, px + 4, 2 * (px + 4))]
    assert (pictures[0] == 200).all() and pictures[1].max() <= 4 and (pictures[2] == 200).all()
    second = canvas[:, 3 * (px + 4) + 4 + 2 :]  # past the gap between strips
    heat = second[20:90, px + 4 : 2 * px + 4]
    assert heat[:, 10:40].mean() > 150 and heat[:, -40:-10].max() <= 4
    assert "Grad-CAM at x" in axes.get_xlabel() and [text.get_text() for text in axes.texts] == ["image", "image", "heat map", "heat map", "overlay", "overlay"]


@pytest.mark.parametrize("count", [1, 2, 7])
def test_mosaics_are_drawn_at_any_number(count: int, tmp_path: Path) -> None:
    images, maps = np.random.RandomState(0).randint(0, 256, (count, 3, 48, 48)).astype(np.uint8), np.ones((count, 48, 48), np.float32)
    row = {"true": "x" * 40, "predicted": "y", "second": "z", "index": 1, "loss": 0.1, "confidence": 0.5, "second_confidence": 0.4}
    figures.error_gallery(images, [row] * count, tmp_path / "errors.png", "synthetic")
    figures.cam_pairs(images, maps, maps, [row] * count, tmp_path / "pairs.png", "synthetic", "layer", halved=True)
    figures.cam_grid(images, maps, np.arange(count) * 3, [f"class {k}" for k in range(30)], tmp_path / "grid.png", "synthetic", "layer")
    for name in ("errors", "pairs", "grid"):
        height, width = cv2.imread(str(tmp_path / f"{name}.png")).shape[:2]
        assert 120 < height < 1600 and 250 < width < 1500


def test_curves_and_classes_without_intervals_are_drawn(result: dict[str, Any], tmp_path: Path) -> None:
    alone = {"mean": 0.1, "low": None, "high": None, "n": 1}
    result["faithfulness"]["differences"]["all"] = by((alone, alone), (alone, alone))
    for curve in result["faithfulness"]["curves"].values():
        curve["deletion"] = {"mean": [0.9, 0.1], "low": [None] * 2, "high": [None] * 2}
    figures.faithfulness(result["faithfulness"], tmp_path / "f.png", "t", "layer")
    result["per_class"][0].update(support=0, recall=0.0, precision=0.0, recall_interval_95=None)
    figures.class_bars(result["per_class"], tmp_path / "p.png", "t")
    assert all(cv2.imread(str(tmp_path / name)).shape[1] > 900 for name in ("f.png", "p.png"))
