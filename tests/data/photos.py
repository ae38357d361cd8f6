"""What the tests of this room share: folders read as a user reads them, and drawn photographs."""
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy import ndarray

from common.config import Recipe, Runtime
from common.data.sources import load_splits
from common.data.splits import Splits
from common.data.synthetic import CLASSES, draw
from common.errors import InputError

# Which parts a layout has, and what share of each class's pictures lies in each.
LAYOUTS = {"flat": {"": 1}, "train and test": {"Train": 0.75, "Testing": 0.25},
           "train and val": {"training": 0.75, "validation": 0.25},
           "all three": {"train": 0.5, "valid": 0.25, "TEST": 0.25}}
SUBJECTS = ("checkerboard", "disc", "horizontal stripes")
KINDS = ("landscape", "portrait", "turned", "grey", "transparent")


def load(folder: Path | str, offline: bool = True, **recipe: object) -> Splits:
    """The splits of a folder; `recipe` holds sizes and the seed."""
    return load_splits(Recipe(**recipe), Runtime(data_dir=str(folder), offline=offline))


def refusal(folder: Path | str, **recipe: object) -> str:
    """The line that refuses a folder; a traceback or a second line fails the test."""
    with pytest.raises(InputError) as error:
        load(folder, **recipe)
    message = str(error.value)
    assert message and "\n" not in message
    return message


def in_source_order(splits: Splits) -> tuple[torch.Tensor, torch.Tensor]:
    """Train and val images and labels put back at their index in the source."""
    index = torch.cat([splits.train.index, splits.val.index])
    back = index.argsort()
    assert torch.equal(index[back], torch.arange(len(index))), "train and val are not the source"
    images = torch.cat([splits.train.images, splits.val.images])
    labels = torch.cat([splits.train.labels, splits.val.labels])
    return images[back], labels[back]


def turned_by_exif(jpeg: bytes, orientation: int = 6) -> bytes:
    """A JPEG with an EXIF entry; orientation 6: to be turned by 90° clockwise when shown."""
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = b"MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4)
    segment = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


def photo(image: ndarray, kind: str) -> tuple[str, bytes]:
    """(suffix, content) of a (3, S, S) image as a picture that is not square."""
    picture = np.ascontiguousarray(image.transpose(1, 2, 0)[:, :, ::-1])
    margin = len(picture) // 8
    if kind == "portrait":
        picture = picture[:, margin:-margin]
    else:
        picture = picture[margin:-margin]
    if kind == "turned":
        picture = cv2.rotate(picture, cv2.ROTATE_90_COUNTERCLOCKWISE)
    if kind == "grey":
        picture = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    if kind == "transparent":
        opaque = np.full((*picture.shape[:2], 1), 255, np.uint8)
        return ".png", cv2.imencode(".png", np.dstack([picture, opaque]))[1].tobytes()
    content = cv2.imencode(".jpg", picture)[1].tobytes()
    return ".JPG", turned_by_exif(content) if kind == "turned" else content


def draw_photos(folder: Path, layout: str = "flat", each: int = 72) -> Path:
    """A folder of drawn photographs of three subjects, several sizes and kinds; returns it."""
    images, labels = draw(each, seed=5, size=120)
    for subject in SUBJECTS:
        members = iter(enumerate(images[labels == CLASSES.index(subject)]))
        for part, share in LAYOUTS[layout].items():
            place = folder / part / subject
            place.mkdir(parents=True)
            for _ in range(round(share * each)):
                number, image = next(members)
                suffix, content = photo(image[:, :100 + number % 20], KINDS[number % len(KINDS)])
                (place / f"photo {number}{suffix}").write_bytes(content)
    return folder
