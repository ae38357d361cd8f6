"""Intervals against values worked out by hand and published tables."""
import math

import pytest
import torch

from common.metrics import t_interval, t_quantile, wilson_interval


@pytest.mark.parametrize(("correct", "total", "low", "high"), [
    (8, 10, 0.4902, 0.9433), (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611), (10, 10, 0.7225, 1.0)])
def test_wilson_interval_against_published_values(correct: int, total: int, low: float,
                                                  high: float) -> None:
    """The second to fourth cases are Newcombe's (Statistics in Medicine 17, 1998, table I)."""
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize(("df", "t"), [
    (1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (29, 2.04523),
    (120, 1.97993), (100_000, 1.95999)])
def test_t_quantile_against_the_table(df: int, t: float) -> None:
    assert t_quantile(df) == pytest.approx(t, rel=3e-6)


def test_t_interval_by_hand_and_what_few_values_leave_open() -> None:
    interval = t_interval([1.0, 2.0, 3.0])
    assert (interval.mean, interval.std) == (2.0, 1.0)
    half = 4.302653 / math.sqrt(3)
    assert (interval.low, interval.high) == pytest.approx((2 - half, 2 + half))
    assert t_interval(torch.tensor([5.0, 5.0])) == (5.0, 0.0, 5.0, 5.0)
    assert t_interval([0.9]) == (0.9, None, None, None)
    assert t_interval([]) == (None, None, None, None)
