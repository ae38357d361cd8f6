"""report.html of an analysis, from the files of its folder alone: every number is analysis.json's.

Its words stand in report.html, page.html and report.css beside this file.
"""
import base64
import html
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.analysis.findings import claims, findings
from common.analysis.scores import by_recall
from common.analysis.sentences import Sentence
from common.files import read_json, write_text

HERE = Path(__file__).parent
# A figure whose picture was not drawn, and a section whose table has no row.
EMPTY = re.compile(
    r"<figure>\s*<figcaption>.*?</figure>"
    r"|<section>(?:(?!</section>).)*<tbody></tbody>.*?</section>",
    re.DOTALL,
)
LINE = "<li>{0}</li>"
CLAIM = "<tr><td>{0[0]}</td><td>{0[1]}</td><td>{0[2]}</td></tr>"
CONFUSED = "<tr><td>{0[classes][0]} and {0[classes][1]}</td><td>{0[images]}</td></tr>"
CLASS = (
    "<tr><td>{0[class]}</td><td>{0[recall]:%1}</td><td>{0[recall_interval_95]:~}</td>"
    "<td>{0[precision]:%1}</td><td>{0[f1]:.3f}</td><td>{0[support]:,}</td></tr>"
)


class _Filler(Sentence):
    """Fills a sentence as HTML, escaped; `{x:html}` is HTML already. No line breaks before a
    percent sign."""

    def format_field(self, value: Any, spec: str) -> str:
        if spec == "html":
            return value
        return html.escape(super().format_field(value, spec)).replace(" %", "&nbsp;%")


def write(folder: Path) -> Path:
    """Write report.html from what an analysis left in its folder, and return its path.

    Raises:
        InputError, KeyError: the folder holds no complete analysis.json.
    """
    result = read_json(folder / "analysis.json")
    figures = {path.stem: picture(path) for path in folder.glob("*.png")}
    body = fill(
        "report.html",
        **result,
        findings=each(LINE, findings(result)),
        claims=each(CLAIM, claims(result)),
        confused=each(CONFUSED, result["most_confused_pairs"]),
        rows=each(CLASS, by_recall(result["per_class"])),
        figures=defaultdict(str, figures),
    )
    run = result["checkpoint"]["run"]
    title = f"{run}: what it gets wrong, how confident it is, where it looks"
    return write_page(folder / "report.html", title, EMPTY.sub("", body))


def fill(template: str, **values: Any) -> str:
    """One of the files beside this one with its places filled."""
    return _Filler().format((HERE / template).read_text(encoding="utf-8"), **values)


def write_page(path: Path, title: str, body: str) -> Path:
    """Write one self-contained page; `title` is text, `body` HTML."""
    style = (HERE / "report.css").read_text(encoding="utf-8")
    write_text(path, fill("page.html", title=title, style=style, body=body))
    return path


def each(line: str, values: Iterable[Any]) -> str:
    """A line of HTML for each value, which fills its places as text."""
    return "\n".join(_Filler().format(line, value) for value in values)


def picture(path: Path) -> str:
    """An image element that holds a PNG file."""
    coded = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="" src="data:image/png;base64,{coded}">'
