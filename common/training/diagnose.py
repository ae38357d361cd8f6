"""What a training history says in words: its phases, and whether the net over- or underfits."""
from collections.abc import Sequence

import numpy as np

from common.files import Json
from common.training.run import best_row
from common.words import count, number, percent

# Thresholds, for sets that a large enough net fits; all but RISE and AT_CHANCE are of top-1.
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

COLUMNS = ("train_loss", "val_loss", "train_top1", "val_top1")
Phase = tuple[int, int, str]  # first and last epoch, what happened


def diagnose(history: Sequence[Json], clean_train_top1: float, *, classes: int = 10,
             regularised: bool = False, val_images: int = MIN_VAL) -> tuple[str, list[str]]:
    """(verdict, sentences) computed from a run's history; several stages count as one.

    The verdict is overfit, underfit, good fit, nothing learned or too short to tell.

    Phases are found on curves averaged over three epochs, the numbers told are the rows' own:
    *fast learning* runs until val top-1 has made 80 % of its rise; *divergence* from where the
    train - val gap stays above 5 points until overfitting starts; *overfitting* from the epoch
    after the lowest val loss, if that loss ends 5 % higher while train loss went on falling.

    Args:
        history: rows with epoch, train_loss, train_top1, val_loss, val_top1 (top-1 as fractions).
        clean_train_top1: the best epoch's weights on train images, no augmentation or dropout.
        classes: how many there are.
        regularised: train_top1 was measured under augmentation or dropout.
        val_images: how many val has; of a small one no phases are told.
    """
    phases, best = _phases(history), best_row(history)
    words = []
    for name, (start, end, said) in phases.items() if val_images >= MIN_VAL else ():
        span = f"epochs {start}-{end}" if start < end else f"epoch {start}"
        words.append(f"{name.capitalize()}, {span}: {said}.")

    running, val = best["train_top1"], best["val_top1"]
    words.append(f"Plain train images {percent(clean_train_top1)}, val {percent(val)} at the best "
                 f"epoch ({best['epoch']}): gap {_points(clean_train_top1 - val)}.")
    if regularised:
        where = "below" if running < val else "above"
        if percent(running) == percent(val):  # as they are shown
            where = "equal to"
        words.append(f"During that epoch, augmented, train accuracy was {percent(running)}, "
                     f"{where} val: the two are not the same measurement.")
    val_top1 = [row["val_top1"] for row in history]
    verdict, reason = _verdict(val_top1, clean_train_top1, "overfitting" in phases, classes)
    words.append(f"Verdict: {verdict}. {reason}")
    return verdict, words


def _phases(history: Sequence[Json]) -> dict[str, Phase]:
    """The phases by name, found on smooth curves and told by the rows' own numbers."""
    rows = np.array([[row[key] for row in history] for key in COLUMNS])  # (4, epochs)
    # Centred means over three epochs, over two at either end.
    around = np.pad(rows, [(0, 0), (1, 1)], constant_values=np.nan)
    smooth = np.nanmean([around[:, :-2], rows, around[:, 2:]], axis=0)
    epochs, last = [row["epoch"] for row in history], len(history) - 1
    phases = {}

    _, val_loss, train_top1, val_top1 = smooth
    rise = val_top1.max() - val_top1[0]
    if rise >= MIN_PROGRESS:
        end = (val_top1 >= val_top1[0] + FAST_SHARE * rise).argmax()
        phases["fast learning"] = epochs[0], epochs[end], (
            f"val accuracy {percent(rows[3, 0])} to {percent(rows[3, end])}")

    turn = val_loss.argmin()
    risen = val_loss[last] > val_loss[turn] * (1 + RISE)
    # By the rows' own numbers, too, since those are told.
    parted = all(val[last] > val[turn] and train[last] < train[turn]
                 for train, val, *_ in (smooth, rows))
    if last + 1 < MIN_EPOCHS or not (risen and parted):
        turn = last
    # Divergence begins after the last epoch with a narrow gap.
    opens = np.flatnonzero(train_top1 - val_top1 <= OPEN_GAP).max(initial=-1) + 1
    if opens <= turn:
        gap = rows[2] - rows[3]
        phases["divergence"] = epochs[opens], epochs[turn], (
            f"the train-val gap is {_points(gap[opens])} where it opens and {_points(gap[turn])} "
            "at the end")
    if turn < last:
        train, val = (f"from {number(loss[turn])} to {number(loss[last])}" for loss in rows[:2])
        phases["overfitting"] = epochs[turn + 1], epochs[last], (
            f"val loss turns at epoch {epochs[turn]} and rises {val} "
            f"while train loss falls {train}")
    return phases


def _verdict(val_top1: list[float], train: float, turned: bool, classes: int) -> tuple[str, str]:
    """The verdict and its reason, a sentence."""
    epochs, best = len(val_top1), max(val_top1)
    gap = train - best
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
    if max(train, best) >= LOW_TOP1:
        reason = f"The net fits its training images, and the gap is below {_points(WIDE_GAP)}"
        if turned:
            reason += "; val loss did rise again, as the net grew too confident in its errors"
        return "good fit", f"{reason}."
    pace = (val_top1[-1] - val_top1[-MIN_EPOCHS]) / (MIN_EPOCHS - 1)
    if pace > STILL_RISING:
        return "too short to tell", f"Val accuracy was still rising by {_points(pace)} an epoch."
    return "underfit", (f"The net does not reach {percent(LOW_TOP1, 0)} on the images it was "
                        "trained on: more epochs, another learning rate or a larger net may fit "
                        "them.")


def _points(difference: float) -> str:
    """A difference of fractions in percentage points."""
    return f"{number(difference * 100)} points"
