"""Tables in and out: CSV files read back, and cells as Markdown that a terminal shows as well."""
import csv
from collections.abc import Sequence
from pathlib import Path

TEXT = ("run", "arm", "weights", "hardware", "command", "network", "variant", "precision")


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, keyed by its header."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def markdown(grid: Sequence[Sequence[str]]) -> str:
    """Header and rows of cells as an aligned Markdown table, numbers to the right; without
    rows it says so."""
    if len(grid) < 2:
        return "not measured\n"
    columns = []
    for head, *cells in zip(*grid):
        width = max(len(cell) for cell in (head, *cells, "---:"))
        if head in TEXT:
            columns.append([cell.ljust(width) for cell in (head, "-" * width, *cells)])
        else:
            rule = "-" * (width - 1) + ":"
            columns.append([cell.rjust(width) for cell in (head, rule, *cells)])
    return "".join(f"| {' | '.join(line)} |\n" for line in zip(*columns))
