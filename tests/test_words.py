"""Numbers in words, and long names."""
import pytest

from common.words import count, duration, number, percent, short, shorten


def test_percent_and_numbers() -> None:
    assert [percent(0.9381), percent(1), percent(None)] == ["93.81 %", "100.00 %", "–"]
    assert [percent(0.012, 1), number(1.2, 1, "+"), number(-1.2, 1, "+")] == [
        "1.2 %", "+1.2", "−1.2"]
    assert [number(-0.0004, 3), number(-0.0004, 3, "+")] == ["0.000", "+0.000"]
    assert number(12345.678, 1) == "12,345.7"


def test_plurals() -> None:
    assert [count(0, "image"), count(1, "image"), count(4500, "image")] == [
        "0 images", "1 image", "4,500 images"]
    assert count(2, "class", "classes") == "2 classes"


@pytest.mark.parametrize("seconds, words", [
    (0.2, "0 s"), (48, "48 s"), (90, "1.5 min"), (5400, "1.5 h"), (9360, "2.6 h")])
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_short_names() -> None:
    assert short("cat") == "cat" and short("x" * 18) == "x" * 18
    assert short("a class with an endless name") == "a class w…ess name"
    assert short("endless", 4) == "en…s" and short("endless", 1) == "…"
    assert short("caf\udce9\x1b") == "caf??"  # bytes that are no UTF-8, and a control character


@pytest.mark.parametrize("names, most, shown", [
    (["cat", "a class with an endless name"], 18, ["cat", "a class w…ess name"]),
    (["Rice_Leaf_Disease_Blast", "Rice_Leaf_Disease_Blight", "Rice_Leaf_Disease_Brown"], 18,
     ["Rice_Leaf…se_Blast", "Rice_Leaf…e_Blight", "Rice_Leaf…se_Brown"]),
    (["Tomato___Early_blight", "Tomato___Late_blight", "Tomato___Leaf_Mold"], 14,
     ["Tomato__…y_blight", "Tomato__…e_blight", "Tomato__…eaf_Mold"]),
    (["a" * 30, "a" * 31, "a" * 10 + "b" + "a" * 19], 8,
     ["a" * 30, "a" * 15 + "…" + "a" * 14, "a" * 10 + "b" + "a" * 19]),
    (["caf\udce9", "caf?"], 2, ["caf?", "caf?"])])
def test_names_are_shortened_as_far_as_they_differ(names: list[str], most: int,
                                                   shown: list[str]) -> None:
    assert list(shorten(names, most).values()) == shown
