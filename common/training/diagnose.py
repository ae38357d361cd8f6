"""What a training history says: its phases, whether the net over- or underfits, and why, in words."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass



# Thresholds; all but RISE are fractions of top-1. They suit sets that a large enough net fits completely.
MIN_EPOCHS = 4  # a shorter history gets no verdict
FAST_SHARE = 0.8  # fast learning lasts until this share of val top-1's whole rise is made
MIN_PROGRESS = 0.05  # with a smaller rise of val top-1 there was no fast learning
OPEN_GAP = 0.05  # divergence: train - val top-1 is above this, and stays there
RISE = 0.05  # overfitting: val loss ends this much above its lowest, relative to it
WIDE_GAP = 0.10  # overfit by this gap alone
LOW_TOP1 = 0.90  # underfit: neither train nor val gets this far
STILL_RISING = 0.01  # val top-1 gained per epoch at the end: training was stopped early


@dataclass(frozen=True)
class Diagnosis:
    """Phases, fit and words; epochs are 1-based and ranges include both ends."""

    phases: list[tuple[str, int, int]]  # (name, first epoch, last epoch)
    gap: float  # train - val top-1, fraction
    val_loss_turn: int | None  # epoch of the lowest val loss, if it rose from there
    verdict: str  # overfit | underfit | good fit | too short to tell
    words: list[str]  # whole sentences


def diagnose(
    history: Sequence[Mapping[str, object]],
    *,
    clean_train_top1: float | None = None,
    regularised: bool = False,
) -> Diagnosis:
    """Phases, verdict and words computed from a run's history; several stages count as one sequence.

    Phases are found on curves averaged over three epochs, the numbers in `words` are the rows' own:
    *fast learning* runs until val top-1 has made 80 % of its rise; *divergence* from where the
    train - val gap stays above 5 points until overfitting starts; *overfitting* from the epoch after
    the lowest val loss, if that loss ends 5 % higher while train loss went on falling.

    Args:
        history: rows with epoch, train_loss, train_top1, val_loss, val_top1 (top-1 as fractions).
        clean_train_top1: the best epoch's weights on train images without augmentation and dropout;
            compared with that epoch's val top-1, it replaces the last epoch's running figure.
        regularised: train_top1 was measured under augmentation or dropout.

    Raises:
        ValueError: `history` is empty.
    """
    if not history:
        raise ValueError("history has no epochs: train for at least one")
    epochs = [int(row["epoch"]) for row in history]
    train_loss, val_loss, train_top1, val_top1 = (
        [float(row[key]) for row in history] for key in ("train_loss", "val_loss", "train_top1", "val_top1")
    )
    last = len(epochs) - 1
    best = max(range(len(epochs)), key=val_top1.__getitem__)
    turn = _turn(train_loss, val_loss)

    phases, words = [], []
    fast_end = _fast_end(val_top1)
    if fast_end is not None:
        phases.append(("fast learning", epochs[0], epochs[fast_end]))
        words.append(
            f"Fast learning, {_span(phases[-1])}: val accuracy {val_top1[0]:.2%} to {val_top1[fast_end]:.2%}."
        )
    opens, closes = _gap_opens(train_top1, val_top1), last if turn is None else turn
    if opens <= closes:
        phases.append(("divergence", epochs[opens], epochs[closes]))
        words.append(
            f"Divergence, {_span(phases[-1])}: the train-val gap stays above {OPEN_GAP * 100:.0f} points, "
            f"{(train_top1[opens] - val_top1[opens]) * 100:.2f} where it opens and "
            f"{(train_top1[closes] - val_top1[closes]) * 100:.2f} at the end."
        )
    if turn is not None:
        phases.append(("overfitting", epochs[turn + 1], epochs[last]))
        words.append(
            f"Overfitting, {_span(phases[-1])}: val loss turns at epoch {epochs[turn]} and rises from "
            f"{val_loss[turn]:.2f} to {val_loss[last]:.2f} while train loss falls from "
            f"{train_loss[turn]:.2f} to {train_loss[last]:.2f}."
        )

    clean = clean_train_top1 is not None
    train, at = (clean_train_top1, best) if clean else (train_top1[last], last)
    gap = train - val_top1[at]
    words.append(
        f"{'Clean train' if clean else 'Train'} {train:.2%}, val {val_top1[at]:.2%} at the "
        f"{'best' if clean else 'last'} epoch ({epochs[at]}): gap {_points(gap)}."
    )
    if regularised:
        words.append(_regularised(train_top1[at], val_top1[at], clean_train_top1))
    verdict, reason = _verdict(train, gap, turn is not None, val_top1)
    words.append(f"Verdict: {verdict}. {reason}")
    return Diagnosis(phases, gap, None if turn is None else epochs[turn], verdict, words)


def _verdict(train: float, gap: float, turned: bool, val_top1: list[float]) -> tuple[str, str]:
    """The verdict and its reason, a sentence."""
    if len(val_top1) < MIN_EPOCHS:
        return "too short to tell", f"It takes at least {MIN_EPOCHS} epochs; there are {len(val_top1)}."
    if gap >= WIDE_GAP:
        return "overfit", f"The gap of {_points(gap)} is at least {WIDE_GAP * 100:.0f}."
    if turned and gap >= OPEN_GAP:
        return "overfit", f"Val loss rose again and the gap of {_points(gap)} is at least {OPEN_GAP * 100:.0f}."
    if max(train, train - gap) < LOW_TOP1:
        pace = (val_top1[-1] - val_top1[-MIN_EPOCHS]) / (MIN_EPOCHS - 1)
        if pace > STILL_RISING:
            return "too short to tell", f"Val accuracy was still rising by {_points(pace)} an epoch."
        return "underfit", (
            f"Neither train nor val reaches {LOW_TOP1:.0%} and the gap is narrow: the net lacks capacity, "
            "resolution or a better recipe rather than data."
        )
    rose = "; val loss did rise again, for it grew too sure of its errors" if turned else ""
    return "good fit", f"Accuracy passes {LOW_TOP1:.0%} with a gap of {_points(gap)}{rose}."


def _regularised(train: float, val: float, clean: float | None) -> str:
    """Why train accuracy under augmentation and dropout says little beside val, with the numbers at hand."""
    below = "below" if train < val else "above"
    note = (
        "Train accuracy is averaged over the epoch, under augmentation and dropout; val is measured on plain "
        f"images after it. So train {train:.2%} lies {_points(abs(train - val))} {below} val {val:.2%}"
    )
    if clean is None:
        return note + "; the two are not the same measurement."
    side = "above" if clean >= val else "below"
    return note + (
        f"; on plain train images the same weights reach {clean:.2%}, {_points(abs(clean - val))} {side} val."
    )


def _turn(train_loss: list[float], val_loss: list[float]) -> int | None:
    """Index of the lowest val loss, if val loss rose from there while train loss fell."""
    train, val = _smooth(train_loss), _smooth(val_loss)
    turn = min(range(len(val)), key=val.__getitem__)
    if len(val) < MIN_EPOCHS or val[-1] <= val[turn] * (1 + RISE) or train[-1] >= train[turn]:
        return None
    nearby = range(max(0, turn - 1), min(turn + 2, len(val) - 1))  # smoothing may have moved it by one
    return min(nearby, key=val_loss.__getitem__)


def _gap_opens(train_top1: list[float], val_top1: list[float]) -> int:
    """Index from which train - val top-1 stays above OPEN_GAP; the number of epochs if it does not."""
    gap = _smooth([train - val for train, val in zip(train_top1, val_top1)])
    return max((i + 1 for i, width in enumerate(gap) if width <= OPEN_GAP), default=0)


def _fast_end(val_top1: list[float]) -> int | None:
    """Index at which val top-1 has made FAST_SHARE of its rise."""
    val = _smooth(val_top1)
    rise = max(val) - val[0]
    if rise < MIN_PROGRESS:
        return None
    return next(i for i, top1 in enumerate(val) if top1 >= val[0] + FAST_SHARE * rise)


def _smooth(values: list[float]) -> list[float]:
    """Centred means over three epochs, over two at either end."""
    return [sum(w) / len(w) for w in (values[max(0, i - 1) : i + 2] for i in range(len(values)))]


def _span(phase: tuple[str, int, int]) -> str:
    """The phase's epochs for a sentence."""
    _, first, final = phase
    return f"epoch {first}" if first == final else f"epochs {first}-{final}"


def _points(difference: float) -> str:
    """A difference of fractions in percentage points."""
    return f"{difference * 100:.2f} points"
