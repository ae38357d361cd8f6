"""What the tests of this room share: folders read as a user reads them."""
from pathlib import Path

import pytest
import torch

from common.config import Recipe, Runtime
from common.data.sources import load_splits
from common.data.splits import Splits
from common.errors import InputError

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
