"""The scripts as a user meets them: exit codes, one-line errors, closed streams, signals, kill -9
and going on exactly where a run stopped."""
import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common.data import folders
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


def assert_same(a, b):
    assert a[1] == b[1]
    assert a[0].keys() == b[0].keys()
    assert all(torch.equal(a[0][key], b[0][key]) for key in a[0])


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

    kinds = range(len(result["class_names"]))
    hits = {str(kind): [] for kind in kinds}
    for row in rows:
        assert int(row["prediction"]) in kinds
        hits[row["label"]].append(row["label"] == row["prediction"])
    assert sum(map(sum, hits.values())) / 1000 == pytest.approx(result["test_top1"], abs=1e-9)
    recalls = [sum(one) / len(one) for one in hits.values()]
    assert sum(recalls) / len(recalls) == pytest.approx(result["balanced_top1"], abs=1e-9)


@pytest.mark.slow
def test_the_page_on_own_pictures_leads_from_photos_to_a_prediction(tmp_path):
    """Its drawn photos, three classes of 72, and its three commands; with fewer epochs, and in fp32
    since some processors emulate bf16."""
    _, after = (ROOT / "docs/own-pictures.md").read_text().split("<!-- draw -->\n```python\n")
    draw = [sys.executable, "-c", after.split("```")[0]]
    subprocess.run(draw, cwd=tmp_path, check=True, env=environment())
    trained = run(tmp_path, "train_improved.py", "--data-dir", "photos", "--epochs", "8",
                  "--amp", "off")
    assert trained.returncode == 0, trained.stderr
    (result,) = tmp_path.glob("runs/*/*/result.json")
    assert json.loads(result.read_text())["test_top1"] > 0.85

    analysed = run(tmp_path, "analyze.py", "--ckpt", "best.pt")
    assert analysed.returncode == 0, analysed.stderr
    following = f"next: python {ROOT / 'analyze.py'} --ckpt best.pt --images PICTURE\n"
    assert analysed.stdout.endswith(following)
    shown = run(tmp_path, "analyze.py", "--ckpt", "best.pt", "--images", "photos/disc/0.jpg")
    assert shown.returncode == 0 and "0.jpg: disc " in shown.stdout


@pytest.mark.parametrize("signum, code", [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_stopped_anywhere_and_resumed_equals_uninterrupted(signum, code, straight, tmp_path):
    killed = signum == signal.SIGKILL
    process = start(tmp_path, *STRAIGHT)
    wait_for(process, "Epoch 1/4" if killed else "Epoch 2/4")
    process.send_signal(signum)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    folder = tmp_path / STRAIGHT_FOLDER
    assert not (folder / "result.json").exists() and (folder / "last.pt").exists()

    flags = (*STRAIGHT, "--resume")
    if not killed:
        # The program's own words for it are to be obeyed.
        words = shlex.split(said.splitlines()[-1].removeprefix("to go on: "))
        assert words == ["python", str(ROOT / STRAIGHT[0]), *STRAIGHT[1:], "--resume"]
        flags = words[1:]
    resumed = run(tmp_path, *flags)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed after epoch" in resumed.stdout
    assert_same(outcome(straight[0] / STRAIGHT_FOLDER), outcome(folder))


def test_a_finished_run_is_left_alone(straight):
    cwd, _ = straight

    def seen():
        """Time and size of each of the run's files."""
        stats = {path: path.stat() for path in (cwd / STRAIGHT_FOLDER).iterdir()}
        return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}

    before = seen()
    done = run(cwd, *STRAIGHT, "--resume")
    assert done.returncode == 0 and "finished" in done.stdout
    refused = run(cwd, *STRAIGHT)
    assert refused.returncode == 2 and "--resume, or choose a new --name" in one_line(refused)
    changed = run(cwd, *STRAIGHT, "--resume", "--lr", "0.5")
    assert changed.returncode == 2 and "lr: 0.1 -> 0.5" in one_line(changed)
    assert seen() == before


LONG = ("train_improved.py", *TINY, "--model", "se_resnet18", "--epochs", "1000", "--name", "long")


@pytest.fixture
def under_way(tmp_path):
    """A process that trains for long, and has written no epoch yet."""
    process = start(tmp_path, *LONG)
    try:
        wait_for(process, "this takes about")  # said after the fifth of twenty steps
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_folder_is_one_process_at_a_time(under_way, tmp_path):
    for flags in (LONG, (*LONG, "--resume")):
        second = run(tmp_path, *flags)
        assert second.returncode == 2
        assert "is being trained by another process" in one_line(second)
    assert under_way.poll() is None


def test_a_run_killed_before_its_first_epoch_blocks_nothing(under_way, tmp_path):
    under_way.kill()
    under_way.wait()
    left = {path.name for path in (tmp_path / "runs" / "train_improved" / "long").iterdir()}
    assert "last.pt" in left and "history.csv" not in left
    again = start(tmp_path, *LONG)
    try:
        wait_for(again, "run folder: runs/train_improved/long\n")
    finally:
        again.kill()
        again.communicate()


def test_changed_images_are_not_trained_on(make_tree, tmp_path):
    tree = make_tree(train=10)
    flags = ("train_baseline.py", "--data-dir", str(tree), "--epochs", "100000", "--name", "a",
             "--device", "cpu")
    process = start(tmp_path, *flags)
    wait_for(process, "Epoch 1/")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130

    rng = np.random.RandomState(1)
    for path in tree.rglob("*.png"):
        write_image(path, rng.randint(0, 256, (3, 32, 32)).astype(np.uint8))
        os.utime(path, (1e9, 1e9))  # as of another day, however coarse the clock
    resumed = run(tmp_path, *flags, "--resume")
    assert resumed.returncode == 2 and "Epoch" not in resumed.stdout
    assert "the images are not those it was trained on" in one_line(resumed)


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_data_is_one_line_and_exit_2(script, tmp_path, straight):
    needed = {"ablation.py": ("--all",), "train_effnet.py": ("--no-pretrained",),
              "analyze.py": ("--ckpt", "best.pt")}
    if script == "analyze.py":
        content = torch.load(straight[0] / "best.pt", weights_only=True)
        content["source"] = "CIFAR-10, official batches"
        content["recipe"]["synthetic"] = False
        torch.save(content, tmp_path / "best.pt")
    done = run(tmp_path, script, *needed.get(script, ()), "--offline", "--data-dir", "nowhere")
    assert done.returncode == 2
    line = one_line(done)
    assert "--data-dir" in line and "https://" in line and "--synthetic" in line


def test_unwritable_out_is_found_before_the_first_epoch(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    done = run(tmp_path, "train_baseline.py", *TINY, "--out", "file/runs")
    assert done.returncode in (1, 2) and "file/runs" in one_line(done)
    assert "Epoch" not in done.stdout


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&- <&-"])
def test_a_closed_stream_ends_no_command(closed, tmp_path):
    """Nor does one: a file that gets its number would get what libraries print."""
    words = [sys.executable, str(ROOT / "train_baseline.py"), *TINY, "--epochs", "1", "--name", "a"]
    done = subprocess.run(f"{shlex.join(words)} {closed}", shell=True, cwd=tmp_path, text=True,
                          capture_output=True, env=environment())
    assert done.returncode == 0 and done.stderr == ""
    folder = tmp_path / "runs" / "train_baseline" / "a"
    assert FILES == {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_helps_where_memory_ends_is_a_flag_of_the_script(script, run_script):
    code = ("import sys, common.errors, runpy\n"
            "def full(main, eases=''):\n    def fail():\n        raise MemoryError\n"
            "    run(fail, eases)\n"
            "run, common.errors.run_script = common.errors.run_script, full\n"
            "runpy.run_path(sys.argv[1], run_name='__main__')")
    line = one_line(run_script("-c", code, ROOT / script))
    flags = re.findall(r"--[\w-]+", line)
    assert "out of memory: " in line and flags
    told = run_script(script, "--help").stdout
    assert all(f"  {flag} " in told for flag in flags)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="/proc takes no file, even root's")
def test_a_finished_run_needs_no_place_for_its_copy(tmp_path):
    done = run("/proc", "train_baseline.py", *TINY, "--epochs", "1", "--name", "a",
               "--out", str(tmp_path / "runs"))
    assert done.returncode == 0 and done.stderr == ""
    folder = tmp_path / "runs" / "train_baseline" / "a"
    assert FILES == {path.name for path in folder.iterdir()}
    (line,) = [line for line in done.stdout.splitlines() if "is not copied to" in line]
    assert line.startswith(f"{folder / 'best.pt'} is not copied to best.pt (")


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


def test_a_missing_compiler_means_eager_mode_and_one_line(tmp_path):
    done = run(tmp_path, "train_baseline.py", *TINY, "--epochs", "1", "--compile", "on",
               PATH="/nonexistent", CXX="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not compiled: ") == 1
