"""Sentences with places for names and numbers, filled by one rule."""
import string
from typing import Any

from common.words import count, number, percent


class Sentence(string.Formatter):
    """Fills `{loss:.2f}` and the like, and what Python has no format for.

    `{x:%}` is a percentage, `{x:%1}` one with a single decimal, `{x:#image}` a number of images,
    `{x:~}` the two ends of an interval in percent, `{x:±}` a mean and the ends of its interval,
    `{x:±%}` the same in percentage points; a dash stands for None.
    """

    def format_field(self, value: Any, spec: str) -> str:
        rest = spec[1:]
        match spec[:1]:
            case "%":
                return percent(value, int(rest or 2))
            case "#":
                return count(value, rest)
            case "~":
                return " to ".join(percent(end, 1).removesuffix(" %") for end in value)
            case "±":
                digits, scale = (2, 100) if rest else (3, 1)
                ends = [value["mean"], value["low"], value["high"]]
                shown = ["–" if end is None else number(scale * end, digits, "+") for end in ends]
                return "{} ({} to {})".format(*shown)
        return format(value, spec)


say = Sentence().format
