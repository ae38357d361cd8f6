"""The scripts as a user meets them: exit codes, one-line errors, signals, kill -9 and going on exactly where a run stopped."""
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
TINY = ("--synthetic", "--train-limit", "300", "--val-size", "100", "--batch-size", "50", "--device", "cpu")
SCRIPTS = ("train_baseline.py", "train_improved.py", "train_effnet.py", "ablation.py", "analyze.py")


def run(cwd, script, *flags, **variables):
    """The finished process of a script."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    environment.pop("CIFAR10_DIR", None)
    return subprocess.run([sys.executable, ROOT / script, *flags], cwd=cwd, capture_output=True, text=True, timeout=300, env=environment)


def start(cwd, script, *flags):
    """A script under way, its output in a pipe."""
    return subprocess.Popen([sys.executable, "-u", ROOT / script, *flags], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})


def wait_for(process, text):
    """Read the process's output up to a line that holds `text`."""
    for line in process.stdout:
        if text in line:
            return line
    raise AssertionError(f"{text!r} never came: {process.stderr.read()}")


def outcome(folder):
    """(final weights, history without its time columns) of a run."""
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in csv.DictReader((folder / "history.csv").open())]
    return torch.load(folder / "last.pt", weights_only=True)["weights"], rows


def assert_same(a, b):
    assert a[1] == b[1]
    assert all(torch.equal(a[0][key], b[0][key]) for key in a[0])


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder of four uninterrupted epochs of ImprovedCNN with every augmentation of its recipe."""
    cwd = tmp_path_factory.mktemp("straight")
    done = run(cwd, "train_improved.py", *TINY, "--epochs", "4", "--name", "a", "--deterministic")
    assert done.returncode == 0, done.stderr
    return cwd, done


def test_a_run_leaves_what_it_promises(straight):
    cwd, done = straight
    folder = cwd / "runs" / "train_improved" / "a"
    assert {p.name for p in folder.iterdir()} >= {"recipe.json", "history.csv", "result.json", "best.pt", "last.pt", "curves.png",
                                                  "cifar10_sample_images.png", "augmented_batch.png"}
    assert (cwd / "best.pt").read_bytes() == (folder / "best.pt").read_bytes()
    result = json.loads((folder / "result.json").read_text())
    assert 0 <= result["test_top1"] <= 1 and result["epochs"] == 4 and result["source"] == "synthetic"
    assert done.stdout.count("test: ") == 1 and "synthetic" in done.stdout and "ImprovedCNN: 1,147,914 parameters" in done.stdout
    assert re.search(r"^Epoch 3/4 \| Train Loss: \d\.\d{4} Acc: \d+\.\d\d% \| Val Loss: \d\.\d{4} Acc: \d+\.\d\d% \| LR \d\.\de-\d\d \| [\d.]+s [\d,]+ img/s$",
                     done.stdout, re.MULTILINE)
    assert "\r" not in done.stdout + done.stderr, "no progress bar in a log file"


def test_deterministic_twice_is_bit_identical(straight, tmp_path):
    again = run(tmp_path, "train_improved.py", *TINY, "--epochs", "4", "--name", "a", "--deterministic")
    assert again.returncode == 0
    assert_same(outcome(straight[0] / "runs/train_improved/a"), outcome(tmp_path / "runs/train_improved/a"))


@pytest.mark.parametrize("signum, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_stopped_anywhere_and_resumed_equals_uninterrupted(signum, code, straight, tmp_path):
    flags = ("train_improved.py", *TINY, "--epochs", "4", "--name", "a", "--deterministic")
    process = start(tmp_path, *flags)
    wait_for(process, "Epoch 2/4" if signum != signal.SIGKILL else "Epoch 1/4")
    process.send_signal(signum)
    assert process.wait(60) == code
    errors = process.stderr.read()
    assert "Traceback" not in errors
    folder = tmp_path / "runs/train_improved/a"
    assert not (folder / "result.json").exists() and (folder / "last.pt").exists()
    resumed = run(tmp_path, *flags, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed after epoch" in resumed.stdout
    assert_same(outcome(straight[0] / "runs/train_improved/a"), outcome(folder))


def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    process = start(tmp_path, "train_improved.py", *TINY, "--model", "se_resnet18", "--train-limit", "600", "--batch-size", "500")
    wait_for(process, "torch ")
    time.sleep(2)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    began = time.monotonic()
    assert process.wait(30) == 130 and time.monotonic() - began < 30


def test_a_finished_run_is_left_alone(straight):
    cwd, _ = straight
    folder = cwd / "runs/train_improved/a"
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.iterdir()}
    flags = ("train_improved.py", *TINY, "--epochs", "4", "--name", "a", "--deterministic")
    done = run(cwd, *flags, "--resume")
    assert done.returncode == 0 and "finished" in done.stdout
    refused = run(cwd, *flags)
    assert refused.returncode == 2 and "--resume, or choose a new --name" in refused.stderr
    changed = run(cwd, *flags, "--resume", "--lr", "0.5")
    assert changed.returncode == 2 and "lr: 0.1 -> 0.5" in changed.stderr
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.iterdir()} == before


def one_line(done):
    """The only line on stderr of a process that failed as it should."""
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_data_is_one_line_and_exit_2(script, tmp_path, straight):
    flags = ("--all",) if script == "ablation.py" else ("--no-pretrained",) if script == "train_effnet.py" else ()
    if script == "analyze.py":
        content = torch.load(straight[0] / "best.pt", weights_only=True)
        content["source"], content["recipe"]["synthetic"] = "CIFAR-10, official batches", False
        torch.save(content, tmp_path / "best.pt")
        flags = ("--ckpt", "best.pt")
    done = run(tmp_path, script, *flags, "--offline", "--data-dir", "nowhere")
    assert done.returncode == 2
    line = one_line(done)
    assert "--data-dir" in line and "https://" in line and "--synthetic" in line


def test_no_network_fails_within_seconds(tmp_path):
    began = time.monotonic()
    done = run(tmp_path, "train_baseline.py", https_proxy="http://127.0.0.1:9", HTTPS_PROXY="http://127.0.0.1:9")
    assert done.returncode == 2 and "cannot be downloaded" in one_line(done).replace("\r", "") and time.monotonic() - began < 60


def test_missing_weights_are_one_line_and_exit_2(tmp_path):
    done = run(tmp_path, "train_effnet.py", *TINY, "--weights", "absent.pth")
    assert done.returncode == 2 and "--weights absent.pth does not exist" in one_line(done)


def test_unwritable_out_is_found_before_the_first_epoch(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    done = run(tmp_path, "train_baseline.py", *TINY, "--out", "file/runs")
    assert done.returncode in (1, 2) and "file/runs" in one_line(done) and "Epoch" not in done.stdout


def test_full_disk_stops_with_one_line(tmp_path):
    """A file-size limit makes every large write fail, as a full disk does."""
    code = ("import resource, runpy, sys, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
            "resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000)); sys.argv = sys.argv[1:]; "
            "sys.path.insert(0, sys.argv[0].rsplit('/', 1)[0]); runpy.run_path(sys.argv[0], run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", code, str(ROOT / "train_baseline.py"), *TINY, "--epochs", "1"], cwd=tmp_path, capture_output=True,
                          text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 1
    assert "last.pt" in one_line(done)
    assert not list(tmp_path.rglob("*.tmp"))


def test_nan_loss_is_exit_1(tmp_path):
    done = run(tmp_path, "train_baseline.py", *TINY, "--lr", "100", "--epochs", "3", "--amp", "off")
    assert done.returncode == 1 and "not finite in epoch" in one_line(done)


def test_a_missing_compiler_means_eager_mode_and_one_line(tmp_path):
    done = run(tmp_path, "train_baseline.py", *TINY, "--epochs", "1", "--compile", "on", PATH="/nonexistent", CXX="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not compiled: ") == 1
