"""A user's own pictures: the likeliest classes of each, and a heat map beside each photo."""

import html
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.analysis.faithfulness import heat_maps
from common.analysis.figures import HEAT_NOTE, Strip, explained, short, strips
from common.analysis.inputs import Subject, open_folder, open_subject
from common.analysis.report import picture, write_page
from common.config import Runtime
from common.data.folders import SUFFIXES, read_picture
from common.errors import InputError
from common.files import sha256, write_csv
from common.training.fit import predict
from common.training.runtime import set_up
from common.words import count, percent

TOP = 3  # classes named for a photo
SHOWN = 36  # photos in the figure and on the page; predictions.csv has all
CLOSE = 0.5  # the second class is explained too from this share of the first's probability
PX = 200  # side of a photo in the figure and on the page


def explain_pictures(ckpt: str, layer: str | None, paths: Sequence[str], runtime: Runtime) -> int:
    """Name the classes of a user's pictures and explain the first few; 1 if any was unreadable.

    Prints a line a file, and writes predictions.csv, pictures.png and report.html.

    Raises:
        InputError: no checkpoint, or no picture.
    """
    device = set_up(runtime, seed=0)
    subject = open_subject(ckpt, layer, device)
    files = find_pictures(paths)
    if not files:
        raise InputError(f"--images {' '.join(paths)}: no picture there ({', '.join(SUFFIXES)})")
    print(f"{subject} on {count(len(files), 'picture')}")
    table: list[list] = []
    shown: list[Strip] = []
    for file in tqdm(files, "pictures", unit="picture", disable=None):
        name = os.fsencode(file).decode(errors="replace")  # may be bytes that are no text
        try:
            image = _read(subject, file, subject.card["image_size"])
        except InputError as error:
            tqdm.write(f"left out: {error}")
            continue
        inputs = torch.from_numpy(image)[None].to(device)  # (1, 3, H, W)
        probs = predict(subject.model, inputs, subject.prepare)[0].softmax(0)
        values, indices = probs.topk(min(TOP, len(probs)))
        row, words = [name], []
        for p, k in zip(values.tolist(), indices):
            row += [subject.classes[k], p]
            words.append(f"{short(subject.classes[k])} {percent(p, 1)}")
        tqdm.write(f"{name}: {', '.join(words)}")
        table.append(row)
        if len(shown) < SHOWN:
            close = values[:2] > CLOSE * values[0]
            overlays = _overlays(subject, file, inputs, indices[:2][close])
            shown.append((overlays, ["photo", *words[: len(overlays) - 1]], name))

    pictures = list(map(str, files))
    request = {"ckpt": sha256(subject.path), "layer": layer, "pictures": pictures}
    folder = open_folder(runtime, f"{subject.run}-pictures", request)
    if table:
        places = range(1, 1 + len(table[0]) // 2)
        header = [f"{word}{place}" for place in places for word in ("class", "probability")]
        write_csv(folder / "predictions.csv", ["name", *header], table)
        _show(subject, shown, folder)
    unread = len(files) - len(table)
    read = count(len(table), "picture")
    print(f"{read}, {unread:,} left out; report: {folder / 'report.html'}")
    return int(unread > 0)


def _read(subject: Subject, file: Path, size: int) -> np.ndarray:
    """(3, size, size) uint8 of a picture, brought to that size as in training."""
    return np.ascontiguousarray(read_picture(file, size, subject.card.get("fit", "pad")))


def _overlays(subject: Subject, file: Path, inputs: Tensor, targets: Tensor) -> list[np.ndarray]:
    """The photo, and for each target the photo under its heat map; (PX, PX, 3) uint8 each."""
    maps = heat_maps(subject, inputs.repeat(len(targets), 1, 1, 1), targets)
    photo = _read(subject, file, PX)
    return [explained(photo, maps[0], PX)[0], *(explained(photo, heat, PX)[2] for heat in maps)]


def find_pictures(paths: Sequence[str]) -> list[Path]:
    """The files named, and those with a picture's suffix in the folders named; none hidden."""
    found = []
    for path in (Path(given).expanduser() for given in paths):
        if not path.is_dir():
            found.append(path)
        for file in sorted(path.rglob("*")):
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if file.suffix.lower() in SUFFIXES and not hidden:
                found.append(file)
    return found


def _show(subject: Subject, shown: Sequence[Strip], folder: Path) -> None:
    """pictures.png and report.html of the photos shown."""
    title = f"{subject.run}: {count(len(shown), 'picture')}, and where it looks"
    note = f"{subject.where}.\n{HEAT_NOTE}"
    captioned = [(pictures, heads, name[-40:]) for pictures, heads, name in shown]
    strips(captioned, 3, folder / "pictures.png", title, note)
    body = f'<p class="lead">{note} All predictions stand in predictions.csv.</p>\n'
    body += '<div class="photos">'
    for pictures, heads, name in shown:
        body += "<figure>"
        for pixels, head in zip(pictures, heads):
            jpeg = cv2.imencode(".jpg", pixels[:, :, ::-1])[1]
            body += f"<div>{picture(jpeg.tobytes(), 'jpeg')}{html.escape(head)}</div>"
        body += f"<figcaption>{html.escape(name)}</figcaption></figure>"
    write_page(folder / "report.html", title, f"{body}</div>")
