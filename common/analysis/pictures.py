"""A user's own pictures: the likeliest classes of each, and a heat map beside each photo."""

import html
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
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
CLOSE = (
    0.5  # the second class is explained too from this share of the first one's probability
)
PX = 200  # side of a photo in the figure and on the page


def explain_pictures(
    ckpt: str, layer: str | None, paths: Sequence[str], runtime: Runtime
) -> int:
    """Name the classes of a user's pictures and explain the first few; 1 if any was unreadable.

    Prints a line a file, and writes predictions.csv, pictures.png and report.html.

    Raises:
        InputError: no checkpoint, or no picture.
    """
    device = set_up(runtime, seed=0)
    subject = open_subject(ckpt, layer, device)
    fit = subject.card.get("fit", "pad")  # as in training
    files = find_pictures(paths)
    if not files:
        raise InputError(
            f"--images {' '.join(paths)}: no picture there ({', '.join(SUFFIXES)})"
        )
    request = {
        "ckpt": sha256(subject.path),
        "layer": layer,
        "pictures": list(map(str, files)),
    }
    print(f"{subject} on {count(len(files), 'picture')}")
    table: list[list] = []
    shown: list[Strip] = []
    for file in tqdm(files, "pictures", unit="picture", disable=None):
        name = os.fsencode(file).decode(
            errors="replace"
        )  # a name may be bytes that are no text
        try:
            pixels = read_picture(file, subject.card["image_size"], fit)
        except InputError as error:
            tqdm.write(f"left out: {error}")
            continue
        image = torch.from_numpy(np.ascontiguousarray(pixels))[None].to(
            device
        )  # (1, 3, H, W)
        probs = predict(subject.model, image, subject.prepare)[0].softmax(0)
        top = probs.topk(min(TOP, len(probs)))
        chances = [
            (subject.classes[k], p) for p, k in zip(top.values.tolist(), top.indices)
        ]
        words = [f"{short(label)} {percent(p, 1)}" for label, p in chances]
        tqdm.write(f"{name}: {', '.join(words)}")
        table.append([name, *sum(chances, ())])
        if len(shown) < SHOWN:
            close = top.values > CLOSE * top.values[0]
            targets = top.indices[:2][close[:2]]
            maps = heat_maps(subject, image.repeat(len(targets), 1, 1, 1), targets)
            photo = read_picture(file, PX, fit)
            plain = explained(photo, maps[0], PX)[0]
            overlays = [explained(photo, heat, PX)[2] for heat in maps]
            heads = ["photo", *words[: len(overlays)]]
            shown.append(([plain, *overlays], heads, name))

    folder = open_folder(runtime, f"{subject.run}-pictures", request)
    if table:
        header = ["name"]
        for place in range(1, 1 + len(table[0]) // 2):
            header += [f"class{place}", f"probability{place}"]
        write_csv(folder / "predictions.csv", header, table)
        _show(subject, shown, folder)
    unread = len(files) - len(table)
    print(
        f"{count(len(table), 'picture')}, {unread:,} left out; report: {folder / 'report.html'}"
    )
    return int(unread > 0)


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
    lead = html.escape(f"{note} All predictions stand in predictions.csv.")
    figures = []
    for pictures, heads, name in shown:
        cells = ""
        for pixels, head in zip(pictures, heads):
            jpeg = cv2.imencode(".jpg", pixels[:, :, ::-1])[1]
            cells += f"<div>{picture(jpeg.tobytes(), 'jpeg')}{html.escape(head)}</div>"
        figures.append(
            f"<figure>{cells}<figcaption>{html.escape(name)}</figcaption></figure>"
        )
    body = f'<p class="lead">{lead}</p>\n<div class="photos">{"".join(figures)}</div>'
    write_page(folder / "report.html", title, body)
