"""Wilson's interval against published tables."""
import pytest

from common.metrics import wilson_interval


@pytest.mark.parametrize(("correct", "total", "low", "high"), [
    (8, 10, 0.4902, 0.9433), (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611), (10, 10, 0.7225, 1.0)])
def test_wilson_interval_against_published_values(correct: int, total: int, low: float,
                                                  high: float) -> None:
    """The second to fourth cases are Newcombe's (Statistics in Medicine 17, 1998, table I)."""
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=6e-5)
