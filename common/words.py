"""How percent, counts, durations and long names are shown, by one rule everywhere."""
from collections.abc import Sequence


def percent(share: float | None, digits: int = 2) -> str:
    """A fraction as `93.81 %`; a dash for None."""
    return "–" if share is None else f"{number(share * 100, digits)} %"


def number(value: float, digits: int = 2, sign: str = "") -> str:
    """A number with `digits` decimals, a true minus and no negative zero; `sign="+"` shows plus."""
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


def short(name: str, most: int = 18) -> str:
    """A name cut in its middle to `most` characters that can be drawn, UTF-8 or not."""
    shown = "".join(one if one.isprintable() else "?" for one in name)
    cut = len(shown) - most
    return shown if cut <= 0 else f"{shown[:most // 2]}…{shown[most // 2 + cut + 1:]}"


def shorten(names: Sequence[str], most: int) -> dict[str, str]:
    """`short` of each of some different names, all of them longer where that makes two alike."""
    longest = max(map(len, names), default=0)
    while most < longest and len({short(name, most) for name in names}) < len({*names}):
        most += 1
    return {name: short(name, most) for name in names}
