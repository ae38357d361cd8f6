"""Figures from arrays, never from models: drawn without a display, saved whole or not at all."""
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure


# Okabe & Ito's colours, told apart by colour-blind readers as well.
TRAIN, VAL, ACCENT, MUTED = "#E69F00", "#0072B2", "#D55E00", "#666666"
STYLE = {
    "font.size": 9, "axes.titlesize": 10, "lines.linewidth": 1.6, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#E6E6E6", "axes.axisbelow": True,
    "savefig.dpi": 150, "savefig.bbox": "tight",
}  # fmt: skip
MAX_CLASSES = 20  # rows of a sample grid


@contextmanager
def mosaic(path: str | Path, title: str, tiles: np.ndarray, tile_px: int, below: float = 0.0) -> Iterator[Axes]:
    """Axes that show (rows, columns, 3, H, W) uint8 tiles at about `tile_px`, one unit each way per tile.

    The enlargement is a whole number, so all pixels look equally large; labels lie outside the figure's
    size and enlarge the saved file. `below` leaves white under a tile, as a share of its height.
    """
    rows, columns, _, height, width = tiles.shape
    gaps = ((0, 0), (0, 0), (0, 0), (0, 2 + round(below * height)), (0, 2))
    canvas = np.pad(tiles, gaps, constant_values=255).transpose(0, 3, 1, 4, 2)
    canvas = canvas.reshape(rows * canvas.shape[1], columns * canvas.shape[3], 3)
    scale = max(1, round(tile_px / height)) / STYLE["savefig.dpi"]
    with new_figure(path, "", (canvas.shape[1] * scale, canvas.shape[0] * scale), layout=None) as figure:
        axes = figure.add_axes((0, 0, 1, 1), xticks=[], yticks=[])
        axes.imshow(canvas, extent=(0, columns, rows, 0), interpolation="nearest", aspect="auto")
        axes.set_title(title, fontsize=11, fontweight="bold")
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        yield axes


@contextmanager
def new_figure(
    path: str | Path, title: str, size: tuple[float, float], note: str = "", layout: str | None = "constrained"
) -> Iterator[Figure]:
    """A styled figure of `size` inches, saved to `path` when the block ends well."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout=layout)
        figure.suptitle(title, fontsize=11, fontweight="bold")
        yield figure
        if note:
            figure.supxlabel(note, fontsize=7, color=MUTED)
        _save(figure, Path(path))


def _save(figure: Figure, path: Path) -> None:
    """Writes beside `path` and renames, so that a half-written figure never bears the final name."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(temporary, metadata={"Software": None} if path.suffix == ".png" else None)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
