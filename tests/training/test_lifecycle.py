"""How a run begins and ends, beyond what the scripts' own tests show."""
from dataclasses import replace

import pytest
import torch
from drawn import PLAIN, drawn_splits

from common.config import Runtime, Stage
from common.files import read_checkpoint, write_checkpoint
from common.models.weights import LITE2_ORIGIN
from common.training import lifecycle, loop
from common.training.lifecycle import build_model, finish, load_start, open_run

TINY = replace(PLAIN, model="improved_cnn", batch_size=100)


def begin(out, recipe=TINY, splits=None, **runtime):
    """A run as the scripts open it."""
    splits = splits or drawn_splits()
    runtime = Runtime(out=str(out), device="cpu", amp="off", run_name="a", **runtime)
    torch.manual_seed(0)
    return open_run("script", recipe, runtime, splits, build_model(recipe, splits))


def batches_seen(model):
    """A list that grows by the size of each batch that the model sees."""
    sizes = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    return sizes


def test_a_run_needs_its_weights_file_only_to_begin(tmp_path, capsys):
    file = tmp_path / "weights.pth"
    recipe = replace(TINY, pretrained=True, weights=str(file))
    write_checkpoint(file, build_model(TINY, drawn_splits()).state_dict())
    run = begin(tmp_path, recipe)
    load_start(run)
    assert f"weights: {file.name}" in capsys.readouterr().out
    loop.fit(run, Stage("train", 1, 0.01))
    file.unlink()

    again = begin(tmp_path, recipe, resume=True)
    load_start(again)
    assert capsys.readouterr().out.endswith("resumed after epoch 1\n")
    loop.fit(again, Stage("train", 2, 0.01))
    origin = run.card["weights_origin"]
    assert origin == read_checkpoint(again.folder / "last.pt")["weights_origin"] != "random weights"


def test_the_end_of_a_run_says_what_comes_next_each_time(tmp_path, capsys, monkeypatch):
    """In batches that follow the pixels: clean train, then test."""
    monkeypatch.setattr(loop, "EVAL_PIXELS", 80 * 32 * 32)
    monkeypatch.setattr("sys.argv", ["train_improved.py"])
    run = begin(tmp_path)
    load_start(run)
    loop.fit(run, Stage("train", 1, 0.01))
    sizes = batches_seen(run.model)
    finish(run, copy_best=False)
    assert sizes == [80] * 5 + [80, 20] and "next: " not in capsys.readouterr().out

    again = begin(tmp_path, resume=True)
    assert again.finished
    assert capsys.readouterr().out.splitlines() == [
        f"{run.folder} is finished: nothing to do",
        f"next: python analyze.py --ckpt {run.folder / 'best.pt'}"]


@pytest.mark.parametrize("is_cifar10, name", [
    (True, "cifar10_sample_images.png"), (False, "sample_images.png")])
def test_only_cifar10s_own_images_are_called_so(is_cifar10, name, tmp_path):
    run = begin(tmp_path, splits=replace(drawn_splits(), is_cifar10=is_cifar10))
    samples = {path.name for path in run.folder.glob("*sample_images.png")}
    assert samples == {name} and (run.folder / "augmented_batch.png").exists()


def test_statistics_of_transplanted_weights_are_taken_in_batches_that_follow_the_pixels(
        tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "EVAL_PIXELS", 150 * 64 * 64)
    monkeypatch.setattr(lifecycle, "load_weights", lambda *_: (LITE2_ORIGIN, "transplanted"))
    run = begin(tmp_path, replace(TINY, pretrained=True, resize=2))
    sizes = batches_seen(run.model)
    load_start(run)
    assert sizes == [150, 150, 100]
    assert (run.model.blocks[0][1].running_mean != 0).all(), "they were taken"
