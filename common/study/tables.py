"""Tables in and out: CSV files read back, and cells as Markdown that a terminal shows as well."""
import csv
from collections.abc import Sequence
from pathlib import Path

TEXT = ("run", "arm", "weights", "hardware", "command", "network", "variant", "precision")


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, keyed by its header."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def markdown(grid: Sequence[Sequence[str]]) -> str:
    """Header and rows of cells as an aligned Markdown table, numbers to the right; without
    rows it says so."""
    if len(grid) < 2:
        return "not measured\n"
    columns = []
    for head, *cells in zip(*grid):
        align, rule = (str.ljust, "") if head in TEXT else (str.rjust, ":")
        width = max(4, *map(len, (head, *cells)))
        column = (head, rule.rjust(width, "-"), *cells)
        columns.append([align(cell, width) for cell in column])
    return "".join(f"| {' | '.join(line)} |\n" for line in zip(*columns))


def bullets(sentences: Sequence[str]) -> str:
    """Sentences as a Markdown list."""
    return "".join(f"- {sentence}\n" for sentence in sentences)
