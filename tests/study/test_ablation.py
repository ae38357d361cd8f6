"""Five arms, each one field away from the control; words that claim no more than the runs
show; reruns that only fill gaps."""
import csv
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
from common.config import Runtime
from common.errors import InputError, RunError
from common.files import write_csv
from common.models import weights
from common.study.arms import share
from common.study.ablation import (
    best_checkpoint, collect, conclusions, learned, markdown, mcnemar_exact, write,
)  # fmt: skip

CONTROL = replace(train_effnet.DEFAULT, resize=2)
ARMS = ("EfficientNetB2_Pretrained", "EfficientNetB2_NoPretrain", "EfficientNetB2_NoLS")
CHANGED = {
    "EfficientNetB2_NoPretrain": "pretrained",
    "EfficientNetB2_NoResize": "resize",
    "EfficientNetB2_NoLS": "label_smoothing",
    "EfficientNetB2_NoRE": "random_erasing",
}


@pytest.mark.parametrize("arm", CHANGED)
def test_each_arm_changes_exactly_one_field(arm):
    changed = asdict(replace(CONTROL, **ablation.ARMS[arm]))
    assert [key for key, value in asdict(CONTROL).items() if value != changed[key]] == [
        CHANGED[arm]
    ]


def test_the_control_is_the_pretrained_recipe_at_64_px():
    assert ablation.ARMS[ablation.CONTROL] == {} and len(ablation.ARMS) == 5
    assert CONTROL.pretrained and CONTROL.resize == 2
    assert (CONTROL.label_smoothing, CONTROL.random_erasing) == (0.1, 0.2)


def test_shards_share_all_jobs_and_none_twice():
    jobs = [(arm, seed) for seed in range(3) for arm in ablation.ARMS]
    parts = [share(jobs, f"{i}/4") for i in range(1, 5)]
    assert sorted(sum(parts, [])) == sorted(jobs)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def write_result(
    study: Path, arm: str, seed: int, top1: float, val: float = 0.5, wrong=None
) -> None:
    """A finished run; `wrong`: names of the test images, of a hundred, that it gets wrong."""
    folder = study / f"{arm}-seed{seed}"
    folder.mkdir(parents=True)
    result = {
        "test_top1": top1, "val_top1": val, "test_images": 10_000, "wall_seconds": 1.0,
        "parameters": 7, "source": "CIFAR-10", "class_names": list("abcdefghij"),
        "weights": "the weights", "versions": {"hardware": "h"},
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    if wrong is not None:
        rows = [(f"{i}.png", 1, 0 if i in wrong else 1) for i in range(100)]
        write_csv(folder / "test_predictions.csv", ("name", "label", "prediction"), rows)


def table_of(study: Path, seeds=(0,), **changed) -> dict:
    return collect(study, ARMS, seeds, ARMS[0], asdict(replace(CONTROL, **changed)))


def test_table_statistics_by_hand(tmp_path):
    tops = [(0.93, 0.83, 0.931), (0.94, 0.85, 0.939), (0.95, 0.84, 0.951)]
    for seed, values in enumerate(tops):
        for arm, value in zip(ARMS, values):
            write_result(tmp_path, arm, seed, value)
    table = table_of(tmp_path, (0, 1, 2))
    control, without, smooth = table["rows"]
    half = 4.302653 * 0.01 / 3**0.5
    assert control["top1"] == pytest.approx(0.94) and control["std"] == pytest.approx(0.01)
    assert control["low"] == pytest.approx(0.94 - half, abs=1e-6) and control["delta"] is None
    assert without["delta"] == pytest.approx(-0.10)  # paired: -0.10, -0.09, -0.11
    assert without["delta_high"] == pytest.approx(-0.10 + half, abs=1e-6)
    first, second = conclusions(table)
    assert first.startswith(
        "NoPretrain: costs 10.00 points, 95 % interval from −12.48 to −7.52 over 3"
    )
    assert first.endswith("(the first study: −10.07).")
    assert second.startswith(
        "NoLS: no measurable effect, +0.03 points against the control, 95 %"
    )
    write(table, tmp_path)
    assert json.loads((tmp_path / "ablation.json").read_text())["conclusions"] == [
        first,
        second,
    ]
    with (tmp_path / "ablation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["arm"] for row in rows] == list(ARMS) and float(
        rows[1]["delta"]
    ) == pytest.approx(-0.1)
    assert (tmp_path / "ablation.png").stat().st_size > 10_000
    text = (tmp_path / "ablation.md").read_text()
    assert "93.81" in text and "the control starts from the weights" in text


def test_a_part_of_the_images_is_not_set_beside_the_first_study(tmp_path):
    for arm, value in zip(ARMS, (0.94, 0.80, 0.94)):
        write_result(tmp_path, arm, 0, value)
    whole, part = table_of(tmp_path), table_of(tmp_path, train_limit=4500)
    assert "93.81" in markdown(whole) and "the first study: −10.07" in markdown(whole)
    assert "93.81" not in markdown(part) and "first study" not in markdown(part)


def test_mcnemar_exact_by_hand():
    assert mcnemar_exact(0, 0) == mcnemar_exact(5, 5) == 1.0
    assert mcnemar_exact(0, 5) == mcnemar_exact(5, 0) == pytest.approx(2 / 32)
    assert mcnemar_exact(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar_exact(400, 500) == pytest.approx(0.00095, abs=5e-5)


def test_one_seed_tells_a_pair_of_networks_from_a_recipe(tmp_path):
    write_result(tmp_path, ARMS[0], 0, 0.97, wrong=(0, 1, 2))
    write_result(tmp_path, ARMS[1], 0, 0.85, wrong=range(15))
    write_result(tmp_path, ARMS[2], 0, 0.96, wrong=(1, 2, 3, 4))
    table = table_of(tmp_path)
    assert [row["only_right"] for row in table["rows"]] == [None, [12, 0], [2, 1]]
    apart, alike = conclusions(table)
    assert "differs beyond chance (12 images only the control gets right, 0 only this" in apart
    assert (
        "p < 0.001" in apart
        and "p = 1.000" in alike
        and "no more than by chance (2 images" in alike
    )
    assert all(
        "a single seed cannot tell what the recipe does" in words for words in (apart, alike)
    )


def test_one_seed_without_predictions_claims_nothing(tmp_path):
    for arm, value in zip(ARMS, (0.94, 0.80, 0.94)):
        write_result(tmp_path, arm, 0, value)
    table = table_of(tmp_path)
    assert table["rows"][0]["std"] is None and "NaN" not in json.dumps(table)
    assert all(
        "a single seed, so no effect is claimed" in words for words in conclusions(table)
    )


def test_arms_near_guessing_get_no_chart(tmp_path):
    for arm, value in zip(ARMS, (0.10, 0.13, 0.11)):
        write_result(tmp_path, arm, 0, value)
    table = table_of(tmp_path)
    write(table, tmp_path)
    assert not learned(table) and not (tmp_path / "ablation.png").exists()
    assert "No arm does much better than guessing" in conclusions(table)[-1]


def test_missing_and_failed_runs_are_named(tmp_path):
    write_result(tmp_path, ARMS[0], 0, 0.9)
    (tmp_path / f"{ARMS[1]}-seed0.FAILED").write_text("RunError: the loss is not finite\n")
    table = table_of(tmp_path)
    assert f"{ARMS[2]}-seed0: missing" in conclusions(table)
    assert f"{ARMS[1]}-seed0: FAILED: RunError: the loss is not finite" in conclusions(table)


def test_best_checkpoint_is_chosen_on_val_alone(tmp_path):
    assert best_checkpoint(tmp_path) is None
    write_result(tmp_path, ARMS[0], 0, 0.99, val=0.6)
    write_result(tmp_path, ARMS[1], 0, 0.10, val=0.7)
    assert best_checkpoint(tmp_path) == tmp_path / f"{ARMS[1]}-seed0" / "best.pt"


def fail(*_, **__):
    raise RunError("the loss is not finite in epoch 1/2, step 3")


def test_a_failing_arm_is_marked_and_a_rerun_clears_it(tmp_path, monkeypatch):
    study = tmp_path / "ablation" / "s"
    study.mkdir(parents=True)
    mark = study / f"{ARMS[1]}-seed0.FAILED"
    monkeypatch.setattr(train_effnet, "train", fail)
    ablation.run_job((ARMS[1], 0), CONTROL, Runtime(), study)
    assert "not finite" in mark.read_text()
    seen = []
    monkeypatch.setattr(
        train_effnet, "train", lambda recipe, own, **_: seen.append((recipe, own))
    )
    monkeypatch.setattr("common.study.ablation.measure_cost", lambda *_, **__: None)
    ablation.run_job((ARMS[1], 0), CONTROL, Runtime(), study)
    assert not mark.exists()
    recipe, own = seen[0]
    assert recipe == replace(CONTROL, pretrained=False, seed=0)
    assert own.run_name == f"{ARMS[1]}-seed0" and not own.resume


def test_a_shard_minds_its_own_gaps_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(train_effnet, "train", fail)
    monkeypatch.setattr("common.data.sources.load_splits", lambda *_: None)
    monkeypatch.setattr("common.training.run.publish", lambda path, runs: f"{path} of {runs}")
    study = tmp_path / "ablation" / "s"
    codes = []
    for shard in ("1/5", "2/5"):
        flags = ["--all", "--shard", shard, "--out", str(tmp_path), "--name", "s"]
        monkeypatch.setattr(sys, "argv", ["ablation.py", *flags])
        codes.append(ablation.main())
        monkeypatch.setattr(
            ablation, "run_job", lambda job, *_: write_result(study, *job, 0.5)
        )
    assert codes == [1, 0] and (study / f"{ARMS[0]}-seed0.FAILED").exists()


def test_other_settings_are_another_study(monkeypatch):
    names = set()
    for flags in ("", "--weights lite2", "--recipe report", "--train-limit 4500", "--lr 0.001",
                  "--data-dir photos", "--synthetic", "--smoke"):
        monkeypatch.setattr(sys, "argv", ["ablation.py", "--all", *flags.split()])
        _, _, runtime = ablation.parse()
        names.add(runtime.run_name)
    assert len(names) == 8 and any(name.startswith("report-") for name in names)
    assert not any("seed" in name for name in names)


def test_a_flag_without_effect_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ablation.py", "--all", "--smoke", "--data-dir", "x"])
    with pytest.raises(InputError, match="--data-dir has no effect"):
        ablation.parse()


def test_the_smoke_study_starts_from_lite2_where_it_is_installed(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(train_effnet, "train", lambda recipe, *_, **__: trained.append(recipe))
    monkeypatch.setattr(weights, "lite2_file", lambda: Path("lite2.pth"))
    assert (
        ablation.weights_for_smoke(CONTROL, Runtime(), tmp_path) == "lite2" and trained == []
    )
    monkeypatch.setattr(weights, "lite2_file", lambda: None)
    found = ablation.weights_for_smoke(CONTROL, Runtime(), tmp_path)
    assert found == str(tmp_path / "pretraining" / "best.pt") and not trained[0].pretrained


def test_bad_choices_are_exit_2(run_script):
    for flags in (
        (),
        ("--all", "--arms", ARMS[2]),
        ("--arms", "NoSuchArm"),
        ("--all", "--seeds", "1", "1"),
        ("--all", "--shard", "3/2", "--smoke"),
        ("--all", "--shard", "0/2", "--smoke"),
    ):
        done = run_script("ablation.py", *flags)
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.slow
def test_killed_after_an_arm_and_started_again_equals_uninterrupted(tmp_path):
    """Three arms of the smoke study on a few images: kill -9 in the second, start again, and
    the accuracies are the same."""
    tiny = ("--train-limit", "20", "--val-size", "20", "--epochs", "1", "--deterministic")
    flags = ("--arms", *ARMS[1:3], "--smoke", *tiny, "--name", "s")

    def command(folder):
        folder.mkdir(exist_ok=True)
        words = [sys.executable, "-u", str(Path(ablation.__file__)), *flags]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return dict(args=words, cwd=folder, env=env, text=True, stdout=subprocess.PIPE)

    whole = subprocess.run(**command(tmp_path / "whole"), timeout=400)
    assert whole.returncode == 0
    process = subprocess.Popen(**command(tmp_path / "parts"))
    for line in process.stdout:
        if line.startswith("[2/3]"):
            break
    time.sleep(1)
    process.kill()
    process.wait()
    again = subprocess.run(**command(tmp_path / "parts"), timeout=400)
    assert again.returncode == 0 and again.stdout.count("is finished: nothing to do") >= 1
    paths = [tmp_path / name / "runs/ablation/s/ablation.json" for name in ("whole", "parts")]
    one, other = (json.loads(path.read_text()) for path in paths)
    assert len(one["rows"]) == 3 and one["gaps"] == {} == other["gaps"]
    for a, b in zip(one["rows"], other["rows"], strict=True):
        for key in ("arm", "top1_by_seed", "delta", "train_memory_mb"):
            assert a[key] == b[key], key
