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
from common.analysis.scores import best_and_worst
from common.analysis.sentences import Sentence
from common.files import read_json, write_text

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
FINDING = "<li>{0}</li>"
CLAIM = "<tr><td>{0[0]}</td><td>{0[1]}</td><td>{0[2]}</td></tr>"
CONFUSED = "<tr><td>{0[true]}</td><td>{0[predicted]}</td><td>{0[images]}</td></tr>"
CLASS = (
    "<tr><td>{0[class]}</td><td>{0[recall]:%1}</td><td>{0[precision]:%1}</td>"
    "<td>{0[f1]:.3f}</td><td>{0[support]:,}</td></tr>"
)


class _Filler(Sentence):
    """Fills a sentence as HTML, escaped; `{x:html}` is HTML already."""

    def format_field(self, value: Any, spec: str) -> str:
        return value if spec == "html" else text(super().format_field(value, spec))


def write(folder: Path) -> Path:
    """Write report.html from what an analysis left in its folder, and return its path.

    Raises:
        InputError, KeyError: the folder holds no complete analysis.json.
    """
    result = read_json(folder / "analysis.json")
    figures = {path.stem: picture(path.read_bytes(), "png") for path in folder.glob("*.png")}
    body = fill(
        "report.html",
        **result,
        banner=SYNTHETIC if result["synthetic"] else "",
        findings=_each(FINDING, findings(result)),
        claims=_each(CLAIM, claims(result)),
        confused=_each(CONFUSED, result["most_confused"]),
        rows=_each(CLASS, best_and_worst(result["per_class"])),
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


def _each(line: str, values: Iterable[Any]) -> str:
    """A line of HTML for each value, which fills its places."""
    return "\n".join(_Filler().format(line, value) for value in values)


def text(value: str) -> str:
    """Text as HTML; no line breaks before a percent sign."""
    return html.escape(value).replace(" %", "&nbsp;%")


def picture(content: bytes, kind: str) -> str:
    """An image element that holds its picture; a figure's letters are as large as the page's
    captions, however narrow the page is."""
    coded = base64.b64encode(content).decode()
    # Of a PNG file: the width in pixels, 150 to an inch.
    width = f' width="{int.from_bytes(content[16:20]) * 2 // 3}"' if kind == "png" else ""
    return f'<img alt=""{width} src="data:image/{kind};base64,{coded}">'
