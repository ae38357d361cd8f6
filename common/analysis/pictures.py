"""A user's own pictures: the likeliest classes of each, and a heat map beside each photo."""
import os
from collections.abc import Sequence
from itertools import chain

import numpy as np
from tqdm import tqdm

from common.analysis.figures import HEAT_NOTE, PX, overlay, strips
from common.analysis.inputs import open_folder, open_subject
from common.analysis.report import LINE, each, picture, write_page
from common.analysis.sentences import say
from common.config import Runtime
from common.data.folders import SUFFIXES, read_picture, walk
from common.errors import InputError, RunError
from common.files import sha256, write_csv
from common.training.runtime import set_up
from common.words import short

COLUMNS = ("name", "class1", "probability1", "class2", "probability2", "class3", "probability3")
SHOWN = 36  # photos in the figure; predictions.csv has all
CLOSE = 0.5  # the second class is explained too from this share of the first's probability


def explain_pictures(ckpt: str, cam: str, layer: str | None, paths: Sequence[str],
                     runtime: Runtime) -> int:
    """Name the classes of a user's pictures and explain the first few; 1 if any was unreadable.

    Prints a line a file, and writes predictions.csv, pictures.png and report.html.

    Raises:
        InputError: no checkpoint, or no picture.
        RunError: none of the pictures could be read; nothing is written.
    """
    subject = open_subject(ckpt, set_up(runtime, seed=0), cam, layer)
    # A missing file stays in, to be named in its turn.
    files = [file for path in paths
             for file in (walk(path)[0] if os.path.isdir(path) else [path])]
    if not files:
        raise InputError(f"--images {' '.join(paths)}: no picture there ({', '.join(SUFFIXES)})")
    print(say("{0} on {1:#picture}", subject, len(files)))
    table, lines, shown = [], [], []
    for file in tqdm(files, "pictures", unit="picture", disable=None):
        try:
            image = subject.read(file)
        except InputError as error:
            tqdm.write(f"left out: {error}")
            continue
        values, indices = subject.probs(image)[0].topk(min(3, len(subject.classes)))
        likeliest = [(subject.classes[k], share) for k, share in zip(indices, values.tolist())]
        words = [say("{0} {1:%1}", *one) for one in likeliest]
        lines.append(f"{file}: {', '.join(words)}")
        tqdm.write(lines[-1])
        table.append([file, *chain(*likeliest)])
        if len(shown) < SHOWN:
            close = indices[:2][values[:2] > CLOSE * values[0]]
            heats = subject.heat(image.expand(len(close), -1, -1, -1), close)
            photo = read_picture(file, PX, subject.card.get("fit", "pad"))
            strip = np.hstack([photo.transpose(1, 2, 0), *(overlay(photo, heat) for heat in heats)])
            named = short(", ".join(words[: len(close)]), 50)
            shown.append((strip, f"{short(file[-40:], 40)}\n{named}"))

    unread = len(files) - len(table)
    if not table:
        raise RunError(say("{0:#picture}, none of which can be read: no report", unread))
    request = {"ckpt": sha256(subject.path), "cam": cam, "layer": layer, "pictures": files}
    folder = open_folder(runtime, f"{subject.run}-pictures", request)
    write_csv(folder / "predictions.csv", COLUMNS[: len(table[0])], table)
    title = say("{0}: {1:#picture}, and the evidence for what each is named", subject.run,
                len(shown))
    figure = folder / "pictures.png"
    strips(shown, figure, title, f"{subject.where}.\n{HEAT_NOTE}")
    body = f"<figure>\n{picture(figure)}\n</figure>\n<ul>\n{each(LINE, lines)}\n</ul>"
    write_page(folder / "report.html", title, body)
    print(say("{0:#picture}, {1:,} left out; report: {2}/report.html", len(table), unread, folder))
    return int(unread > 0)
