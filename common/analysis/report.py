"""The report of an analysis, HTML and Markdown, from the files of its folder alone: every number comes from analysis.json."""
import base64
import html
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


from common.analysis.findings import CONTROLS, Result, claims, confidence, faithful, findings, in_brackets

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #1c2126; font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: clamp(1.6rem, 4.5vw, 2.3rem); line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.015em; }
h2 { font-size: 1.35rem; margin: 3rem 0 .75rem; padding-top: 1rem; border-top: 1px solid #e3e7eb; letter-spacing: -.01em; }
p, ul { max-width: 46rem; margin: 0 0 1rem; }
li { margin-bottom: .45rem; }
.lead { color: #57616b; }
.banner { background: #fff4d6; border-left: 4px solid #e69f00; padding: .6rem 1rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .8rem; margin: 1.75rem 0; }
.card { border: 1px solid #e3e7eb; border-radius: .6rem; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.6rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card span { color: #57616b; font-size: .85rem; display: block; line-height: 1.4; }
.wide { overflow-x: auto; margin: 0 0 1.25rem; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem .35rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #e3e7eb; }
th { font-weight: 600; border-bottom-color: #1c2126; white-space: nowrap; }
.tag { display: inline-block; border-radius: 1rem; padding: 0 .65rem; background: #e9ecef; }
.tag.confirmed { background: #d3efe3; color: #00553b; }
.tag.refuted { background: #fbdfd1; color: #8a3a00; }
.n { text-align: right; white-space: nowrap; }
@media (max-width: 40rem) {
  .words thead { display: none; }
  .words tr { display: block; border-bottom: 1px solid #e3e7eb; padding: .6rem 0; }
  .words td { display: block; border: 0; padding: .1rem 0; }
  .words td:first-child { font-weight: 600; }
}
figure { margin: 1.25rem 0 1.75rem; }
img { display: block; width: 100%; min-width: min(34rem, 150vw); height: auto; }
figcaption { color: #57616b; font-size: .9rem; max-width: 46rem; margin-top: .5rem; }
"""


class Text(NamedTuple):
    """A paragraph; `kind` is "p", "lead", "banner" or "h2"."""

    words: str
    kind: str = "p"


class Points(NamedTuple):
    """A bulleted list."""

    items: Sequence[str]


class Cards(NamedTuple):
    """Key numbers: (name, value, detail) each."""

    items: Sequence[tuple[str, str, str]]


class Table(NamedTuple):
    """Rows of text under a header; the columns from `numeric` on are numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: int


class Figure(NamedTuple):
    """A picture of the folder, left out where it was not drawn."""

    file: str
    caption: str

    @property
    def alt(self) -> str:
        """The caption's first sentence."""
        return self.caption.split(". ")[0].rstrip(".")


Block = Text | Points | Cards | Table | Figure


def write(folder: Path) -> list[str]:
    """Write report.html and report.md from what an analysis left in its folder; returns the findings, one a line.

    Raises:
        OSError, ValueError, KeyError: the folder holds no complete analysis.json.
    """
    result = json.loads((folder / "analysis.json").read_text(encoding="utf-8"))
    title, blocks = _document(result)
    blocks = [block for block in blocks if not isinstance(block, Figure) or (folder / block.file).is_file()]
    for name, text in (("report.html", _html(title, blocks, folder)), ("report.md", _markdown(title, blocks))):
        temporary = folder / f".{name}.{os.getpid()}.tmp"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, folder / name)
    verdicts = [f"{claim}: {verdict}. {evidence}" for claim, verdict, evidence in claims(result)]
    return [*findings(result), *verdicts, f"report: {folder / 'report.html'}"]


def _document(result: Result) -> tuple[str, list[Block]]:
    """Title and blocks of the report, in reading order."""
    card, cam, test, (low, high) = result["checkpoint"], result["gradcam"], result["faithfulness"], result["interval_95"]
    seen, tested = f"{result['images']:,} {result['split']} images", claims(result)
    (channels, height, width), table = cam["map"], result["calibration"]
    kinds = {"gradcam": "Grad-CAM", **CONTROLS}
    chosen = "as asked for" if cam["chosen"] else "the deepest layer with a map of at least 4×4"
    origin = f"Checkpoint {card['file']}, sha256 {result['request']['ckpt'][:12]}."
    blocks: list[Block] = [Text(f"{card['model']} on {seen} ({result['source']}). {origin}", "lead")]
    if result["synthetic"]:
        blocks.append(Text("Synthetic: these images are drawn by code. This shows how the analysis works, not how well a network sees.", "banner"))
    blocks += [
        Cards([("top-1", f"{result['top1']:.2%}", f"95 % interval {low:.2%} to {high:.2%}"),
               ("errors", f"{result['errors']:,}", f"in {result['images']:,} images"),
               ("ECE", f"{table['ece']:.2%}", f"mean confidence {table['mean_confidence']:.2%}"),
               ("NLL", f"{result['nll']:.4f}", f"nats; Brier score {result['brier']:.4f}")]),
        Text("Findings", "h2"), Points(findings(result)),
    ]
    if tested:
        blocks += [Text("Claims of the first study, put to the test", "h2"),
                   Text("Confirmed or refuted means that a 95 % interval lies wholly on one side; open, that these images do not decide it."),
                   Table(("claim", "verdict", "numbers"), tested, 3)]
    blocks += [
        Text("What it confuses", "h2"),
        Figure("confusion.png", "Rows are true classes, columns predicted ones: counts, with percent of the row beneath. Off the diagonal, dark cells are "
               "frequent confusions; compare a cell with its mirror image to see whether a confusion goes both ways."),
        Table(("true", "predicted", "images", "of all errors"), [
            (one["true"], one["predicted"], f"{one['images']:,}", f"{one['images'] / result['errors']:.1%}") for one in result["most_confused"]], 2),
        Text("Class by class", "h2"),
        Figure("per_class.png", "Bars: how much of a class is found. Marks: how many of the predictions of that class are right. A mark right of its bar's "
               "end is a class that the network names too rarely, left of it one that it names too often."),
        Table(("class", "precision", "recall", "recall, 95 % interval", "F1", "images"), [_class_row(row) for row in result["per_class"]], 1),
        Text("How sure it is", "h2"), Text(confidence(table)),
        Figure("reliability.png", "A calibrated network's points lie on the dashed line. Below it the network is surer than it is right, above it less sure. "
               "The lower panel tells how many images a point stands for, on a logarithmic scale."),
        Text("Errors with the highest loss", "h2"),
        Figure("errors.png", "T: true class, P: predicted class; the image's index among the "
               f"{'test' if result['split'] == 'test' else 'training'} images of its source, the loss in nats, and the two highest probabilities. "
               "Look for wrong labels and for pictures that people would get wrong too."),
        Text("Where it looks", "h2"),
        Text(f"Grad-CAM at {cam['layer']}, {chosen}: {channels} channels of {height}×{width} for inputs of {cam['input_size']} pixels. "
             "A cell of that map is the finest detail that a heat map can show."),
        Figure("gradcam_right.png", "Up to three right cases of each class (at most 20 classes), drawn at random, with the evidence for the predicted "
               "class. Does the heat lie on the object, or on what usually surrounds it?"),
        Figure("gradcam_wrong.png", "The surest error of each of the most frequent confusions: evidence for the true class beside that for the predicted "
               "one. Where the two differ, the network saw another part of the picture; where they agree, it read the same part differently."),
        Figure("gradcam_planes.png", "Planes taken for ships, highest loss first; dashed, the line between the upper and the lower half."),
        Text("Can the heat maps be believed?", "h2"), Points(faithful(result)),
        Figure("faithfulness.png", "Deletion blanks the hottest pixels first: the faster the curve falls, the more the map had found. Insertion puts them "
               "onto a blurred image: the faster the curve rises, the better. Right: the areas under the curves compared, image by image."),
        Table(("map", "deletion area", "insertion area"), [_area_row(name, test["areas"][kind]) for kind, name in kinds.items()], 1),
        Text("How it was measured", "h2"), Points(_method(result)),
    ]
    title = f"{card['model']}: what it gets wrong, how sure it is, and where it looks"
    return title, [block for block in blocks if not isinstance(block, Table) or block.rows]


def _class_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    """A class in its table."""
    ends = row["recall_interval_95"]
    span = f"{ends[0]:.1%} to {ends[1]:.1%}" if ends else "no image"
    return row["class"], f"{row['precision']:.1%}", f"{row['recall']:.1%}", span, f"{row['f1']:.3f}", f"{row['support']:,}"


def _area_row(name: str, areas: Mapping[str, Any]) -> tuple[str, ...]:
    """A kind of map in its table."""
    return name, *(f"{areas[way]['mean']:.3f}{in_brackets(areas[way], '.3f')}" for way in ("deletion", "insertion"))


def _method(result: Result) -> list[str]:
    """How the numbers came about, with what, and on which data."""
    card, test, made = result["checkpoint"], result["faithfulness"], result["versions"]
    epoch = f", its weights those of epoch {card['metrics']['epoch']} (val {card['metrics']['val_top1']:.2%})" if card["metrics"] else ""
    return [
        f"The checkpoint was trained on {card['trained_on']}, split {card['split_hash']}{epoch}. Nothing is trained here; inputs are normalised and "
        "resized as in training, without augmentation.",
        "Intervals of fractions are Wilson's, of means Student's t over images; both at 95 %. ECE has 15 bins of equal width, NLL is in nats, the Brier "
        "score lies between 0 and 2.",
        f"Deletion and insertion change {test['images']} images, drawn with seed {result['request']['seed']}, in {test['steps']} equal portions, and "
        "follow the probability of the predicted class. Random maps have the resolution of Grad-CAM's; the centre prior is hottest in the middle. "
        "Differences are paired by image.",
        f"{made['hardware']}, torch {made['torch']}, commit {made['git_commit'] or 'unknown'}.",
    ]


def _html(title: str, blocks: Iterable[Block], folder: Path) -> str:
    """The report as one HTML file with its pictures inside."""
    body = "\n".join(_html_block(block, folder) for block in blocks)
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{html.escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n")


def _html_block(block: Block, folder: Path) -> str:
    """One block as HTML; all words are escaped."""
    e = html.escape
    if isinstance(block, Text):
        return {"h2": f"<h2>{e(block.words)}</h2>", "p": f"<p>{e(block.words)}</p>"}.get(block.kind, f'<p class="{block.kind}">{e(block.words)}</p>')
    if isinstance(block, Points):
        return "<ul>" + "".join(f"<li>{e(item)}</li>" for item in block.items) + "</ul>"
    if isinstance(block, Cards):
        return '<div class="cards">' + "".join(f'<div class="card"><span>{e(a)}</span><b>{e(b)}</b><span>{e(c)}</span></div>' for a, b, c in block.items) + "</div>"
    if isinstance(block, Figure):
        content = (folder / block.file).read_bytes()
        width = int.from_bytes(content[16:20], "big")  # of the PNG header; drawn at 150 dots an inch, shown at about that size
        return (f'<figure><div class="wide"><img alt="{e(block.alt)}" style="max-width: {width * 0.72:.0f}px" '
                f'src="data:image/png;base64,{base64.b64encode(content).decode()}"></div><figcaption>{e(block.caption)}</figcaption></figure>')
    body = "".join(f"<tr>{_cells(block, 'td', row)}</tr>" for row in block.rows)
    kind = ' class="words"' if block.numeric == len(block.header) else ""
    return f'<div class="wide"><table{kind}><thead><tr>{_cells(block, "th", block.header)}</tr></thead><tbody>{body}</tbody></table></div>'


def _cells(table: Table, tag: str, row: Sequence[str]) -> str:
    """One row's cells; numbers to the right, a verdict as a coloured tag."""
    cells = [html.escape(words) for words in row]
    if tag == "td" and "verdict" in table.header:
        at = table.header.index("verdict")
        cells[at] = f'<span class="tag {cells[at]}">{cells[at]}</span>'
    return "".join(f'<{tag}{" class=n" if i >= table.numeric else ""}>{words}</{tag}>' for i, words in enumerate(cells))


def _markdown(title: str, blocks: Iterable[Block]) -> str:
    """The report as Markdown beside its pictures."""
    return "\n\n".join([f"# {_plain(title)}", *map(_markdown_block, blocks)]) + "\n"


def _markdown_block(block: Block) -> str:
    """One block as Markdown."""
    if isinstance(block, Text):
        return {"h2": "## ", "banner": "> "}.get(block.kind, "") + _plain(block.words)
    if isinstance(block, Points):
        return "\n".join(f"- {_plain(item)}" for item in block.items)
    if isinstance(block, Cards):
        return "\n".join(f"- {_plain(a)}: **{_plain(b)}** ({_plain(c)})" for a, b, c in block.items)
    if isinstance(block, Figure):
        return f"![{_plain(block.alt)}]({block.file})\n\n*{_plain(block.caption)}*"
    lines = [block.header, ["---:" if i >= block.numeric else "---" for i in range(len(block.header))], *block.rows]
    return "\n".join("| " + " | ".join(words if words.startswith("---") else _plain(words) for words in line) + " |" for line in lines)


def _plain(words: str) -> str:
    """Words with Markdown's own signs escaped."""
    return "".join("\\" + sign if sign in "\\`*_[]<>|#" else sign for sign in words)
