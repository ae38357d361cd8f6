"""Figures from arrays, never from models: drawn without a display, saved whole or not at all."""
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names

from common.files import atomic
from common.words import short

# Okabe & Ito's colours, told apart by colour-blind readers as well.
TRAIN, VAL, ACCENT, MUTED = "#E69F00", "#0072B2", "#D55E00", "#666666"
# Asked for the glyphs that the first font lacks, where they are installed.
MORE_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "WenQuanYi Zen Hei",
              "WenQuanYi Micro Hei", "Droid Sans Fallback", "Microsoft YaHei", "PingFang SC",
              "Arial Unicode MS")
STYLE = {
    "font.size": 9, "axes.titlesize": 10, "lines.linewidth": 1.6, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#E6E6E6", "axes.axisbelow": True,
    "savefig.dpi": 150, "savefig.bbox": "tight",
    "text.parse_math": False,  # a `$` in a class name is a dollar
    "font.family": ["DejaVu Sans", *sorted({*MORE_FONTS} & {*get_font_names()})],
}
MAX_CLASSES = 20  # rows of a sample grid
MAX_LINE = 100  # characters, of a title
MAX_INCHES = 30  # of a figure's side, whatever it shows


@contextmanager
def mosaic(path: Path, title: str, tiles: np.ndarray, tile_px: int,
           below: float = 0.0) -> Iterator[Axes]:
    """Axes that show (rows, columns, 3, H, W) uint8 tiles at about `tile_px`, one unit per tile.

    The enlargement is a whole number, so all pixels look equally large; labels lie outside the
    figure's size and enlarge the saved file. `below`, a share of its height, is white under a tile.
    """
    rows, columns, _, pixels, _ = tiles.shape
    # Two white pixels between tiles.
    white = 3 * [(0, 0)] + [(0, 2 + round(below * pixels)), (0, 2)]
    tiles = np.pad(tiles, white, constant_values=255)
    canvas = np.concatenate(np.concatenate(tiles, axis=2), axis=2).transpose(1, 2, 0)
    scale = max(1, round(tile_px / pixels)) / STYLE["savefig.dpi"]
    height, width = np.multiply(canvas.shape[:2], scale)
    with new_figure(path, title, (width, height), layout=None) as figure:
        axes = figure.add_axes((0, 0, 1, 1), xticks=[], yticks=[], frameon=False)
        axes.imshow(canvas, extent=(0, columns, rows, 0), interpolation="nearest", aspect="auto")
        axes.tick_params(length=0, grid_alpha=0)
        yield axes


@contextmanager
def new_figure(path: Path, title: str, size: tuple[float, float], note: str = "",
               layout: str | None = "constrained") -> Iterator[Figure]:
    """A styled figure of `size` inches, at most 30 a side, saved to `path` when the block ends
    well. Text is shown as it is, `$` and `_` included: log axes need a formatter without markup."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a box stands for it
        figure = Figure(figsize=np.minimum(size, MAX_INCHES), layout=layout)
        above = {} if layout else {"y": 1.01, "va": "bottom"}
        lines = [short(line, MAX_LINE) for line in title.split("\n")]
        figure.suptitle("\n".join(lines), fontsize=11, fontweight="bold", **above)
        yield figure
        if note:
            figure.supxlabel(note, fontsize=7, color=MUTED)
        with atomic(path) as file:
            figure.savefig(file, metadata={"Software": None})  # two savings give the same bytes
