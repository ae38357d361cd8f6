"""A user's own pictures: the likeliest classes of each, and a heat map beside each photo."""
import os
from collections.abc import Sequence
from glob import escape, glob
from itertools import chain
from pathlib import Path

import cv2
from tqdm import tqdm

from common.analysis.figures import HEAT_NOTE, PX, Strip, overlay, strips
from common.analysis.inputs import Subject, open_folder, open_subject
from common.analysis.report import picture, text, write_page
from common.analysis.sentences import say
from common.config import Runtime
from common.data.folders import SUFFIXES, read_picture, walk
from common.errors import InputError, RunError
from common.files import sha256, write_csv
from common.training.runtime import set_up
from common.words import short, shorten

COLUMNS = ("name", "class1", "probability1", "class2", "probability2", "class3", "probability3")
SHOWN = 36  # photos in the figure and on the page; predictions.csv has all
CLOSE = 0.5  # the second class is explained too from this share of the first's probability


def explain_pictures(ckpt: str, cam: str, layer: str | None, paths: Sequence[str],
                     runtime: Runtime) -> int:
    """Name the classes of a user's pictures and explain the first few; 1 if any was unreadable.

    Prints a line a file, and writes predictions.csv, pictures.png and report.html.

    Raises:
        InputError: no checkpoint, or no picture.
        RunError: none of the pictures could be read; nothing is written.
    """
    device = set_up(runtime, seed=0)
    subject = open_subject(ckpt, device, cam, layer)
    files = find_pictures(paths)
    if not files:
        raise InputError(f"--images {' '.join(paths)}: no picture there ({', '.join(SUFFIXES)})")
    print(say("{0} on {1:#picture}", subject, len(files)))
    names = shorten(subject.classes, 18)
    table, shown = [], []
    for file in tqdm(files, "pictures", unit="picture", disable=None):
        try:
            image = subject.read(file)
        except InputError as error:
            tqdm.write(f"left out: {error}")
            continue
        values, indices = subject.probs(image)[0].topk(min(3, len(names)))
        likeliest = [(subject.classes[k], share) for k, share in zip(indices, values.tolist())]
        words = [say("{0} {1:%1}", names[name], share) for name, share in likeliest]
        tqdm.write(f"{file}: {', '.join(words)}")
        table.append([file, *chain(*likeliest)])
        if len(shown) < SHOWN:
            close = indices[:2][values[:2] > CLOSE * values[0]]
            maps = subject.heat(image.expand(len(close), -1, -1, -1), close)
            photo = read_picture(file, PX, subject.card.get("fit", "pad"))
            pictures = [("photo", photo.transpose(1, 2, 0))]
            pictures += [(word, overlay(photo, heat)) for word, heat in zip(words, maps)]
            shown.append((pictures, short(file[-40:], 40)))

    unread = len(files) - len(table)
    if not table:
        raise RunError(say("{0:#picture}, none of which can be read: no report", unread))
    request = {"ckpt": sha256(subject.path), "cam": cam, "layer": layer, "pictures": files}
    folder = open_folder(runtime, f"{subject.run}-pictures", request)
    write_csv(folder / "predictions.csv", COLUMNS[: len(table[0])], table)
    _show(subject, shown, folder)
    print(say("{0:#picture}, {1:,} left out; report: {2}/report.html", len(table), unread, folder))
    return int(unread > 0)


def find_pictures(paths: Sequence[str]) -> list[str]:
    """The files named, those that match a pattern which the shell left as it is, and those with a
    picture's suffix in the folders named, none hidden; a missing file, to be named in its turn.

    Raises:
        InputError: a pattern that nothing matches.
    """
    found = []
    for path in paths:
        named = [path] if os.path.lexists(path) else sorted(glob(path))
        if not named and path != escape(path):
            raise InputError(f"--images {path}: nothing has such a name")
        for file in named or [path]:
            found += walk(file)[0] if os.path.isdir(file) else [file]
    return found


def _show(subject: Subject, shown: Sequence[Strip], folder: Path) -> None:
    """pictures.png and report.html of the photos shown."""
    title = say("{0}: {1:#picture}, and where it looks", subject.run, len(shown))
    note = f"{subject.where}.\n{HEAT_NOTE}"
    strips(shown, 3, folder / "pictures.png", title, note)
    body = (f'<p class="lead">{note} All predictions stand in predictions.csv.</p>\n'
            '<div class="photos">')
    for pictures, name in shown:
        body += "<figure>"
        for head, pixels in pictures:
            jpeg = cv2.imencode(".jpg", pixels[:, :, ::-1])[1]
            body += f"<div>{picture(jpeg.tobytes(), 'jpeg')}{text(head)}</div>"
        body += f"<figcaption>{text(name)}</figcaption></figure>"
    write_page(folder / "report.html", title, f"{body}</div>")
