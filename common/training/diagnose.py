"""What a training history says: its phases, whether the net over- or underfits, and why, in words.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Diagnosis:
    """Phases, fit and words; epochs are 1-based and ranges include both ends."""

    phases: list[tuple[str, int, int]]  # (name, first epoch, last epoch)
    gap: float  # train - val top-1, fraction
    val_loss_turn: int | None  # epoch of the lowest val loss, if it rose from there
    verdict: str  # overfit | underfit | good fit | nothing learned | too short to tell
    words: list[str]  # whole sentences


@dataclass(frozen=True)
class Curves:
    """The columns of a history, one value an epoch; top-1 as fractions."""

    epochs: list[int]
    train_loss: list[float]
    val_loss: list[float]
    train_top1: list[float]
    val_top1: list[float]


def diagnose(history: Sequence[Mapping[str, object]], *, classes: int = 10,
             clean_train_top1: float | None = None, regularised: bool = False,
             val_images: int = MIN_VAL) -> Diagnosis:
    """Phases, verdict and words computed from a run's history; several stages count as one.

    Phases are found on curves averaged over three epochs, the numbers in `words` are the rows' own:
    *fast learning* runs until val top-1 has made 80 % of its rise; *divergence* from where the
    train - val gap stays above 5 points until overfitting starts; *overfitting* from the epoch
    after the lowest val loss, if that loss ends 5 % higher while train loss went on falling.

    Args:
        history: rows with epoch, train_loss, train_top1, val_loss, val_top1 (top-1 as fractions).
        classes: how many there are.
        clean_train_top1: the best epoch's weights on train images without augmentation and dropout;
            compared with that epoch's val top-1, it replaces the last epoch's running figure.
        regularised: train_top1 was measured under augmentation or dropout.
        val_images: how many val has; of a small one no phases are told.

    Raises:
        ValueError: `history` is empty.
    """
    if not history:
        raise ValueError("history has no epochs: train for at least one")
    curves = _curves(history)
    turn = _turn(curves)
    phases, words = _phases(curves, turn) if val_images >= MIN_VAL else ([], [])

    clean = clean_train_top1 is not None
    best = list(history).index(best_row(history))
    at = best if clean else len(history) - 1
    train = clean_train_top1 if clean else curves.train_top1[at]
    val = curves.val_top1[at]
    what, when = ("Plain train images", "best") if clean else ("Train", "last")
    words.append(f"{what} {percent(train)}, val {percent(val)} at the {when} epoch "
                 f"({curves.epochs[at]}): gap {_points(train - val)}.")
    if regularised:
        words.append(_regularised(curves.train_top1[at], val))
    verdict, reason = _verdict(curves, train, train - val, turn is not None, classes)
    words.append(f"Verdict: {verdict}. {reason}")
    turned_at = None if turn is None else curves.epochs[turn]
    return Diagnosis(phases, train - val, turned_at, verdict, words)


def _curves(history: Sequence[Mapping[str, object]]) -> Curves:
    """The history's columns; the values may be a CSV file's strings."""
    def column(key: str) -> list[float]:
        return [float(row[key]) for row in history]

    epochs = [int(row["epoch"]) for row in history]
    return Curves(epochs, column("train_loss"), column("val_loss"), column("train_top1"),
                  column("val_top1"))


def _phases(curves: Curves, turn: int | None) -> tuple[list[tuple[str, int, int]], list[str]]:
    """The phases that there are, and a sentence of each."""
    phases, words = [], []
    epochs, last = curves.epochs, len(curves.epochs) - 1

    fast_end = _fast_end(curves.val_top1)
    if fast_end is not None:
        phase = ("fast learning", epochs[0], epochs[fast_end])
        phases.append(phase)
        words.append(f"Fast learning, {_span(phase)}: val accuracy {percent(curves.val_top1[0])} "
                     f"to {percent(curves.val_top1[fast_end])}.")

    gaps = [train - val for train, val in zip(curves.train_top1, curves.val_top1)]
    opens, closes = _gap_opens(gaps), last if turn is None else turn
    if opens <= closes:
        phase = ("divergence", epochs[opens], epochs[closes])
        phases.append(phase)
        words.append(f"Divergence, {_span(phase)}: the train-val gap is {_points(gaps[opens])} "
                     f"where it opens and {_points(gaps[closes])} at the end.")

    if turn is not None:
        phase = ("overfitting", epochs[turn + 1], epochs[last])
        phases.append(phase)
        val, train = curves.val_loss, curves.train_loss
        words.append(f"Overfitting, {_span(phase)}: val loss turns at epoch {epochs[turn]} and "
                     f"rises from {number(val[turn])} to {number(val[last])} while train loss "
                     f"falls from {number(train[turn])} to {number(train[last])}.")
    return phases, words


def _verdict(curves: Curves, train: float, gap: float, turned: bool,
             classes: int) -> tuple[str, str]:
    """The verdict and its reason, a sentence."""
    val_top1 = curves.val_top1
    epochs = len(val_top1)
    if epochs < MIN_EPOCHS:
        return "too short to tell", f"{count(epochs, 'epoch')} of the {MIN_EPOCHS} that it takes."
    # In the order of trust: what makes the later questions meaningless comes first.
    if max(val_top1) < AT_CHANCE / classes:
        return "nothing learned", (f"Val accuracy {percent(max(val_top1))} is about what guessing "
                                   f"gives with {count(classes, 'class', 'classes')}.")
    if gap >= WIDE_GAP:
        return "overfit", f"The gap is at least {WIDE_GAP * 100:.0f} points."
    # A rise of val loss alone is no overfitting: accuracy may go on rising with it.
    if turned and gap >= OPEN_GAP:
        return "overfit", ("Val loss rose again, and the gap is at least "
                           f"{OPEN_GAP * 100:.0f} points.")
    if max(train, train - gap) < LOW_TOP1:
        pace = (val_top1[-1] - val_top1[-MIN_EPOCHS]) / (MIN_EPOCHS - 1)
        if pace > STILL_RISING:
            return "too short to tell", ("Val accuracy was still rising by "
                                         f"{_points(pace)} an epoch.")
        return "underfit", (f"The net does not reach {LOW_TOP1 * 100:.0f} % on the images it was "
                            "trained on: more epochs, another learning rate or a larger net may "
                            "fit them.")
    rose = "; val loss did rise again, as the net grew too sure of its errors" if turned else ""
    return "good fit", f"The net fits its training images, and the gap is narrow{rose}."


def _regularised(train: float, val: float) -> str:
    """Why train accuracy under augmentation and dropout may lie below val's."""
    where = "below val" if train < val else "above val"
    if percent(train) == percent(val):
        where = "equal to val"
    return (f"During that epoch, augmented, train accuracy was {percent(train)}, {where}: the two "
            "are not the same measurement.")


def _turn(curves: Curves) -> int | None:
    """Index of the lowest val loss, if val loss rose from there while train loss fell."""
    train, val = _smooth(curves.train_loss), _smooth(curves.val_loss)
    turn = min(range(len(val)), key=val.__getitem__)
    risen = val[-1] > val[turn] * (1 + RISE)
    if len(val) < MIN_EPOCHS or not risen or train[-1] >= train[turn]:
        return None
    # Smoothing may have moved it by one.
    nearby = range(max(0, turn - 1), min(turn + 2, len(val) - 1))
    turn = min(nearby, key=curves.val_loss.__getitem__)
    # The sentence gives the rows' own numbers, so they have to say the same.
    fell = curves.train_loss[-1] < curves.train_loss[turn]
    rose = curves.val_loss[-1] > curves.val_loss[turn]
    return turn if fell and rose else None


def _gap_opens(gaps: list[float]) -> int:
    """Index from which train - val top-1 stays above OPEN_GAP; the number of epochs if it never
    does."""
    narrow = [i for i, gap in enumerate(_smooth(gaps)) if gap <= OPEN_GAP]
    return narrow[-1] + 1 if narrow else 0


def _fast_end(val_top1: list[float]) -> int | None:
    """Index at which val top-1 has made FAST_SHARE of its rise."""
    val = _smooth(val_top1)
    rise = max(val) - val[0]
    if rise < MIN_PROGRESS:
        return None
    return next(i for i, top1 in enumerate(val) if top1 >= val[0] + FAST_SHARE * rise)


def _smooth(values: list[float]) -> list[float]:
    """Centred means over three epochs, over two at either end."""
    windows = [values[max(0, i - 1) : i + 2] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _span(phase: tuple[str, int, int]) -> str:
    """The phase's epochs for a sentence."""
    _, first, final = phase
    return f"epoch {first}" if first == final else f"epochs {first}-{final}"


def _points(difference: float) -> str:
    """A difference of fractions in percentage points."""
    return f"{number(difference * 100)} points"
