"""Phases and verdicts on histories whose answers are known by hand."""
import re
from types import SimpleNamespace

import numpy as np
import pytest

from common.training.diagnose import diagnose

KEYS = ("train_loss", "train_top1", "val_loss", "val_top1")


def rows(*curves):
    """A one-stage history of four curves: train loss and top-1, val loss and top-1."""
    return [{"stage": "train", "epoch": epoch, **dict(zip(KEYS, values))}
            for epoch, values in enumerate(zip(*curves), 1)]


def still(epochs, *values):
    """A history in which nothing changes."""
    return rows(*([value] * epochs for value in values))


def told(history, clean=None, **settings):
    """The diagnosis, with the phases and the gap (points) that its sentences tell; without `clean`,
    plain train images do as well as those of the last epoch."""
    verdict, words = diagnose(history, clean or history[-1]["train_top1"], **settings)
    found = (re.match(r"([A-Z][a-z ]+), epochs? (\d+)(?:-(\d+))?: ", said) for said in words)
    phases = [(one[1].lower(), int(one[2]), int(one[3] or one[2])) for one in found if one]
    gap = re.search(r"epoch \(\d+\): gap (.+?) points", " ".join(words))[1]
    return SimpleNamespace(verdict=verdict, words=words, phases=phases,
                           gap=float(gap.replace("−", "-")))


def line(points):
    """Values at epochs 1, 2, ... on straight lines between the (epoch, value) points."""
    return np.interp(range(1, max(points) + 1), list(points), list(points.values())).tolist()


def lines(*curves):
    """A one-stage history of four curves on straight lines between (epoch, value) points."""
    return rows(*map(line, curves))


def overfitting(found):
    """The phase of it, if there is one."""
    return [phase for phase in found.phases if phase[0] == "overfitting"]


def textbook():
    """Val top-1 stops at epoch 4, the gap opens at 5, val loss turns at 7; ten epochs."""
    return lines({1: 2.0, 10: 0.2}, {1: 0.30, 10: 0.84},
                 {1: 1.6, 7: 1.0, 10: 1.3}, {1: 0.30, 4: 0.48, 10: 0.48})


def reference_baseline():
    """SimpleCNN under the report's recipe: its measured epochs 1 to 3, 29 and 50."""
    return lines({1: 2.239, 2: 1.933, 3: 1.675, 15: 0.85, 29: 0.43, 50: 0.01},
                 {1: 0.202, 2: 0.299, 3: 0.394, 15: 0.70, 29: 0.85, 50: 0.9997},
                 {1: 2.073, 2: 1.801, 3: 1.603, 22: 0.81, 50: 1.39},
                 {1: 0.25, 2: 0.354, 3: 0.426, 15: 0.68, 29: 0.73, 50: 0.747})


def test_textbook_phases_and_the_numbers_in_their_words():
    found = told(textbook())
    assert found.phases == [("fast learning", 1, 4), ("divergence", 5, 7), ("overfitting", 8, 10)]
    assert found.gap == 36 and found.verdict == "overfit"
    text = " ".join(found.words)
    assert "epochs 1-4" in text and "epochs 5-7" in text and "epochs 8-10" in text
    assert ("val loss turns at epoch 7 and rises from 1.00 to 1.30 "
            "while train loss falls from 0.80 to 0.20") in text
    assert "Plain train images 84.00 %, val 48.00 % at the best epoch (7): gap 36.00 points" in text
    assert "Verdict: overfit." in text and "augmentation" not in text


def test_epochs_are_the_rows_own_and_stages_count_as_one_sequence():
    history = [row | {"epoch": row["epoch"] + 100} for row in textbook()]
    for row in history[:3]:
        row["stage"] = "head"
    assert told(history).phases == [("fast learning", 101, 104), ("divergence", 105, 107),
                                    ("overfitting", 108, 110)]


def test_reference_baseline_overfits_and_a_small_val_has_no_phases():
    found = told(reference_baseline())
    assert found.verdict == "overfit" and found.gap == 25.27
    assert [name for name, _, _ in found.phases] == ["fast learning", "divergence", "overfitting"]
    turn = found.phases[1][2]
    assert turn in (22, 23) and found.phases[2][1:] == (turn + 1, 50)
    found = told(reference_baseline(), val_images=20)
    assert found.verdict == "overfit" and found.phases == [] and len(found.words) == 2


def test_imagenet_stem_underfits_with_or_without_clean_accuracy():
    history = lines({1: 1.9, 20: 0.9, 50: 0.5}, {1: 0.3, 20: 0.70, 50: 0.8334},
                    {1: 1.6, 20: 0.8, 50: 0.5}, {1: 0.4, 20: 0.75, 50: 0.8358})
    assert told(history, regularised=True).verdict == "underfit"
    found = told(history, regularised=True, clean=0.88)
    assert found.verdict == "underfit" and found.gap == 4.42
    assert [name for name, _, _ in found.phases] == ["fast learning"]


def test_good_fit():
    found = told(lines({1: 1.5, 30: 0.1}, {1: 0.5, 30: 0.97},
                       {1: 1.3, 30: 0.17}, {1: 0.55, 30: 0.95}))
    assert found.verdict == "good fit" and not overfitting(found)
    assert found.gap == 2


def test_val_above_ninety_is_no_underfit_though_augmented_train_is_low():
    history = lines({1: 1.9, 30: 0.8}, {1: 0.4, 30: 0.89}, {1: 1.3, 30: 0.2}, {1: 0.5, 30: 0.945})
    assert told(history, regularised=True).verdict == "good fit"


def test_clean_accuracy_explains_train_below_val():
    history = lines({1: 2.0, 20: 0.8}, {1: 0.3, 20: 0.88},
                    {1: 1.5, 20: 0.3}, {1: 0.4, 18: 0.93, 20: 0.92})
    found = told(history, regularised=True, clean=0.97)
    train = history[17]["train_top1"]
    assert found.gap == 4, "clean accuracy belongs to the best epoch"
    text = " ".join(found.words)
    assert "Plain train images 97.00 %, val 93.00 % at the best epoch (18): gap 4.00 points" in text
    assert f"augmented, train accuracy was {train * 100:.2f} %, below val" in text
    assert "not the same measurement" in " ".join(told(history, regularised=True).words)


def test_a_gap_of_two_points_is_no_overfit_whatever_the_val_loss_does():
    for end in (1.04, 1.09):
        val_loss = line({1: 2.0, 6: 1.0, 10: 1.0, 11: end, 14: end})
        found = told(rows(line({1: 2.0, 14: 0.2}), line({1: 0.5, 14: 0.97}), val_loss,
                          line({1: 0.5, 14: 0.95})))
        assert found.verdict == "good fit"
        assert bool(overfitting(found)) == (end == 1.09), "0.04 is no turn"


def test_rising_val_loss_without_falling_train_loss_is_no_overfitting():
    history = textbook()
    for row in history[6:]:
        row["train_loss"] = 0.8 + 0.1 * row["epoch"]
    assert not overfitting(told(history))


def test_one_noisy_epoch_opens_no_phase():
    history = lines({1: 1.5, 20: 0.2}, {1: 0.5, 20: 0.95},
                    {1: 1.3, 20: 0.25}, {1: 0.5, 20: 0.93})
    history[9]["val_top1"] -= 0.2
    history[14]["val_loss"] = 0.2  # lowest of all, and followed by higher ones
    assert [name for name, _, _ in told(history).phases] == ["fast learning"]


@pytest.mark.parametrize("epochs, said", [
    (1, "1 epoch of the 4"), (3, "3 epochs of the 4"), (6, "")])
def test_short_histories(epochs, said):
    """The sixth epoch of the reference is still rising."""
    found = told(reference_baseline()[:epochs], regularised=True)
    assert found.verdict == "too short to tell" and said in found.words[-1]
    assert not overfitting(found)
    assert all(1 <= first <= last <= epochs for _, first, last in found.phases)


def test_no_loss_is_said_to_fall_that_rose():
    """The averaged train loss falls, the row at the turn happens to be the lowest of all."""
    history = textbook()
    history[6]["train_loss"] = 0.1
    text = " ".join(told(history).words)
    assert "falls" not in text


@pytest.mark.parametrize("epochs, train, val, classes, verdict", [
    (3, 0.97, 0.95, 10, "too short to tell"), (4, 0.97, 0.95, 10, "good fit"),
    (9, 0.98, 0.87, 10, "overfit"), (9, 0.98, 0.91, 10, "good fit"),
    (8, 0.10, 0.10, 10, "nothing learned"), (8, 0.10, 0.10, 1000, "underfit"),
    (9, 0.70, 0.69, 10, "underfit"),
])
def test_verdicts_where_nothing_moves(epochs, train, val, classes, verdict):
    found = told(still(epochs, 1.0, train, 1.0, val), classes=classes)
    assert found.verdict == verdict and not overfitting(found)
    assert found.phases == [] or train > val + 0.05
    if verdict == "underfit":  # a cause that the numbers do not show is not named
        assert "data" not in found.words[-1] and "may" in found.words[-1]


def test_equal_accuracies_are_not_said_to_lie_above_each_other():
    words = told(still(5, 0.4, 0.93, 0.3, 0.93), regularised=True).words
    assert "93.00 %, equal to val" in " ".join(words)
