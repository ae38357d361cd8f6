"""What a training history says: its phases, whether the net over- or underfits, and why, in words.
"""
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from common.files import Json
from common.training.run import best_row
from common.words import count, number, percent

# Thresholds; all but RISE and AT_CHANCE are fractions of top-1. They suit sets that a large enough
# net fits completely.
MIN_EPOCHS = 4  # a shorter history gets no verdict
FAST_SHARE = 0.8  # fast learning lasts until this share of val top-1's whole rise is made
MIN_PROGRESS = 0.05  # with a smaller rise of val top-1 there was no fast learning
OPEN_GAP = 0.05  # divergence: train - val top-1 is above this, and stays there
RISE = 0.05  # overfitting: val loss ends this much above its lowest, relative to it
WIDE_GAP = 0.10  # overfit by this gap alone
LOW_TOP1 = 0.90  # underfit: neither train nor val gets this far
STILL_RISING = 0.01  # val top-1 gained per epoch at the end: training was stopped early
MIN_VAL = 200  # images; with fewer, one image moves the curves by as much as a phase does
AT_CHANCE = 1.5  # times the share of one class: a best val top-1 below that is guessing

COLUMNS = ("epoch", "train_loss", "val_loss", "train_top1", "val_top1")
Phase = tuple[str, int, int, str]  # name, indices of its first and last epoch, what happened
Curves = dict[str, ndarray]  # the history's columns


class Diagnosis(NamedTuple):
    """What a history says; epochs are 1-based and ranges include both ends."""

    phases: list[tuple[str, int, int]]  # name, first and last epoch
    gap: float  # train - val top-1, fraction
    verdict: str  # overfit | underfit | good fit | nothing learned | too short to tell
    words: list[str]  # whole sentences


def diagnose(history: Sequence[Json], clean_train_top1: float, *, classes: int = 10,
             regularised: bool = False, val_images: int = MIN_VAL) -> Diagnosis:
    """Phases, verdict and words computed from a run's history; several stages count as one.

    Phases are found on curves averaged over three epochs, the numbers in `words` are the rows' own:
    *fast learning* runs until val top-1 has made 80 % of its rise; *divergence* from where the
    train - val gap stays above 5 points until overfitting starts; *overfitting* from the epoch
    after the lowest val loss, if that loss ends 5 % higher while train loss went on falling.

    Args:
        history: rows with epoch, train_loss, train_top1, val_loss, val_top1 (top-1 as fractions).
        clean_train_top1: the best epoch's weights on train images without augmentation and dropout,
            compared with that epoch's val top-1.
        classes: how many there are.
        regularised: train_top1 was measured under augmentation or dropout.
        val_images: how many val has; of a small one no phases are told.
    """
    curves = {key: np.array([float(row[key]) for row in history]) for key in COLUMNS}
    turn = _turn(curves)
    phases = _phases(curves, turn) if val_images >= MIN_VAL else []
    epochs, words, spans = curves["epoch"].astype(int).tolist(), [], []
    for name, first, last, said in phases:
        start, end = epochs[first], epochs[last]
        span = f"epochs {start}-{end}" if start < end else f"epoch {start}"
        words.append(f"{name.capitalize()}, {span}: {said}.")
        spans.append((name, start, end))

    best = list(history).index(best_row(history))
    running, val = curves["train_top1"][best], curves["val_top1"][best]
    gap = float(clean_train_top1 - val)
    words.append(f"Plain train images {percent(clean_train_top1)}, val {percent(val)} at the best "
                 f"epoch ({epochs[best]}): gap {_points(gap)}.")
    if regularised:
        where = "below" if running < val else "above"
        if percent(running) == percent(val):
            where = "equal to"
        words.append(f"During that epoch, augmented, train accuracy was {percent(running)}, "
                     f"{where} val: the two are not the same measurement.")
    verdict, reason = _verdict(curves["val_top1"], clean_train_top1, gap, turn is not None, classes)
    words.append(f"Verdict: {verdict}. {reason}")
    return Diagnosis(spans, gap, verdict, words)


def _turn(curves: Curves) -> int | None:
    """Index of the lowest val loss, if val loss rose from there while train loss fell."""
    train, val = curves["train_loss"], curves["val_loss"]
    smooth_train, smooth_val = _smooth(train), _smooth(val)
    low = int(smooth_val.argmin())
    risen = smooth_val[-1] > smooth_val[low] * (1 + RISE)
    fallen = smooth_train[-1] < smooth_train[low]
    start = max(0, low - 1)
    turn = start + int(val[start : start + 3].argmin())  # smoothing may have moved it by one
    # The sentence gives the rows' own numbers, so they have to say the same.
    seen = val[-1] > val[turn] and train[-1] < train[turn]
    return turn if len(val) >= MIN_EPOCHS and risen and fallen and seen else None


def _phases(curves: Curves, turn: int | None) -> list[Phase]:
    """The phases that there are, told with the rows' own numbers."""
    phases, top1 = [], curves["val_top1"]
    gap, last = curves["train_top1"] - top1, len(top1) - 1
    val = _smooth(top1)
    rise = val.max() - val[0]
    if rise >= MIN_PROGRESS:
        end = int((val >= val[0] + FAST_SHARE * rise).argmax())
        said = f"val accuracy {percent(top1[0])} to {percent(top1[end])}"
        phases.append(("fast learning", 0, end, said))
    # Divergence begins after the last epoch with a narrow gap.
    narrow = np.flatnonzero(_smooth(gap) <= OPEN_GAP)
    opens = int(narrow[-1]) + 1 if len(narrow) else 0
    closes = last if turn is None else turn
    if opens <= closes:
        said = (f"the train-val gap is {_points(gap[opens])} where it opens and "
                f"{_points(gap[closes])} at the end")
        phases.append(("divergence", opens, closes, said))
    if turn is not None:
        val_loss, train_loss = (
            f"from {number(loss[turn])} to {number(loss[-1])}"
            for loss in (curves["val_loss"], curves["train_loss"]))
        said = (f"val loss turns at epoch {curves['epoch'][turn]:.0f} and rises {val_loss} "
                f"while train loss falls {train_loss}")
        phases.append(("overfitting", turn + 1, last, said))
    return phases


def _verdict(val_top1: ndarray, train: float, gap: float, turned: bool,
             classes: int) -> tuple[str, str]:
    """The verdict and its reason, a sentence."""
    epochs, best = len(val_top1), val_top1.max()
    if epochs < MIN_EPOCHS:
        return "too short to tell", f"{count(epochs, 'epoch')} of the {MIN_EPOCHS} that it takes."
    # In the order of trust: what makes the later questions meaningless comes first.
    if best < AT_CHANCE / classes:
        return "nothing learned", (f"Val accuracy {percent(best)} is about what guessing gives "
                                   f"with {count(classes, 'class', 'classes')}.")
    if gap >= WIDE_GAP:
        return "overfit", f"The gap is at least {_points(WIDE_GAP)}."
    # A rise of val loss alone is no overfitting: accuracy may go on rising with it.
    if turned and gap >= OPEN_GAP:
        return "overfit", f"Val loss rose again, and the gap is at least {_points(OPEN_GAP)}."
    if max(train, train - gap) >= LOW_TOP1:
        rose = "; val loss did rise again, as the net grew too sure of its errors" * turned
        return "good fit", f"The net fits its training images, and the gap is narrow{rose}."
    pace = (val_top1[-1] - val_top1[-MIN_EPOCHS]) / (MIN_EPOCHS - 1)
    if pace > STILL_RISING:
        return "too short to tell", f"Val accuracy was still rising by {_points(pace)} an epoch."
    return "underfit", (f"The net does not reach {percent(LOW_TOP1, 0)} on the images it was "
                        "trained on: more epochs, another learning rate or a larger net may fit "
                        "them.")


def _smooth(values: ndarray) -> ndarray:
    """Centred means over three epochs, over two at either end."""
    window = np.ones(3)
    sums = np.convolve(values, window, "same")
    return sums / np.convolve(np.ones(len(values)), window, "same")


def _points(difference: float) -> str:
    """A difference of fractions in percentage points."""
    return f"{number(difference * 100)} points"
