"""Checkpoints that describe themselves and are checked, run folders that lose nothing, and kill -9 while saving."""
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from common.data.augment import Preprocess
from common.training.fit import fit
from common.models.build import architecture, build
from common.models.efficientnet import PADDING_IMAGE_SIZE
from common.training.run import FORMAT, Run, card, load_model, open_folder, publish
from common.data import synthetic
from common.data.augment import Augmentation
from common.config import Recipe, Runtime, Stage
from common.data.splits import make_splits
from common.errors import InputError
from common.files import read_checkpoint, write_checkpoint

RECIPE = Recipe(model="improved_cnn", epochs=1, batch_size=50)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a finished one-epoch run."""
    splits = make_splits(*synthetic.draw(20, seed=0), *synthetic.draw(5, seed=1), synthetic.CLASSES, "synthetic", val_size=50)
    folder = tmp_path_factory.mktemp("run")
    arch = architecture("improved_cnn", num_classes=10)
    torch.manual_seed(0)
    model = build(**arch)
    prepare = Preprocess(splits.mean, splits.std, 1, Augmentation(), torch.device("cpu"))
    run = Run(folder, RECIPE, card(arch, splits, RECIPE, splits.mean, splits.std, prepare.clean(splits.val.images[:4]), {}))
    fit(model, splits, Stage("train", 1, 0.01), RECIPE, prepare, run)
    return folder


def test_a_checkpoint_describes_itself(saved):
    model, checkpoint = load_model(saved / "best.pt")
    assert not model.training
    assert {"arch", "resize", "mean", "std", "classes", "recipe", "split_hash", "metrics", "probe", "source"} <= checkpoint.keys()
    assert checkpoint["arch"]["padding_image_size"] == PADDING_IMAGE_SIZE
    with torch.no_grad():
        torch.testing.assert_close(model(checkpoint["probe"]["inputs"]), checkpoint["probe"]["logits"])


def test_changed_weights_fail_the_probe(saved, tmp_path):
    content = read_checkpoint(saved / "best.pt")
    content["weights"]["head.bias"][3] += 1
    write_checkpoint(tmp_path / "changed.pt", content)
    with pytest.raises(InputError, match="does not give its recorded logits"):
        load_model(tmp_path / "changed.pt")


def test_changed_padding_fails_the_probe(tmp_path):
    """The trap that the probe is there for: the state dict does not hold EfficientNet's padding."""
    torch.manual_seed(0)
    arch = architecture("efficientnet_b2", num_classes=10, input_size=64, bn_momentum=1.0)
    model, inputs = build(**arch), torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        model.train()(inputs)  # running statistics of these inputs: fresh ones would let no signal through
        probe = {"inputs": inputs, "logits": model.eval()(inputs)}
    card = {"format": FORMAT, "classes": tuple("abcdefghij"), "mean": (0.5,) * 3, "std": (0.5,) * 3, "resize": 2, "split_hash": "",
            "weights": model.state_dict(), "probe": probe}
    write_checkpoint(tmp_path / "b2.pt", {**card, "arch": arch})
    load_model(tmp_path / "b2.pt")
    write_checkpoint(tmp_path / "b2.pt", {**card, "arch": {**arch, "padding_image_size": 64}})
    with pytest.raises(InputError, match="recorded logits"):
        load_model(tmp_path / "b2.pt")


def test_every_flipped_byte_of_a_tensor_is_noticed(saved, tmp_path):
    content, path = (saved / "best.pt").read_bytes(), tmp_path / "flipped.pt"
    with zipfile.ZipFile(saved / "best.pt") as archive:
        records = [info for info in archive.infolist() if "/data/" in info.filename and info.file_size]
    rng = random.Random(0)
    for info in rng.sample(records, 12):
        at = content.index(info.filename.encode()) + len(info.filename) + 64 + rng.randrange(max(1, info.file_size - 64))
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x40]) + content[at + 1 :])
        if path.read_bytes()[at : at + 1] != content[at : at + 1]:
            try:
                changed = read_checkpoint(path)["weights"]
            except InputError:
                continue
            intact = read_checkpoint(saved / "best.pt")["weights"]  # the flip fell on padding between records
            assert all(torch.equal(changed[k], intact[k]) for k in intact)


@pytest.mark.parametrize("damage, message", [
    (lambda b: b"", "is empty"), (lambda b: b[: len(b) // 2], "not a readable checkpoint"), (lambda b: b[:-1], "is not a readable|damaged"),
    (lambda b: b"<!DOCTYPE html><html>404</html>", "not a readable checkpoint"), (lambda b: b[:1000] + bytes(1000) + b[2000:], "damaged|readable"),
])
def test_damaged_checkpoints_are_refused_in_one_line(saved, tmp_path, damage, message):
    path = tmp_path / "x.pt"
    path.write_bytes(damage((saved / "best.pt").read_bytes()))
    with pytest.raises(InputError, match=message) as error:
        load_model(path)
    assert "\n" not in str(error.value)


class Malicious:
    """Touches a file if it is ever unpickled freely."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_malicious_checkpoint_executes_nothing(tmp_path):
    torch.save({"weights": Malicious(tmp_path / "owned")}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        read_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()


def test_last_pt_is_no_best_pt(saved):
    with pytest.raises(InputError, match="probe is missing"):
        load_model(saved / "last.pt")


def open_run(tmp_path, recipe=RECIPE, **runtime):
    return open_folder("script", recipe, Runtime(out=str(tmp_path), **runtime), "hash", {})


def test_a_used_folder_is_refused(tmp_path):
    folder, finished = open_run(tmp_path)
    assert not finished and folder == tmp_path / "script" / RECIPE.name() and (folder / "recipe.json").is_file()
    with pytest.raises(InputError, match="--resume, or choose a new --name"):
        open_run(tmp_path)
    assert open_run(tmp_path, run_name="other")[0].name == "other"
    (folder / "result.json").write_text("{}")
    assert open_run(tmp_path, resume=True) == (folder, True)


def test_resume_names_what_changed(tmp_path):
    open_run(tmp_path)
    with pytest.raises(InputError, match=r"lr: 0.001 -> 0.5"):
        open_run(tmp_path, Recipe(model="improved_cnn", epochs=1, batch_size=50, lr=0.5), resume=True)
    with pytest.raises(InputError, match="holds no run"):
        open_run(tmp_path, resume=True, run_name="absent")


def test_smoke_runs_never_stand_in_the_way(tmp_path):
    names = [open_run(tmp_path, smoke=True)[0].name for _ in range(3)]
    assert names == [f"smoke-{RECIPE.name()}{suffix}" for suffix in ("", "-2", "-3")]


def test_publish_keeps_a_file_that_exists_nowhere_else(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "best.pt").write_text(name)
    target = tmp_path / "best.pt"
    target.write_text("mine")
    assert "best.1.pt" in publish(tmp_path / "a" / "best.pt", target)
    assert (tmp_path / "best.1.pt").read_text() == "mine" and target.read_text() == "a"
    assert "best.2.pt" not in publish(tmp_path / "b" / "best.pt", target)
    assert target.read_text() == "b" and (tmp_path / "a" / "best.pt").read_text() == "a"


FORKER = """
import os, sys, itertools, torch
from pathlib import Path
from common.files import write_checkpoint
torch.set_num_threads(1)
path = Path(sys.argv[1])
write_checkpoint(path, {"step": 0, "weights": torch.zeros(100_000)})
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
    """last.pt always loads, and its parts belong to one step; the writers are forked, so 50 of them take seconds."""
    path, rng = tmp_path / "last.pt", random.Random(0)
    server = subprocess.Popen([sys.executable, "-c", FORKER, str(path)], cwd=Path(__file__).parent.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    steps = []
    for _ in range(50):
        server.stdin.write("go\n")
        server.stdin.flush()
        child = int(server.stdout.readline())
        time.sleep(0.02 + 0.03 * rng.random())
        os.kill(child, signal.SIGKILL)
        assert server.stdout.readline() == "dead\n"
        content = read_checkpoint(path)
        assert torch.equal(content["weights"], torch.full_like(content["weights"], content["step"]))
        steps.append(content["step"])
    server.stdin.close()
    assert server.wait(10) == 0
    assert max(steps) > 0 and len(set(steps)) > 3

