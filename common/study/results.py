"""Publish measured runs: copy their small files and write the tables, all numbers from real runs.

    python -m common.study.results runs docs/results          # copies, writes pages and guides
    python -m common.study.results docs/results docs/results  # writes the pages anew
    python -m common.study.results runs docs/results --tuning RUNS  # and how defaults were chosen

A row holds the runs that its command gives, one per seed, or where there are none the nearest
on all training images, with its settings; other settings get a table of their own. What has not
been run stands in the table as "not measured". Runs on drawn images are left out, and so are
figures that show images of the data set: the right to publish those is not ours to give.
"""
import re
from argparse import RawDescriptionHelpFormatter
from pathlib import Path

from common.config import Parser
from common.errors import InputError, run_script
from common.files import read_json, write_text

MARK, END = "<!-- results -->", "<!-- end of results -->"
GUIDES = (Path("README.md"), Path("docs/README.zh.md"))
CHINESE = Path(__file__).with_name("chinese.json")  # words of the tables in the Chinese guide


def fill(page: Path, target: Path) -> None:
    """Write the tables of `target` between the two marks of a guide, and for one in English
    the findings.

    Raises:
        InputError: the page lacks a mark.
    """
    from common.study.pages import readme

    pieces = re.split(f"{MARK}|{END}", page.read_text(encoding="utf-8"))
    if len(pieces) != 3:
        raise InputError(
            f"{page} lacks the marks {MARK} and {END}: put them where the tables belong"
        )
    parts, words = readme(target), {}
    if ".zh" in page.name:
        words = read_json(CHINESE)
        del parts["Findings"]
    text = "\n".join(map("**{}**\n\n{}".format, parts.keys(), parts.values()))
    for english, other in words.items():
        text = text.replace(english, other)
    write_text(page, f"{pieces[0]}{MARK}\n{text}{END}{pieces[2]}")


def publish(source: Path, target: Path, tuning: Path | None = None) -> int:
    """Copy what is finished, write the overview, and fill the guides if `target` is
    docs/results; the number of places copied."""
    from common.study import pages
    from common.study.figures import study
    from common.study.found import copy, find

    target.mkdir(parents=True, exist_ok=True)
    count = 0 if source.samefile(target) else copy(source, target)
    if tuning:
        count += copy(tuning, target / "tuning", figures=False)
    study(find(target), target / "study.png")
    write_text(target / "README.md", pages.overview(target))
    if target.resolve() == Path("docs/results").resolve():
        for page in filter(Path.is_file, GUIDES):
            fill(page, target)
    return count


def main() -> None:
    """Publish the runs that the command line names."""
    parser = Parser(
        prog="python -m common.study.results",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, help="folder of the run folders")
    parser.add_argument(
        "target", type=Path, help="where to publish; docs/results fills the guides' tables too"
    )
    parser.add_argument(
        "--tuning",
        type=Path,
        metavar="RUNS",
        help="runs by which defaults were chosen on val: they get a table",
    )
    given = parser.parse_args()
    if not given.runs.is_dir():
        raise InputError(
            f"{given.runs} is no folder: train first, or give the folder of the run folders"
        )
    places = publish(given.runs, given.target, given.tuning)
    print(f"{places} results published in {given.target}")


if __name__ == "__main__":
    run_script(main)
