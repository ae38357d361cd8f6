"""The scripts as a user meets them: exit codes, one-line errors, closed streams, signals, kill -9
and going on exactly where a run stopped."""
import csv
import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common.data import folders
from common.errors import InputError
from conftest import ROOT, environment, one_line, run, write_image

TINY = ("--synthetic", "--train-limit", "300", "--val-size", "100", "--batch-size", "50",
        "--device", "cpu")
SCRIPTS = ("train_baseline.py", "train_improved.py", "train_effnet.py", "ablation.py", "analyze.py")
STRAIGHT = ("train_improved.py", *TINY, "--epochs", "4", "--name", "a", "--deterministic")
STRAIGHT_FOLDER = Path("runs", "train_improved", "a")
FILES = {"recipe.json", "history.csv", "result.json", "test_predictions.csv", "best.pt", "last.pt",
         "curves.png", "sample_images.png", "augmented_batch.png"}
EPOCH_LINE = (r"^Epoch 3/4 \| Train Loss: \d\.\d{4} Acc: \d+\.\d\d% \| "
              r"Val Loss: \d\.\d{4} Acc: \d+\.\d\d% \| "
              r"LR \d\.\de-\d\d \| [\d.]+s [\d,]+ img/s$")


def start(cwd, script, *flags):
    """A script under way, its output in a pipe."""
    return subprocess.Popen([sys.executable, "-u", ROOT / script, *flags], cwd=cwd, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())


def wait_for(process, text):
    """Read the process's output up to a line that holds `text`."""
    for line in process.stdout:
        if text in line:
            return line
    raise AssertionError(f"{text!r} never came: {process.stderr.read()}")


def rows_of(file):
    """The rows of a CSV file."""
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def outcome(folder):
    """(final weights, history without its time columns) of a run."""
    rows = rows_of(folder / "history.csv")
    for row in rows:
        del row["seconds"], row["images_per_s"]
    return torch.load(folder / "last.pt", weights_only=True)["weights"], rows


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder of four uninterrupted epochs of ImprovedCNN with every augmentation of its
    recipe, and the finished process."""
    cwd = tmp_path_factory.mktemp("straight")
    done = run(cwd, *STRAIGHT)
    assert done.returncode == 0, done.stderr
    return cwd, done


def test_a_run_leaves_what_it_promises(straight):
    cwd, _ = straight
    folder = cwd / STRAIGHT_FOLDER
    assert {path.name for path in folder.iterdir()} == FILES
    assert {path.name for path in cwd.iterdir()} == {"runs", "best.pt"}
    assert (cwd / "best.pt").read_bytes() == (folder / "best.pt").read_bytes()
    assert not (cwd / "best.pt").samefile(folder / "best.pt"), "writing to one would change both"
    found, others = folders.walk(cwd)
    assert found == [] and others == {folders.RUN: 1, ".pt": 1}, "figures would be training data"

    result = json.loads((folder / "result.json").read_text())
    assert 0 <= result["test_top1"] <= 1 and result["epochs"] == 4
    assert result["source"] == "synthetic" and result["weights"] == "random weights"
    recipe = json.loads((folder / "recipe.json").read_text())
    assert result["identity"] == recipe["identity"] != ""
    assert result["versions"] == recipe["versions"]
    assert result["versions"]["precision"] in ("float32", "bfloat16")


def test_what_a_run_says(straight):
    said = straight[1].stdout
    assert said.count("test accuracy") == 1 and "synthetic" in said
    assert "ImprovedCNN: 1,147,914 parameters" in said
    assert re.search(EPOCH_LINE, said, re.MULTILINE)
    assert "\r" not in said + straight[1].stderr, "no progress bar in a log file"
    copied, following = said.splitlines()[-2:]
    assert copied == f"{STRAIGHT_FOLDER / 'best.pt'} -> best.pt"
    assert following == f"next: python {ROOT / 'analyze.py'} --ckpt best.pt"


def test_each_test_image_has_its_prediction(straight):
    folder = straight[0] / STRAIGHT_FOLDER
    rows = rows_of(folder / "test_predictions.csv")
    result = json.loads((folder / "result.json").read_text())
    assert list(rows[0]) == ["name", "label", "prediction"]
    assert len(rows) == len({row["name"] for row in rows}) == result["test_images"] == 1000

    labels, preds = (np.array([int(row[key]) for row in rows]) for key in ("label", "prediction"))
    right = labels == preds
    assert right.mean() == pytest.approx(result["test_top1"], abs=1e-9)
    recalls = [right[labels == label].mean() for label in range(len(result["class_names"]))]
    assert np.mean(recalls) == pytest.approx(result["balanced_top1"], abs=1e-9)


@pytest.mark.slow
def test_the_page_on_own_pictures_leads_from_photos_to_a_prediction(call, tmp_path):
    """Its drawn photos, three classes of 72, and its three commands; with fewer epochs of smaller
    pictures, and in fp32 since some processors emulate bf16."""
    _, after = (ROOT / "docs/own-pictures.md").read_text().split("<!-- draw -->\n```python\n")
    exec(after.split("```")[0], {})
    call("train_improved.py", "--data-dir", "photos", "--epochs", "8", "--image-size", "48",
         "--amp", "off")
    (result,) = tmp_path.glob("runs/*/*/result.json")
    assert json.loads(result.read_text())["test_top1"] > 0.85

    _, said = call("analyze.py", "--ckpt", "best.pt")
    assert said.endswith(f"next: python {ROOT / 'analyze.py'} --ckpt best.pt --images PICTURE\n")
    _, said = call("analyze.py", "--ckpt", "best.pt", "--images", "photos/disc/0.jpg")
    assert "0.jpg: disc " in said


@pytest.mark.parametrize("signum, code", [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_stopped_anywhere_and_resumed_equals_uninterrupted(signum, code, straight, tmp_path):
    process = start(tmp_path, *STRAIGHT)
    wait_for(process, "Epoch 1/4")
    process.send_signal(signum)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in errors
    assert not (tmp_path / STRAIGHT_FOLDER / "result.json").exists()
    flags = [str(ROOT / STRAIGHT[0]), *STRAIGHT[1:], "--resume"]
    if signum == signal.SIGTERM:  # the program's own words for it
        assert shlex.split(said.splitlines()[-1]) == ["to", "go", "on:", "python", *flags]
    resumed = run(tmp_path, *flags)
    assert resumed.returncode == 0 and "resumed after epoch" in resumed.stdout

    (weights, history), (others, rows) = map(
        outcome, (straight[0] / STRAIGHT_FOLDER, tmp_path / STRAIGHT_FOLDER))
    assert history == rows and weights.keys() == others.keys()
    assert all(torch.equal(weights[key], others[key]) for key in weights)


def test_a_finished_run_is_left_alone(straight, call, monkeypatch):
    monkeypatch.chdir(straight[0])

    def seen():
        """Time and size of each of the run's files."""
        stats = {path: path.stat() for path in STRAIGHT_FOLDER.iterdir()}
        return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}

    before = seen()
    flags = STRAIGHT[:-1]  # --deterministic would hold for all later tests
    code, said = call(*flags, "--resume")
    assert code == 0 and "finished" in said
    with pytest.raises(InputError, match="--resume, or choose a new --name"):
        call(*flags)
    with pytest.raises(InputError, match="lr: 0.1 -> 0.5"):
        call(*flags, "--resume", "--lr", "0.5")
    assert seen() == before


def test_a_folder_is_one_process_at_a_time_and_free_when_it_dies(call, tmp_path):
    flags = ("train_improved.py", *TINY, "--name", "a")
    process = start(tmp_path, *flags, "--model", "se_resnet18", "--epochs", "1000")
    try:
        wait_for(process, "this takes about")  # said after the fifth of twenty steps
        for more in ((), ("--resume",)):
            with pytest.raises(InputError, match="is being trained by another process"):
                call(*flags, *more)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    left = {path.name for path in (tmp_path / STRAIGHT_FOLDER).iterdir()}
    assert "last.pt" in left and "history.csv" not in left
    call(*flags, "--epochs", "1")
    assert (tmp_path / STRAIGHT_FOLDER / "result.json").exists()


def test_changed_images_are_not_trained_on(make_tree, call):
    tree = make_tree(train=10)
    flags = ("train_baseline.py", "--data-dir", tree, "--epochs", "1", "--name", "a")
    call(*flags)
    rng = np.random.RandomState(1)
    for path in tree.rglob("*.png"):
        write_image(path, rng.randint(0, 256, (3, 32, 32)).astype(np.uint8))
        os.utime(path, (1e9, 1e9))  # as of another day, however coarse the clock
    with pytest.raises(InputError, match="the images are not those it was trained on"):
        call(*flags, "--resume")


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_data_a_line_names_the_ways_out(script, call, tmp_path, straight):
    needed = {"ablation.py": ("--all",), "train_effnet.py": ("--no-pretrained",),
              "analyze.py": ("--ckpt", "best.pt")}
    if script == "analyze.py":
        content = torch.load(straight[0] / "best.pt", weights_only=True)
        content["source"] = "CIFAR-10, official batches"
        content["recipe"]["synthetic"] = False
        torch.save(content, tmp_path / "best.pt")
    with pytest.raises(InputError, match="--data-dir.*https://.*--synthetic"):
        call(script, *needed.get(script, ()), "--offline", "--data-dir", "nowhere")


def test_unwritable_out_is_found_before_the_first_epoch(call, capsys, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(NotADirectoryError, match="file/runs"):
        call("train_baseline.py", *TINY, "--out", "file/runs")
    assert "Epoch" not in capsys.readouterr().out


def test_closed_streams_end_no_command(tmp_path):
    """Nor do they harm one: a file that gets their number would get what libraries print."""
    words = [sys.executable, str(ROOT / "train_baseline.py"), *TINY, "--epochs", "1", "--name", "a"]
    done = subprocess.run(f"{shlex.join(words)} >&- 2>&- <&-", shell=True, cwd=tmp_path,
                          env=environment())
    assert done.returncode == 0
    folder = tmp_path / "runs" / "train_baseline" / "a"
    assert FILES == {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_helps_where_memory_ends_is_a_flag_of_the_script(script, call, capsys, monkeypatch):
    said = []
    monkeypatch.setattr("common.errors.run_script", lambda main, eases="": said.append(eases))
    runpy.run_path(str(ROOT / script), run_name="__main__")
    flags = re.findall(r"--[\w-]+", said[0])
    with pytest.raises(SystemExit):
        call(script, "--help")
    told = capsys.readouterr().out
    assert flags and all(f"  {flag} " in told for flag in flags)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="/proc takes no file, even root's")
def test_a_run_needs_no_compiler_and_no_place_for_its_copy(call, tmp_path, monkeypatch):
    monkeypatch.chdir("/proc")
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "set")  # so that what the run sets is undone
    _, said = call("train_baseline.py", *TINY, "--epochs", "1", "--name", "a", "--compile", "on",
                   "--out", tmp_path / "runs")
    folder = tmp_path / "runs" / "train_baseline" / "a"
    assert FILES == {path.name for path in folder.iterdir()}
    assert said.count("not compiled: ") == 1
    assert f"{folder / 'best.pt'} is not copied to best.pt (" in said


FULL_DISK = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rsplit('/', 1)[0])
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def test_full_disk_stops_with_one_line(tmp_path):
    """A file-size limit makes every large write fail, as a full disk does."""
    script = str(ROOT / "train_baseline.py")
    done = subprocess.run([sys.executable, "-c", FULL_DISK, script, *TINY, "--epochs", "1"],
                          cwd=tmp_path, capture_output=True, text=True, timeout=120,
                          env=environment())
    assert done.returncode == 1
    assert "last.pt" in one_line(done)
    assert not list(tmp_path.rglob("*.tmp"))
