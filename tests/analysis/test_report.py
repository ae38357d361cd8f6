"""What the report says about given numbers, that it escapes names, and figures at extremes."""
import copy
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from common.analysis import figures, report
from common.analysis.findings import OTHERS, claims, findings
from common.analysis.scores import scores
from common.data.splits import CLASSES
from conftest import write_image


def sure(low: float, high: float, n: int = 100) -> dict[str, float | int]:
    """An interval."""
    return {"mean": (low + high) / 2, "low": low, "high": high, "n": n}


Pair = tuple[dict, dict]  # intervals of the differences in deletion and in insertion


def by(chance: Pair, centre: Pair) -> dict[str, Any]:
    """Differences of areas to both controls."""
    ways = ("deletion", "insertion")
    return {"chance": dict(zip(ways, chance)), "centre": dict(zip(ways, centre))}


BETTER, WORSE, SAME = (
    (sure(-0.2, -0.1), sure(0.1, 0.2)),
    (sure(0.1, 0.2), sure(-0.2, -0.1)),
    (sure(-0.1, 0.1), sure(-0.1, 0.2)),
)


@pytest.fixture
def result() -> dict[str, Any]:
    """10,000 CIFAR-10 images, 1,000 a class: cat and dog 150 errors, bird and deer 40."""
    labels = torch.arange(10).repeat_interleave(1000)
    preds = labels.clone()
    preds[3000:3100], preds[5000:5050], preds[2000:2040] = 5, 3, 4
    curve = [sure(0.8, 1.0), sure(0.0, 0.2)]
    return {
        **scores(torch.eye(10)[preds], labels, CLASSES),
        "request": {"ckpt": "a1b2c3d4e5f6" + "0" * 52, "seed": 0},
        "source": "CIFAR-10, official batches", "split": "test", "classes": [*CLASSES],
        "title": "a run: 10,000 test images", "is_cifar10": True,
        "checkpoint": {"file": "best.pt", "run": "a run", "model": "improved_cnn",
                       "source": "CIFAR-10, official batches", "metrics": None},
        "calibration": {"ece": 0.01, "bins": 15, "mean_confidence": 0.99,
                        "overconfidence": sure(0.005, 0.015)},
        "faithfulness": {
            "images": 500,
            "shares": [0, 1],
            "curves": {kind: {"deletion": curve, "insertion": curve} for kind in OTHERS},
            "differences": {"all": by(BETTER, SAME), "bird": by(BETTER, BETTER)},
        },
        "heat_maps": {"cam": "hirescam", "where": "HiResCAM for 32-pixel inputs, maps of …"},
        "planes_as_ships": {"heat_below": {"predicted": sure(0.6, 0.7)}},
        "versions": {"hardware": "a machine", "torch": "2.8", "git_commit": None},
    }


def test_findings_are_plain_sentences_with_the_statistics_in_brackets(
    result: dict[str, Any],
) -> None:
    assert findings(result) == [
        "Accuracy 98.1 % (97.8 to 98.3) on 10,000 test images.",
        "Found best: airplane 100.0 %; least often: cat 90.0 %.",
        "Most confused: cat and dog (150), bird and deer (40).",
        "It is more confident than accurate (mean confidence 99.0 %, "
        "minus accuracy +1.00 (+0.50 to +1.50) points; calibration error 1.0 %).",
        "Its heat maps (HiResCAM) point at what decides: better than chance, "
        "no better than the image's centre (500 images; "
        "areas against chance deletion −0.150 (−0.200 to −0.100), "
        "insertion +0.150 (+0.100 to +0.200); "
        "against the image's centre deletion +0.000 (−0.100 to +0.100), "
        "insertion +0.050 (−0.100 to +0.200)).",
    ]


def test_the_heat_maps_are_named_and_compared_with_the_others(result: dict[str, Any]) -> None:
    result["faithfulness"]["differences"]["all"]["gradcam"] = by(BETTER, SAME)["chance"]
    words = findings(result)[4]
    assert "no better than the image's centre, better than Grad-CAM (" in words
    assert words.endswith("; against Grad-CAM deletion −0.150 (−0.200 to −0.100), "
                          "insertion +0.150 (+0.100 to +0.200)).")
    result["heat_maps"]["cam"] = "gradcam"
    assert findings(result)[4].startswith("Its heat maps (Grad-CAM) point")


def test_a_single_class_is_neither_best_nor_worst(result: dict[str, Any]) -> None:
    result["per_class"] = result["per_class"][:1]
    assert "Found best" not in " ".join(findings(result))


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        (sure(-0.02, -0.01), "It is less confident than accurate"),
        (sure(-0.01, 0.01), "It is as confident as accurate"),
        (sure(-0.00001, 0.000004), "minus accuracy +0.00 (+0.00 to +0.00) points"),
        ({"mean": 0.2, "low": None, "high": None, "n": 1}, "+20.00 (– to –) points"),
    ],
)
def test_confidence(result: dict[str, Any], gap: dict, words: str) -> None:
    result["calibration"]["overconfidence"] = gap
    assert words in findings(result)[3]


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (BETTER, "point at what decides: better than chance"),
        (WORSE, "are not shown to point at what decides: worse than chance"),
        (SAME, "are not shown to point at what decides: no better than chance"),
        ((BETTER[0], SAME[1]), "point at what decides: better by one of two measures than chance"),
        ((BETTER[0], WORSE[1]), "are not shown to point at what decides: no better than chance"),
        ((WORSE[0], SAME[1]), "worse by one of two measures than chance"),
    ],
)
def test_a_heat_map_shows_what_decides_only_beyond_chance(
    result: dict[str, Any], pair: tuple[dict, dict], words: str
) -> None:
    result["faithfulness"]["differences"]["all"] = by(pair, SAME)
    assert words in findings(result)[4]


def test_balanced_accuracy_stands_beside_accuracy_where_classes_are_uneven(
    result: dict[str, Any],
) -> None:
    result["per_class"][3]["support"] = 600
    result["balanced_top1"] = 0.75
    assert findings(result)[0].endswith("Classes are uneven: balanced accuracy is 75.0 %.")


def test_a_perfect_network_has_no_confusions(result: dict[str, Any]) -> None:
    result.update(errors=0, most_confused_pairs=[])
    assert "onfused" not in " ".join(findings(result))
    numbers = "0 errors, 0 between the pair that comes next."
    assert claims(result)[1][1:] == ("open", numbers)


def verdicts(result: dict[str, Any]) -> list[str]:
    return [verdict for _, verdict, _ in claims(result)]


def test_claims_need_an_interval_on_one_side(result: dict[str, Any]) -> None:
    assert verdicts(result) == ["confirmed"] * 4
    other = copy.deepcopy(result)
    other["per_class"][1]["recall_interval_95"] = [0.96, 0.98]
    other["most_confused_pairs"][0]["images"] = 50  # against 40 of bird and deer
    other["faithfulness"]["differences"]["bird"] = by(BETTER, SAME)
    other["planes_as_ships"]["heat_below"]["predicted"] = sure(0.4, 0.6)
    assert verdicts(other) == ["open"] * 4
    other["per_class"][9].update(recall=0.95, recall_interval_95=[0.94, 0.96])
    other["most_confused_pairs"][0]["images"] = 5
    other["faithfulness"]["differences"]["bird"] = by(SAME, WORSE)
    other["planes_as_ships"]["heat_below"]["predicted"] = sure(0.3, 0.4)
    assert verdicts(other) == ["refuted"] * 4


def test_claims_are_judged_for_the_whole_test_set_of_cifar10_alone(result: dict[str, Any]) -> None:
    for change in ({"is_cifar10": False}, {"images": 9_999}, {"split": "val"}):
        assert claims({**result, **change}) == []


def page_of(result: dict[str, Any], folder: Path) -> str:
    """The report written from these numbers."""
    (folder / "analysis.json").write_text(json.dumps(result))
    return report.write(folder).read_text()


def test_names_of_classes_and_files_are_text(result: dict[str, Any], tmp_path: Path) -> None:
    evil = '<script>alert("x")</script> {top1} $5 %s'
    result.update(is_cifar10=False, source=evil)
    result["per_class"][0]["class"] = result["most_confused_pairs"][0]["classes"][0] = evil
    page = page_of(result, tmp_path)
    assert "<script" not in page and "&lt;script&gt;" in page and "<img" not in page
    assert "{top1} $5 %s" in page.replace("&nbsp;", " ")


def test_the_page_holds_what_was_given_and_leaves_out_what_was_not(
    result: dict[str, Any], tmp_path: Path
) -> None:
    page = page_of(result, tmp_path)
    assert page.count("<td>confirmed</td>") == 4
    assert page.index("It closed with four claims") < page.index("<td>confirmed</td>")
    assert "<figure>" not in page, "no picture, no caption"
    write_image(tmp_path / "confusion.png", np.zeros((3, 8, 8), np.uint8))
    result.update(is_cifar10=False, most_confused_pairs=[])
    result["per_class"][0].update(precision=None)
    page = page_of(result, tmp_path)
    assert page.count("<figure>") == page.count("data:image/png;base64,") == 1
    assert "It closed with" not in page and "<th>classes</th>" not in page
    assert "<td>airplane</td><td>100.0&nbsp;%</td><td>99.6 to 100.0</td><td>–</td>" in page


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_confusion_cells_hold_count_and_percent(
    kept: list[Figure], result: dict[str, Any], tmp_path: Path
) -> None:
    result.update(confusion=[[3, 1], [0, 1200]], classes=["a", "b"])
    figures.confusion(result, tmp_path)
    assert texts(kept[0]) == ["3\n75.0 %", "1\n25.0 %", "1,200\n100.0 %"]
    many = [f"class {k}" for k in range(120)]
    result.update(confusion=np.eye(120, dtype=int).tolist(), classes=many)
    figures.confusion(result, tmp_path)
    assert texts(kept[1]) == [] and kept[1].axes[0].images[0].get_array().shape == (120, 120)
    assert kept[1].get_figheight() < 16


def case(**changes: Any) -> dict[str, Any]:
    """A row of predictions.csv."""
    return {"true": "airplane", "predicted": "ship", "second": "a very long name", "name": "1234",
            "loss": 5.678, "confidence": 0.97, "second_confidence": 0.02, **changes}


def drawn(result: dict[str, Any], figure: str, rows: list[dict], folder: Path) -> None:
    """One figure of cases: grey images, and maps with heat everywhere."""
    result["shown"] = {figure: rows}
    result["classes"] = {row[key] for row in rows for key in ("true", "predicted", "second")}
    images = np.full((len(rows), 3, 32, 32), 200, np.uint8)
    figures.cases(result, folder, figure, images, [np.ones((len(rows), 48, 48), np.float32)] * 2)


def test_cases_name_classes_and_files(
    kept: list[Figure], result: dict[str, Any], tmp_path: Path
) -> None:
    drawn(result, "errors", [case(), case(name="test/airplane/photo.jpg")], tmp_path)
    drawn(result, "heat_right", [case()], tmp_path)
    assert texts(kept[0]) == [
        f"T: airplane → P: ship 97.0 %\na very… name 2.0 %, loss 5.68, image {file}"
        for file in ("1234", "photo.jpg")]
    assert all("10,000 test images" in figure.get_suptitle() for figure in kept)
    assert all(figure.axes[0].get_xlabel().startswith("HiResCAM for 32-") for figure in kept)
    # Where it is right: the image, the colours of its heat, and both.
    grey, heat, both = kept[1].axes[0].images[0].get_array()[80, 80:480:160].astype(int)
    assert grey.tolist() == [200] * 3 and np.ptp(heat) > np.ptp(both) > 0


def test_heat_has_one_scale_on_which_a_map_without_a_place_is_dark() -> None:
    """Times the picture's mean heat: however strong the evidence, the same share is as bright."""
    place = np.zeros((16, 16), np.float32)
    place[:8, :8] = 1  # four times the mean
    warm = figures.warmth(place)
    assert warm[0, 0] == pytest.approx(4 / figures.HOTTEST) and warm[-1, -1] == 0
    np.testing.assert_allclose(figures.warmth(place / 100), warm, rtol=1e-5)
    assert not figures.warmth(place * 0).any()
    assert figures.warmth(np.full((16, 16), 0.95)) == pytest.approx(1 / figures.HOTTEST)
    place[1:] = place[0, 1:] = 0
    assert figures.warmth(place).max() == 1, "cut off where the scale ends"
    over = figures.overlay(np.full((3, 32, 32), 200, np.uint8), place)
    assert (over[-1, -1] == 140).all(), "the picture shows where none is"
    assert np.ptp(over[0, 0].astype(int)) > 50, "coloured where it is"


@pytest.mark.parametrize(("figure", "count"), [
    ("errors", 1), ("errors", 7), ("heat_right", 2), ("heat_planes", 4)])
def test_strips_are_drawn_at_any_number(
    figure: str, count: int, result: dict[str, Any], tmp_path: Path
) -> None:
    drawn(result, figure, [case(true="x" * 40)] * count, tmp_path)
    height, width = cv2.imread(str(tmp_path / f"{figure}.png")).shape[:2]
    assert 120 < height < 2000 and 250 < width < 1800


def test_curves_without_intervals_are_drawn(result: dict[str, Any], tmp_path: Path) -> None:
    point = {"mean": 0.9, "low": None, "high": None}
    for curve in result["faithfulness"]["curves"].values():
        curve["deletion"] = [point, point]
    figures.faithfulness(result, tmp_path)
    assert cv2.imread(str(tmp_path / "faithfulness.png")).shape[1] > 900
