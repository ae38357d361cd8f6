"""Checkpoints that describe themselves and are checked, run folders that lose nothing, and kill -9
while saving."""
import json
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
from common.training.run import (FORMAT, Run, best_row, card, load_model, open_folder,
                                 publish)
from common.data import synthetic
from common.data.augment import Augmentation
from common.config import Recipe, Runtime, Stage
from common.data.splits import make_splits
from common.errors import InputError
from common.files import read_checkpoint, write_checkpoint

ROOT = Path(__file__).parent.parent.parent
RECIPE = Recipe(model="improved_cnn", epochs=1, batch_size=50)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a finished one-epoch run."""
    drawn = *synthetic.draw(20, seed=0), *synthetic.draw(5, seed=1)
    splits = make_splits(*drawn, synthetic.CLASSES, "synthetic", val_size=50)
    folder = tmp_path_factory.mktemp("run")
    arch = architecture("improved_cnn", num_classes=10)
    torch.manual_seed(0)
    model = build(**arch)
    prepare = Preprocess(splits.mean, splits.std, 1, Augmentation(), torch.device("cpu"))
    probe = prepare.clean(splits.val.images[:4])
    run = Run(folder, card(arch, splits, RECIPE, splits.mean, splits.std, probe, {}))
    fit(model, splits, Stage("train", 1, 0.01), RECIPE, prepare, run)
    return folder


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


def test_changed_padding_fails_the_probe(tmp_path):
    """The trap that the probe is there for: the state dict does not hold EfficientNet's padding."""
    torch.manual_seed(0)
    arch = architecture("efficientnet_b2", num_classes=10, input_size=64, bn_momentum=1.0)
    model, inputs = build(**arch), torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        model.train()(inputs)  # statistics of these inputs: fresh ones would let no signal through
        probe = {"inputs": inputs, "logits": model.eval()(inputs)}
    card = {"format": FORMAT, "classes": tuple("abcdefghij"), "mean": (0.5,) * 3, "std": (0.5,) * 3,
            "resize": 2, "image_size": 32, "recipe": {}, "source": "", "split_hash": "",
            "weights": model.state_dict(), "probe": probe}
    write_checkpoint(tmp_path / "b2.pt", {**card, "arch": arch})
    load_model(tmp_path / "b2.pt")
    write_checkpoint(tmp_path / "b2.pt", {**card, "arch": {**arch, "padding_image_size": 64}})
    with pytest.raises(InputError, match="recorded logits"):
        load_model(tmp_path / "b2.pt")


def test_every_flipped_byte_of_a_tensor_is_noticed(saved, tmp_path):
    content, path = (saved / "best.pt").read_bytes(), tmp_path / "flipped.pt"
    with zipfile.ZipFile(saved / "best.pt") as archive:
        records = [info for info in archive.infolist()
                   if "/data/" in info.filename and info.file_size]
    rng = random.Random(0)
    for info in rng.sample(records, 12):
        begin = content.index(info.filename.encode()) + len(info.filename) + 64
        at = begin + rng.randrange(max(1, info.file_size - 64))
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x40]) + content[at + 1 :])
        if path.read_bytes()[at : at + 1] != content[at : at + 1]:
            try:
                changed = read_checkpoint(path)["weights"]
            except InputError:
                continue
            # The flip fell on padding between records.
            intact = read_checkpoint(saved / "best.pt")["weights"]
            assert all(torch.equal(changed[k], intact[k]) for k in intact)


@pytest.mark.parametrize("damage, message", [
    (lambda b: b"", "is empty"),
    (lambda b: b[: len(b) // 2], "not a readable checkpoint"),
    (lambda b: b[:-1], "is not a readable|damaged"),
    (lambda b: b"<!DOCTYPE html><html>404</html>", "not a readable checkpoint"),
    (lambda b: b[:1000] + bytes(1000) + b[2000:], "damaged|readable"),
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


@pytest.mark.parametrize("change", [
    {"classes": None}, {"probe": {}}, {"arch": {"name": "improved_cnn", "x": 1}},
    {"arch": {"name": "no_net"}}, {"weights": {}}, {"weights": None}, {"format": 99},
])  # fmt: skip
def test_foreign_cards_are_one_line(saved, tmp_path, change):
    content = read_checkpoint(saved / "best.pt") | change
    write_checkpoint(tmp_path / "x.pt", content)
    with pytest.raises(InputError) as error:
        load_model(tmp_path / "x.pt")
    assert "\n" not in str(error.value) and "x.pt" in str(error.value)


def test_last_pt_is_no_best_pt(saved):
    with pytest.raises(InputError, match="lacks 'probe'"):
        load_model(saved / "last.pt")


def test_best_pt_is_no_last_pt(saved, tmp_path):
    (tmp_path / "last.pt").write_bytes((saved / "best.pt").read_bytes())
    with pytest.raises(InputError, match="last.pt lacks 'training'"):
        Run(tmp_path, {}).restore(build("improved_cnn"))


def test_what_is_kept_is_a_copy(saved):
    """What training changes later changes neither the last epoch's state nor the best one's."""
    run, model = Run(saved, {}), build("improved_cnn")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch, top1 in enumerate((0.5, 0.9, 0.7), 1):
        model(torch.randn(8, 3, 32, 32)).sum().backward()
        optimizer.step()
        row = {"stage": "train", "epoch": epoch, "val_top1": top1, "val_loss": 1.0}
        run.keep(model, optimizer, row)
        kept = run._state
        assert torch.equal(kept["weights"]["head.bias"], model.state_dict()["head.bias"])
        if epoch == 2:
            best = model.state_dict()["head.bias"].clone()
    assert torch.equal(run.best_weights["head.bias"], best)
    live = optimizer.state_dict()["state"][0]["momentum_buffer"]
    copied = kept["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(copied, live) and copied.data_ptr() != live.data_ptr()


def test_the_best_epoch_is_the_surest_of_the_most_accurate():
    scores = ((0.8, 0.1), (0.9, 0.5), (0.9, 0.3), (0.9, 0.3), (0.7, 0.2))
    rows = [{"epoch": epoch, "val_top1": top1, "val_loss": loss}
            for epoch, (top1, loss) in enumerate(scores, 1)]
    assert best_row(rows)["epoch"] == 3


def test_best_pt_is_written_only_when_best_changed(saved, tmp_path):
    card = {key: value for key, value in read_checkpoint(saved / "best.pt").items()
            if key not in ("weights", "metrics", "probe")}
    run, model = Run(tmp_path, card), build("improved_cnn")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch, top1 in enumerate((0.9, 0.8), 1):
        row = {"stage": "train", "epoch": epoch, "val_top1": top1, "val_loss": 0.0}
        run.keep(model, optimizer, row)
        run.save(force=True)
        if epoch == 1:
            (tmp_path / "best.pt").write_text("untouched")
    assert (tmp_path / "best.pt").read_text() == "untouched"


HASHES = {"split_hash": "hash", "identity": "pixels"}


def open_run(tmp_path, recipe=RECIPE, data=HASHES, **runtime):
    return open_folder("script", recipe, Runtime(out=str(tmp_path), **runtime), data, {})


def test_a_used_folder_is_refused(tmp_path):
    folder = open_run(tmp_path)
    assert folder == tmp_path / "script" / RECIPE.name() and (folder / "recipe.json").is_file()
    (folder / "history.csv").write_text("")
    with pytest.raises(InputError, match="--resume, or choose a new --name"):
        open_run(tmp_path)
    assert open_run(tmp_path, run_name="other").name == "other"
    assert open_run(tmp_path, resume=True) == folder


def test_someone_elses_file_makes_a_folder_used(tmp_path):
    (tmp_path / "script" / "mine").mkdir(parents=True)
    (tmp_path / "script" / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="choose a new --name"):
        open_run(tmp_path, run_name="mine")


def test_a_run_that_died_before_its_first_epoch_stands_in_no_ones_way(tmp_path):
    folder = open_run(tmp_path)
    (folder / "last.pt").write_text("of no epoch")
    assert open_run(tmp_path) == folder and not (folder / "last.pt").exists()


def test_resume_begins_where_there_is_nothing(tmp_path):
    folder = open_run(tmp_path, resume=True, run_name="new")
    assert (folder / "recipe.json").is_file()
    assert open_run(tmp_path, resume=True, run_name="new") == folder


def test_resume_names_what_changed(tmp_path):
    open_run(tmp_path)
    other = Recipe(model="improved_cnn", epochs=1, batch_size=50, lr=0.5)
    with pytest.raises(InputError, match=r"lr: 0.001 -> 0.5"):
        open_run(tmp_path, other, resume=True, run_name=RECIPE.name())
    for key in HASHES:
        with pytest.raises(InputError, match="images are not those it was trained on"):
            open_run(tmp_path, data=HASHES | {key: "other"}, resume=True)


def test_runs_older_than_a_field_are_resumed(tmp_path):
    folder = open_run(tmp_path)
    stored = json.loads((folder / "recipe.json").read_text())
    del stored["identity"], stored["recipe"]["fit"], stored["recipe"]["image_size"]
    (folder / "recipe.json").write_text(json.dumps(stored))
    assert open_run(tmp_path, resume=True) == folder


def test_foreign_recipes_are_one_line(tmp_path):
    folder = open_run(tmp_path)
    for content in ("{}", "[]", "null", "{", '{"recipe": 1}',
                    '{"recipe": 1, "split_hash": ""}'):
        (folder / "recipe.json").write_text(content)
        with pytest.raises(InputError, match="recipe.json"):
            open_run(tmp_path, resume=True)


def test_smoke_runs_never_stand_in_the_way(tmp_path):
    names = []
    for _ in range(3):
        folder = open_run(tmp_path, smoke=True, run_name="smoke-x")
        (folder / "history.csv").write_text("")
        names.append(folder.name)
    assert names == ["smoke-x", "smoke-x-2", "smoke-x-3"]


@pytest.fixture
def two_runs(tmp_path):
    """The folder of two runs' folders, each with a best.pt that holds the run's name."""
    for name in ("a", "b"):
        folder = tmp_path / "runs" / "script" / name
        folder.mkdir(parents=True)
        (folder / "best.pt").write_text(name)
    return tmp_path / "runs"


def test_publish_keeps_a_file_that_exists_nowhere_else(two_runs, tmp_path, capsys):
    target = tmp_path / "best.pt"
    target.write_text("mine")
    assert publish(two_runs / "script" / "a" / "best.pt", two_runs, target) == target
    assert "best.1.pt" in capsys.readouterr().out
    assert (tmp_path / "best.1.pt").read_text() == "mine" and target.read_text() == "a"
    publish(two_runs / "script" / "b" / "best.pt", two_runs, target)
    assert "best.2.pt" not in capsys.readouterr().out
    assert target.read_text() == "b"
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["best.1.pt", "best.pt"]


def test_two_names_are_two_files(two_runs, tmp_path):
    target = tmp_path / "best.pt"
    publish(two_runs / "script" / "b" / "best.pt", two_runs, target)
    with open(target, "w") as file:  # as `cp` does
        file.write("another run's")
    assert (two_runs / "script" / "b" / "best.pt").read_text() == "b"


def test_a_place_that_cannot_be_written_blocks_nothing(two_runs, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    best = two_runs / "script" / "a" / "best.pt"
    assert publish(best, two_runs, tmp_path / "file" / "best.pt") == best
    said = capsys.readouterr().out
    assert "is not copied to" in said and "name it by its own path" in said


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
    """last.pt always loads, and its parts belong to one step; the writers are forked, so 50 of them
    take seconds."""
    path, rng = tmp_path / "last.pt", random.Random(0)
    server = subprocess.Popen([sys.executable, "-c", FORKER, str(path)], text=True, cwd=ROOT,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    steps = []
    for _ in range(50):
        server.stdin.write("go\n")
        server.stdin.flush()
        child = int(server.stdout.readline())
        time.sleep(0.02 + 0.03 * rng.random())
        os.kill(child, signal.SIGKILL)
        assert server.stdout.readline() == "dead\n"
        content = read_checkpoint(path)
        weights = content["weights"]
        assert torch.equal(weights, torch.full_like(weights, content["step"]))
        steps.append(content["step"])
    server.stdin.close()
    assert server.wait(10) == 0
    assert max(steps) > 0 and len(set(steps)) > 3

