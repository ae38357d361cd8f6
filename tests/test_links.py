"""Each link of the guides leads somewhere, and each number that is a link stands in its file."""
import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any
from urllib.parse import unquote

import pytest

from conftest import ROOT

DOCS = ROOT / "docs"
GUIDES = [ROOT / "README.md", DOCS / "results/README.md", *sorted(DOCS.glob("*.md"))]
LINK = re.compile(r"\[([^\[\]]*)\]\(([^()\s]+)\)")
NUMBER = re.compile(r"[+−-]?\d[\d,]*(\.\d+)?( ?%)?")
MEAN = re.compile(r"([\d.]+) ± ([\d.]+) \((?:n = (\d+): )?(\[.*?\))\)")
TOP1 = ("test_top1", "val_top1", "clean_train_top1")
# Single cases and points of curves: so many numbers that any text would be among them.
CASES = {"samples", "curves", "shown", "gallery", "typical", "confusion", "profiles"}


def links(page: Path) -> Iterator[tuple[str, str]]:
    """(text, target) of every link of a page within this repository, code left out."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.S)
    return ((text, target) for text, target in LINK.findall(text) if "://" not in target)


def numbers(value: Any) -> Iterator[float]:
    """Every number in a JSON value but those of CASES."""
    if isinstance(value, dict):
        value = [inner for key, inner in value.items() if key not in CASES]
    if isinstance(value, list):
        for inner in value:
            yield from numbers(inner)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def holds(file: Path, text: str) -> bool:
    """Whether a JSON file holds the number that `text` shows, to the digits shown: as it is, or a
    fraction as percent."""
    shown = text.strip("+% ").replace("−", "-")
    digits = len(shown.partition(".")[2])
    values = [*numbers(json.loads(file.read_text()))]
    fractions = [value for value in values if isinstance(value, float) and abs(value) <= 1]
    if not digits:  # 0.945 is not shown as 1
        values = [value for value in values if value not in fractions]
    values += [100 * value for value in fractions]
    return shown in {f"{round(value, digits) + 0.0:,.{digits}f}" for value in values}


def faults(page: Path) -> list[str]:
    """What is wrong with a page's links."""
    found = []
    for text, target in links(page):
        name, _, anchor = unquote(target).partition("#")
        file = page.parent / name if name else page
        if not file.exists():
            found.append(f"{target} does not exist")
        elif NUMBER.fullmatch(text) and (file.suffix != ".json" or not holds(file, text)):
            found.append(f"{text} is not in {target}")
        elif anchor and anchor not in anchors(file):
            found.append(f"{target}: no such heading")
    for mean, std, n, seeds in MEAN.findall(page.read_text(encoding="utf-8")):
        runs = [json.loads((page.parent / unquote(target)).read_text())
                for _, target in LINK.findall(seeds)]
        # A column of a table may be of another accuracy than test's.
        columns = [[100 * run[key] for run in runs] for key in TOP1 if key in runs[0]]
        right = {(f"{fmean(column):.2f}", f"{stdev(column):.2f}") for column in columns}
        if (mean, std) not in right or n not in ("", str(len(runs))):
            found.append(f"{mean} ± {std} (n = {n}) is not of {seeds}")
    return found


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, made as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere_and_numbers_are_those_of_their_files(page):
    assert faults(page) == []


def test_the_page_of_results_is_full_of_such_numbers():
    page = DOCS / "results/README.md"
    assert sum(bool(NUMBER.fullmatch(text)) for text, _ in links(page)) > 150
    assert len(MEAN.findall(page.read_text(encoding="utf-8"))) >= 10


def test_a_wrong_number_and_a_dead_link_are_found(tmp_path):
    """Each planted fault alone is named; the same page without them has none."""
    for seed, top1 in enumerate((0.94541, 0.9501)):
        result = {"test_top1": top1, "val_top1": top1 - 0.01, "test_images": 10_000,
                  "delta": -0.1787, "resumed": True, "samples": [0.33],
                  "interval": [0.9, 0.955], "rate": 16128.4}
        (tmp_path / f"r {seed}.json").write_text(json.dumps(result))
    (tmp_path / "other.md").write_text("# A head: `x`\n")
    one, two = "(r%200.json)", "(r%201.json)"
    right = (f"[94.54]{one} [94.5 %]{one} [95.50]{one} [10,000]{one} [16,128]{one} [−17.87]{one} "
             f"[0.945]{one} [a](other.md#a-head-x) [far](https://example.org) `[1](no.md)`\n"
             f"94.78 ± 0.33 (n = 2: [94.54]{one}, [95.01]{two})\n"
             f"93.78 ± 0.33 ([93.54]{one}, [94.01]{two})\n")
    page = tmp_path / "page.md"
    page.write_text(right)
    assert faults(page) == []
    planted = {
        f"[94.55]{one}": "94.55 is not", f"[94.541]{one} [94.5410]{one} [94.542]{one}": "94.542 is",
        f"[17.87]{one}": "17.87 is not", f"[33.00]{one}": "33.00 is not", f"[1]{one}": "1 is not",
        "[94.54](other.md)": "94.54 is not", "[a](gone.md)": "gone.md does not exist",
        "[a](other.md#b)": "no such heading",
        f"94.77 ± 0.33 (n = 2: [94.54]{one}, [95.01]{two})": "94.77 ± 0.33",
        f"94.78 ± 0.33 (n = 3: [94.54]{one}, [95.01]{two})": "(n = 3) is not",
        f"93.78 ± 0.34 ([93.54]{one}, [94.01]{two})": "93.78 ± 0.34",
    }
    for fault, said in planted.items():
        page.write_text(right + fault)
        (found,) = faults(page)
        assert said in found


def test_every_figure_of_the_guides_is_linked():
    pages = [*GUIDES, *(DOCS / "results").rglob("*.md")]
    linked = {(page.parent / unquote(target)).resolve()
              for page in pages for _, target in links(page)}
    figures = [*DOCS.rglob("*.png"), *DOCS.rglob("*.jpg")]
    assert {path for path in figures if path.resolve() not in linked} == set()
