"""report.html of an analysis, from the files of its folder alone: every number is analysis.json's.

Its words stand in report.html, page.html and report.css beside this file.
"""

import base64
import html
import re
import string
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.analysis.findings import claims, findings
from common.analysis.scores import best_and_worst
from common.files import Json, read_json, write_text
from common.words import number, percent

HERE = Path(__file__).parent
SYNTHETIC = (
    "Synthetic: these images are drawn by code. This shows how the analysis works, "
    "not how well a network sees."
)
# A figure whose picture was not drawn, and a section whose table has no row.
EMPTY = re.compile(
    r"<figure>\s*<figcaption>.*?</figure>"
    r"|<section>(?:(?!</section>).)*<tbody></tbody>.*?</section>",
    re.DOTALL,
)


class _Filler(string.Formatter):
    """Fills `{nll:.4f}` and the like, escaped; `{x:%}` is a percentage, `{x:html}` HTML."""

    def format_field(self, value: Any, spec: str) -> str:
        if spec == "html":
            return value
        return text(percent(value) if spec == "%" else format(value, spec))


def write(folder: Path) -> Path:
    """Write report.html from what an analysis left in its folder, and return its path.

    Raises:
        InputError, KeyError: the folder holds no complete analysis.json.
    """
    result = read_json(folder / "analysis.json")
    lines = "\n".join(f"<li>{text(line)}</li>" for line in findings(result))
    figures = {path.stem: picture(path.read_bytes(), "png") for path in folder.glob("*.png")}
    body = fill(
        "report.html",
        **result,
        banner=SYNTHETIC if result["synthetic"] else "",
        findings=lines,
        claims=rows(claims(result)),
        confused=rows(one.values() for one in result["most_confused"]),
        rows=rows(map(_class_cells, best_and_worst(result["per_class"]))),
        figures=defaultdict(str, figures),
    )
    title = f"{result['checkpoint']['run']}: what it gets wrong, how sure it is, where it looks"
    return write_page(folder / "report.html", title, EMPTY.sub("", body))


def fill(template: str, **values: Any) -> str:
    """One of the files beside this one with its places filled."""
    return _Filler().format((HERE / template).read_text(encoding="utf-8"), **values)


def write_page(path: Path, title: str, body: str) -> Path:
    """Write one self-contained page; `title` is text, `body` HTML."""
    style = (HERE / "report.css").read_text(encoding="utf-8")
    write_text(path, fill("page.html", title=title, style=style, body=body))
    return path


def _class_cells(row: Json) -> Iterable[str]:
    """A class in its table."""
    recall = percent(row["recall"], 1)
    precision = percent(row["precision"], 1)
    return row["class"], recall, precision, number(row["f1"], 3), f"{row['support']:,}"


def rows(values: Iterable[Iterable[Any]]) -> str:
    """Rows of a table from rows of texts and numbers."""
    lines = []
    for row in values:
        cells = "".join(f"<td>{text(value)}</td>" for value in row)
        lines.append(f"<tr>{cells}</tr>")
    return "\n".join(lines)


def text(value: Any) -> str:
    """Text as HTML; no line breaks before a percent sign."""
    return html.escape(str(value)).replace(" %", "&nbsp;%")


def picture(content: bytes, kind: str) -> str:
    """An image element that holds its picture."""
    coded = base64.b64encode(content).decode()
    return f'<img alt="" src="data:image/{kind};base64,{coded}">'
