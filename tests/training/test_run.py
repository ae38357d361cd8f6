"""Checkpoints that describe themselves and are checked; what a run keeps, saves and restores; and
kill -9 while saving."""
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from drawn import PLAIN, drawn_splits, equal, make_run

from common.analysis.inputs import load_model
from common.config import Runtime, Stage
from common.errors import InputError
from common.files import read_checkpoint, write_checkpoint
from common.models.build import build
from common.models.networks import PADDING_IMAGE_SIZE
from common.training.lifecycle import build_model, open_run
from common.training.loop import fit
from common.training.run import FORMAT, best_row

RECIPE = replace(PLAIN, model="improved_cnn", epochs=1, batch_size=50)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a run of one epoch, begun as the scripts begin it."""
    out = tmp_path_factory.mktemp("runs")
    splits = drawn_splits()
    runtime = Runtime(out=str(out), device="cpu", amp="off")
    run = open_run("script", RECIPE, runtime, splits, build_model(RECIPE, splits))
    fit(run, Stage("train", 1, 0.01))
    return run.folder


def test_a_checkpoint_describes_itself(saved):
    model, checkpoint = load_model(saved / "best.pt")
    assert not model.training
    assert {"arch", "resize", "mean", "std", "classes", "recipe", "split_hash", "identity",
            "metrics", "probe", "source"} <= checkpoint.keys()
    assert checkpoint["arch"]["padding_image_size"] == PADDING_IMAGE_SIZE
    with torch.no_grad():
        logits = model(checkpoint["probe"]["inputs"])
    torch.testing.assert_close(logits, checkpoint["probe"]["logits"])


def test_changed_weights_fail_the_probe(saved, tmp_path):
    content = read_checkpoint(saved / "best.pt")
    content["weights"]["head.bias"][3] += 1
    write_checkpoint(tmp_path / "changed.pt", content)
    with pytest.raises(InputError, match="does not give its recorded logits"):
        load_model(tmp_path / "changed.pt")


def test_changed_padding_fails_the_probe(saved, tmp_path):
    """The trap that the probe is there for: the state dict does not hold EfficientNet's padding."""
    torch.manual_seed(0)
    arch = {"name": "efficientnet_b2", "input_size": 64, "bn_momentum": 1.0}
    model, inputs = build(**arch), torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        model.train()(inputs)  # statistics of these inputs: fresh ones would let no signal through
        probe = {"inputs": inputs, "logits": model.eval()(inputs)}
    content = read_checkpoint(saved / "best.pt") | {"weights": model.state_dict(), "probe": probe}
    write_checkpoint(tmp_path / "b2.pt", content | {"arch": arch})
    load_model(tmp_path / "b2.pt")
    write_checkpoint(tmp_path / "b2.pt", content | {"arch": arch | {"padding_image_size": 64}})
    with pytest.raises(InputError, match="recorded logits"):
        load_model(tmp_path / "b2.pt")


def test_a_flipped_byte_of_any_tensor_is_noticed(saved, tmp_path):
    whole, rng = (saved / "best.pt").read_bytes(), random.Random(0)
    with zipfile.ZipFile(saved / "best.pt") as archive:
        tensors = [archive.read(name) for name in archive.namelist() if "/data/" in name]
    for tensor in tensors:
        if len(tensor) < 100:  # the few bytes of a counter are found elsewhere, too
            continue
        flipped = bytearray(whole)
        flipped[whole.index(tensor) + rng.randrange(len(tensor))] ^= 0x40
        (tmp_path / "flipped.pt").write_bytes(flipped)
        with pytest.raises(InputError, match="damaged: checksum of .*/data/"):
            read_checkpoint(tmp_path / "flipped.pt")


@pytest.mark.parametrize("damage", [
    lambda b: b[: len(b) // 2], lambda b: b[:-1], lambda b: b[:1000] + bytes(1000) + b[2000:]])
def test_damaged_checkpoints_are_refused_in_one_line(saved, tmp_path, damage):
    path = tmp_path / "x.pt"
    path.write_bytes(damage((saved / "best.pt").read_bytes()))
    with pytest.raises(InputError, match="cannot be read") as error:
        load_model(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [
    {"classes": None}, {"probe": {}}, {"arch": {"name": "improved_cnn", "x": 1}},
    {"arch": {"name": "no_net"}}, {"weights": {}}, {"weights": None}, {"format": FORMAT + 98},
])
def test_foreign_cards_are_one_line(saved, tmp_path, change):
    content = read_checkpoint(saved / "best.pt") | change
    write_checkpoint(tmp_path / "x.pt", content)
    with pytest.raises(InputError) as error:
        load_model(tmp_path / "x.pt")
    assert "\n" not in str(error.value) and "x.pt" in str(error.value)


def test_best_pt_and_last_pt_are_told_apart_and_of_their_network(saved, tmp_path):
    with pytest.raises(InputError, match="lacks 'probe'"):
        load_model(saved / "last.pt")
    run, last = make_run(tmp_path, PLAIN), tmp_path / "last.pt"
    for name, said in (("best.pt", "last.pt lacks 'training'"),
                       ("last.pt", "is not what this run wrote .*new --name")):
        last.write_bytes((saved / name).read_bytes())
        with pytest.raises(InputError, match=said) as error:
            run.restore()
        assert "\n" not in str(error.value)


def test_what_is_kept_is_a_copy_and_what_is_restored_is_what_was_kept(tmp_path):
    """What training changes later changes neither the last epoch's state nor the best one's; and
    best.pt is written only when there is a new best epoch."""
    run = make_run(tmp_path, RECIPE)
    optimizer = torch.optim.SGD(run.model.parameters(), lr=0.1, momentum=0.9)
    states = []
    for epoch, top1 in enumerate((0.5, 0.9, 0.7), 1):
        run.model(torch.randn(8, 3, 32, 32)).sum().backward()
        optimizer.step()
        run.keep(optimizer, {"stage": "train", "epoch": epoch, "val_top1": top1, "val_loss": 1.0})
        states.append({key: value.clone() for key, value in run.model.state_dict().items()})
        if epoch == 2:
            run.save(force=True)
            os.utime(tmp_path / "best.pt", (1e9, 1e9))
    momenta = [one["momentum_buffer"].clone() for one in optimizer.state.values()]
    with torch.no_grad():
        for value in (*run.model.parameters(), *optimizer.state[run.model.head.bias].values()):
            value.zero_()
    run.save(force=True)
    assert (tmp_path / "best.pt").stat().st_mtime == 1e9, "written again, though none was better"

    again = make_run(tmp_path, RECIPE)
    again.restore()
    assert equal(again.model.state_dict(), states[2]) and equal(again.best_weights, states[1])
    assert again.history == run.history and again.best["epoch"] == 2
    restored = [one["momentum_buffer"] for one in again.optimizer_state["state"].values()]
    assert all(map(torch.equal, restored, momenta))


def test_the_best_epoch_is_the_surest_of_the_most_accurate():
    scores = ((0.8, 0.1), (0.9, 0.5), (0.9, 0.3), (0.9, 0.3), (0.7, 0.2))
    rows = [{"epoch": epoch, "val_top1": top1, "val_loss": loss}
            for epoch, (top1, loss) in enumerate(scores, 1)]
    assert best_row(rows)["epoch"] == 3


WRITERS = """
import os, sys, itertools, torch
from pathlib import Path
from common.files import write_checkpoint
torch.set_num_threads(1)
path = Path(sys.argv[1])
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        for step in itertools.count(1):
            write_checkpoint(path, {"step": step, "weights": torch.full((100_000,), float(step))})
    print(child, flush=True)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


def test_kill_9_at_random_moments_of_saving(tmp_path):
    """last.pt always loads, and its parts belong to one step; the writers are forked, so 20 of them
    take seconds."""
    path, rng = tmp_path / "last.pt", random.Random(0)
    write_checkpoint(path, {"of": "an earlier process"})
    server = subprocess.Popen([sys.executable, "-c", WRITERS, str(path)], text=True, cwd=ROOT,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    for _ in range(20):
        before = path.stat()
        server.stdin.write("go\n")
        server.stdin.flush()
        child = int(server.stdout.readline())
        while path.stat().st_mtime_ns == before.st_mtime_ns:  # until the first one is written
            time.sleep(0.001)
        time.sleep(0.02 * rng.random())
        os.kill(child, signal.SIGKILL)
        assert server.stdout.readline() == "dead\n"
        content = read_checkpoint(path)
        weights = content["weights"]
        assert torch.equal(weights, torch.full_like(weights, content["step"]))
    server.stdin.close()
    assert server.wait(60) == 0
    assert list(tmp_path.glob(".last.pt.*.tmp")), "no writer was killed while it wrote"
