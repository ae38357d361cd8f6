"""How numbers are put into words: one rule for percent, counts and durations, wherever they are
printed."""


def percent(share: float | None, digits: int = 2, sign: str = "") -> str:
    """A fraction as `93.81 %`; `sign="+"` shows it for differences; a dash for None."""
    if share is None:
        return "–"
    return f"{number(share * 100, digits, sign)} %"


def number(value: float, digits: int = 2, sign: str = "") -> str:
    """A number with `digits` decimals, a minus sign that is no hyphen, and never a negative zero.
    """
    rounded = round(value, digits) + 0.0  # -0.0 + 0.0 is 0.0
    return f"{rounded:{sign},.{digits}f}".replace("-", "−")


def count(n: int, noun: str, plural: str | None = None) -> str:
    """`1 image`, `4,500 images`."""
    word = noun if n == 1 else plural or f"{noun}s"
    return f"{n:,} {word}"


def duration(seconds: float) -> str:
    """`48 s`, `12.5 min` or `2.6 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
