"""Numbers in words."""
import pytest

from common.words import count, duration, number, percent


def test_percent_and_numbers() -> None:
    assert [percent(0.9381), percent(1), percent(None)] == ["93.81 %", "100.00 %", "–"]
    assert [percent(0.012, 1, "+"), percent(-0.012, 1, "+")] == ["+1.2 %", "−1.2 %"]
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
