"""Confusions, calibration and intervals against values worked out by hand, loops and tables."""
import math

import pytest
import torch

from common.analysis.scores import calibration, most_confused, t_interval, t_quantile
from common.metrics import confusion_matrix


def logits_of(*probs: list[float]) -> torch.Tensor:
    """Logits whose softmax is `probs`, rows that sum to 1."""
    return torch.tensor(probs, dtype=torch.float64).log()


def calibrate(logits: torch.Tensor, labels: torch.Tensor) -> dict:
    """The table of logits and labels."""
    confidence, preds = logits.double().softmax(1).max(1)
    return calibration(confidence, preds == labels)


def random_case(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, K) logits that lean towards their (N,) labels, N and K drawn too."""
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(1, 300, (), generator=generator))
    k = int(torch.randint(2, 13, (), generator=generator))
    labels = torch.randint(k, (n,), generator=generator)
    noise = torch.randn(n, k, generator=generator)
    return 2 * noise + 2 * torch.nn.functional.one_hot(labels, k), labels


def test_confusions_of_six_images_by_hand() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    preds = torch.tensor([0, 1, 1, 1, 0, 0])
    confusion = confusion_matrix(preds, labels, 4)
    assert confusion.tolist() == [[1, 2, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert most_confused(confusion) == [(0, 1, 2), (1, 0, 1), (2, 0, 1)]
    assert most_confused(torch.eye(3, dtype=torch.int64)) == []


@pytest.mark.parametrize("seed", range(10))
def test_properties_and_plain_loops(seed: int) -> None:
    logits, labels = random_case(seed)
    preds, k = logits.argmax(1), logits.shape[1]
    confusion = confusion_matrix(preds, labels, k)
    assert confusion.sum(1).tolist() == torch.bincount(labels, minlength=k).tolist()
    right = int((preds == labels).sum())
    assert confusion.trace() == right
    wrong = len(labels) - right
    assert sum(n for *_, n in most_confused(confusion)) == wrong

    table = calibrate(logits, labels)
    probs = [[math.exp(v - max(row)) for v in row] for row in logits.double().tolist()]
    probs = [[v / sum(row) for v in row] for row in probs]
    gaps = [0.0] * 15
    for row, label, pred in zip(probs, labels.tolist(), preds.tolist()):
        gaps[min(14, int(max(row) * 15))] += max(row) - (pred == label)
    assert table["ece"] == pytest.approx(sum(map(abs, gaps)) / len(labels), abs=1e-12)
    assert sum(table["count"]) == len(labels) and 0 <= table["ece"] <= 1
    hits = sum(n * share for n, share in zip(table["count"], table["accuracy"]))
    assert hits == pytest.approx(right)


def test_calibration_by_hand() -> None:
    certain = torch.tensor([[1000.0, 0.0]])
    logits = torch.cat([logits_of([0.62, 0.38], [0.38, 0.62], [0.9, 0.1]), certain])
    table = calibrate(logits, torch.tensor([0, 0, 0, 1]))
    # 0.62 twice, one right, in bin 9; 0.9 right in bin 13; exactly 1.0, wrong, in the last bin
    assert table["ece"] == pytest.approx((2 * 0.12 + 0.1 + 1.0) / 4)
    assert table["count"] == [0] * 9 + [2, 0, 0, 0, 1, 1]
    assert table["confidence"] == pytest.approx([0] * 9 + [0.62, 0, 0, 0, 0.9, 1.0])
    assert table["accuracy"] == pytest.approx([0] * 9 + [0.5, 0, 0, 0, 1.0, 0.0])


def test_a_confidence_on_an_edge_belongs_to_the_bin_above() -> None:
    table = calibration(torch.full((3,), 0.5), torch.ones(3, dtype=torch.bool), bins=4)
    assert table["count"] == [0, 0, 3, 0]


@pytest.mark.parametrize(("df", "t"), [
    (1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (29, 2.04523),
    (120, 1.97993), (100_000, 1.95999)])
def test_t_quantile_against_the_table(df: int, t: float) -> None:
    assert t_quantile(df) == pytest.approx(t, rel=3e-6)


def test_t_interval_by_hand_and_what_few_values_leave_open() -> None:
    interval = t_interval([1.0, 2.0, 3.0])
    assert (interval["mean"], interval["std"], interval["n"]) == (2.0, 1.0, 3)
    half = 4.302653 / math.sqrt(3)
    assert (interval["low"], interval["high"]) == pytest.approx((2 - half, 2 + half))
    assert [*t_interval(torch.tensor([5.0, 5.0])).values()] == [5.0, 0.0, 5.0, 5.0, 2]
    assert [*t_interval([0.9]).values()] == [0.9, None, None, None, 1]
    assert [*t_interval([]).values()] == [None, None, None, None, 0]
