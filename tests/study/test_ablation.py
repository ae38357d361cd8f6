"""Five arms, each one field away from the control; statistics that claim no more than the runs show; reruns that only fill gaps."""
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import ablation
import train_effnet
from common.study.ablation import best_checkpoint, collect, conclusions, text, write
from common.config import Runtime
from common.errors import InputError, RunError

CONTROL = replace(train_effnet.DEFAULT, resize=2)


@pytest.mark.parametrize("arm, field", [("EfficientNetB2_NoPretrain", "pretrained"), ("EfficientNetB2_NoResize", "resize"),
                                        ("EfficientNetB2_NoLS", "label_smoothing"), ("EfficientNetB2_NoRE", "random_erasing")])
def test_each_arm_changes_exactly_one_field(arm, field):
    changed = asdict(replace(CONTROL, **ablation.ARMS[arm]))
    assert {key for key, value in asdict(CONTROL).items() if value != changed[key]} == {field}


def test_the_control_is_what_the_specification_says():
    assert ablation.ARMS[ablation.CONTROL] == {} and len(ablation.ARMS) == 5
    assert (CONTROL.pretrained, CONTROL.resize, CONTROL.label_smoothing, CONTROL.random_erasing) == (True, 2, 0.1, 0.2)
    assert asdict(replace(CONTROL, resize=1)) == asdict(train_effnet.RECIPES["default"])


def test_shards_share_all_jobs_and_none_twice():
    jobs = [(arm, seed) for seed in range(3) for arm in ablation.ARMS]
    parts = [ablation.share(jobs, f"{i}/4") for i in range(1, 5)]
    assert sorted(sum(parts, [])) == sorted(jobs) and max(map(len, parts)) - min(map(len, parts)) <= 1
    for bad in ("0/4", "5/4", "x", "1/0", "-1/3"):
        with pytest.raises(InputError, match="--shard"):
            ablation.share(jobs, bad)


def write_result(study: Path, arm: str, seed: int, top1: float, val_top1: float = 0.5) -> None:
    folder = study / f"{arm}-seed{seed}"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"test_top1": top1, "val_top1": val_top1, "test_images": 10_000, "wall_seconds": 1.0,
                                                    "parameters": 7, "source": "synthetic", "versions": {"hardware": "h"}}))
    (folder / "history.csv").write_text("stage,epoch,val_top1\nhead,1,0.1\nfinetune,2,0.5\n")


ARMS = ("EfficientNetB2_Pretrained", "EfficientNetB2_NoPretrain", "EfficientNetB2_NoLS")


def test_table_statistics_by_hand(tmp_path):
    for seed, (control, without, smooth) in enumerate([(0.93, 0.83, 0.931), (0.94, 0.85, 0.939), (0.95, 0.84, 0.951)]):
        for arm, value in zip(ARMS, (control, without, smooth)):
            write_result(tmp_path, arm, seed, value)
    table = collect(tmp_path, ARMS, (0, 1, 2), ARMS[0])
    control, without, smooth = table["rows"]
    assert control["top1"] == pytest.approx(0.94) and control["std"] == pytest.approx(0.01) and control["delta"] is None
    assert control["low"] == pytest.approx(0.94 - 4.302653 * 0.01 / 3**0.5, abs=1e-6)
    assert without["delta"] == pytest.approx(-0.10)  # paired: -0.10, -0.09, -0.11
    assert without["delta_high"] == pytest.approx(-0.10 + 4.302653 * 0.01 / 3**0.5, abs=1e-6)
    words = conclusions(table)
    assert any(w.startswith("NoPretrain: costs 10.00 points") and "report: -10.07" in w for w in words)
    assert any(w.startswith("NoLS: no measurable effect") for w in words)
    write(table, tmp_path)
    assert json.loads((tmp_path / "ablation.json").read_text())["conclusions"] == words
    assert (tmp_path / "ablation.csv").read_text().count("\n") == 4 and (tmp_path / "ablation.png").stat().st_size > 10_000
    assert "93.81" in (tmp_path / "ablation.md").read_text()


def test_one_seed_claims_nothing(tmp_path):
    for arm, value in zip(ARMS, (0.94, 0.80, 0.94)):
        write_result(tmp_path, arm, 0, value)
    table = collect(tmp_path, ARMS, (0,), ARMS[0])
    assert table["rows"][0]["std"] is None and "NaN" not in json.dumps(table)
    words = conclusions(table)
    assert all("a single seed, so no effect is claimed" in w for w in words) and len(words) == 2
    assert "(single seed)" in "\n".join(text(table))


def test_missing_and_failed_runs_are_named(tmp_path):
    write_result(tmp_path, ARMS[0], 0, 0.9)
    (tmp_path / f"{ARMS[1]}-seed0.FAILED").write_text("RunError: the loss is not finite\n")
    table = collect(tmp_path, ARMS, (0,), ARMS[0])
    assert table["missing"] == [f"{ARMS[2]}-seed0"] and list(table["failed"]) == [f"{ARMS[1]}-seed0"]
    assert any("FAILED EfficientNetB2_NoPretrain-seed0: RunError" in w for w in conclusions(table))


def test_best_checkpoint_is_chosen_on_val_alone(tmp_path):
    write_result(tmp_path, ARMS[0], 0, 0.99, val_top1=0.6)
    write_result(tmp_path, ARMS[1], 0, 0.10, val_top1=0.7)
    table = collect(tmp_path, ARMS, (0,), ARMS[0])
    assert best_checkpoint(table, tmp_path) == tmp_path / f"{ARMS[1]}-seed0" / "best.pt"


def test_a_failing_arm_is_marked_and_a_rerun_clears_it(tmp_path, monkeypatch):
    runtime = Runtime(out=str(tmp_path))
    study = tmp_path / "ablation" / "s"
    study.mkdir(parents=True)

    def fail(*_, **__):
        raise RunError("the loss is not finite in epoch 1/2, step 3")
    monkeypatch.setattr(train_effnet, "train", fail)
    ablation.run_job(ARMS[1], 0, CONTROL, runtime, study)
    assert "not finite" in (study / f"{ARMS[1]}-seed0.FAILED").read_text()
    seen = []
    monkeypatch.setattr(train_effnet, "train", lambda recipe, own, **_: seen.append((recipe, own)))
    monkeypatch.setattr("common.study.ablation.measure_cost", lambda *_, **__: None)
    ablation.run_job(ARMS[1], 0, CONTROL, runtime, study)
    assert not (study / f"{ARMS[1]}-seed0.FAILED").exists()
    assert seen[0][0] == replace(CONTROL, pretrained=False, seed=0) and seen[0][1].run_name == f"{ARMS[1]}-seed0"


def test_runs_of_other_settings_are_never_mixed(tmp_path):
    folder = tmp_path / f"{ARMS[1]}-seed0"
    folder.mkdir()
    (folder / "recipe.json").write_text(json.dumps({"recipe": asdict(replace(CONTROL, pretrained=False))}))
    ablation.refuse_other_recipes([(ARMS[0], 0), (ARMS[1], 0)], CONTROL, tmp_path)
    with pytest.raises(InputError, match=r"NoPretrain-seed0 holds a run with other settings \(epochs: 30 -> 10\): restore them, or choose a new --name"):
        ablation.refuse_other_recipes([(ARMS[0], 0), (ARMS[1], 0)], replace(CONTROL, epochs=10), tmp_path)


def test_a_shard_whose_arm_fails_says_so(tmp_path, monkeypatch):
    pass

    def fail(*_, **__):
        raise RunError("the loss is not finite")
    monkeypatch.setattr(train_effnet, "train", fail)
    monkeypatch.setattr("common.data.sources.load_splits", lambda *_: None)
    codes = []
    for shard in ("1/5", "2/5"):
        monkeypatch.setattr(sys, "argv", ["ablation.py", "--all", "--shard", shard, "--out", str(tmp_path), "--name", "s"])
        codes.append(ablation.main())
        monkeypatch.setattr(ablation, "run_job", lambda *_: None)  # the second shard's arm does not fail, the first one's mark is still there
    assert codes == [1, 0]


def test_bad_choices_are_exit_2(run_script):
    for flags in ((), ("--all", "--arms", "EfficientNetB2_NoLS"), ("--arms", "NoSuchArm"), ("--all", "--seeds", "1", "1"), ("--all", "--shard", "3/2", "--smoke")):
        done = run_script("ablation.py", *flags)
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.slow
def test_killed_after_two_arms_and_started_again_equals_uninterrupted(tmp_path):
    """The smoke study on a few images: kill -9 in the third arm, start again, and the accuracies are the same."""
    flags = ("--all", "--smoke", "--train-limit", "20", "--val-size", "20", "--batch-size", "10", "--deterministic")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(folder):
        folder.mkdir(exist_ok=True)
        return dict(args=[sys.executable, "-u", str(Path(ablation.__file__)), *flags], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE)

    whole = subprocess.run(**command(tmp_path / "whole"), timeout=400)
    assert whole.returncode == 0
    process = subprocess.Popen(**command(tmp_path / "parts"))
    for line in process.stdout:
        if line.startswith("[3/5]"):
            break
    time.sleep(1)
    process.kill()
    process.wait()
    again = subprocess.run(**command(tmp_path / "parts"), timeout=400)
    assert again.returncode == 0 and again.stdout.count("is finished: nothing to do") == 3  # pretraining and two arms
    tables = [json.loads(next((tmp_path / name).rglob("ablation.json")).read_text()) for name in ("whole", "parts")]
    assert len(tables[0]["rows"]) == 5 and tables[0]["missing"] == [] and tables[0]["failed"] == {}
    for a, b in zip(tables[0]["rows"], tables[1]["rows"], strict=True):
        assert (a["arm"], a["top1_by_seed"], a["val_top1"], a["delta"], a["train_memory_mb"]) == (b["arm"], b["top1_by_seed"], b["val_top1"], b["delta"], b["train_memory_mb"])
