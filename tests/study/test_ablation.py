"""Five arms, each one field away from the control; words that claim no more than the runs
show; reruns that only fill gaps."""
import csv
import json
import shutil
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest

import ablation
import train_effnet
from common.config import Runtime, difference
from common.data.sources import CLASSES
from common.errors import InputError, RunError
from common.files import write_csv
from common.study.ablation import collect, conclusions, mcnemar_exact, page, verdict, write
from common.training import loop
from conftest import ROOT

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
    changed = replace(CONTROL, **ablation.ARMS[arm])
    assert [text.partition(":")[0] for text in difference(asdict(CONTROL), asdict(changed))] == [
        CHANGED[arm]]


def test_the_control_is_the_pretrained_recipe_at_64_px():
    assert ablation.ARMS[ablation.CONTROL] == {} and len(ablation.ARMS) == 5
    assert CONTROL.pretrained and CONTROL.resize == 2
    assert (CONTROL.label_smoothing, CONTROL.random_erasing) == (0.1, 0.2)


def write_result(study: Path, arm: str, seed: int, top1: float, val: float = 0.5, wrong=None,
                 recipe: dict | None = None, **more) -> None:
    """A finished run; `wrong`: names of the test images, of a hundred, that it gets wrong;
    `recipe`: what differs from the arm's, `more`: what result.json holds else."""
    folder = study / f"{arm}-seed{seed}"
    folder.mkdir(parents=True)
    own = replace(CONTROL, **{**ablation.ARMS[arm], "seed": seed, **(recipe or {})})
    card = {"recipe": asdict(own), "runtime": {"data_dir": None}}
    result = {
        "test_top1": top1, "val_top1": val, "test_images": 10_000, "train_seconds": 1.0,
        "epochs": 3, "parameters": 7, "source": "CIFAR-10", "class_names": list(CLASSES),
        "weights": "the weights", "versions": {"hardware": "h", "torch": "2.9"}, **more}
    (folder / "recipe.json").write_text(json.dumps(card))
    (folder / "result.json").write_text(json.dumps(result))
    if wrong is not None:
        rows = [(f"{i}.png", 1, 0 if i in wrong else 1) for i in range(100)]
        write_csv(folder / "test_predictions.csv", ("name", "label", "prediction"), rows)


def table_of(study: Path, seeds=(0,)) -> dict:
    return collect(study, {arm: ablation.ARMS[arm] for arm in ARMS}, seeds, ARMS[0])


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
    assert first == ("NoPretrain: −10.00 points (95 % interval −12.48 to −7.52, n = 3), "
                     "a measurable effect. First study −10.07: confirmed.")
    assert second.startswith("NoLS: +0.03 points (95 % interval −0.2")
    assert second.endswith("n = 3), no measurable effect. First study +0.00: confirmed.")
    write(table, tmp_path)
    assert json.loads((tmp_path / "ablation.json").read_text())["conclusions"] == [first, second]
    with (tmp_path / "ablation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["arm"] for row in rows] == list(ARMS)
    assert float(rows[1]["delta"]) == pytest.approx(-0.1)
    assert (tmp_path / "ablation.png").stat().st_size > 10_000
    text = (tmp_path / "ablation.md").read_text()
    assert "93.81" in text and "the control starts from the weights" in text


@pytest.mark.parametrize("recipe, more, beside", [
    ({}, {}, True), ({}, {"source": "x", "class_names": [], "is_cifar10": True}, True),
    ({"train_limit": 4500}, {}, False),
    ({}, {"is_cifar10": False}, False), ({}, {"class_names": ["ant", "bee"]}, False)])
def test_the_first_study_stands_beside_all_of_cifar10_alone(tmp_path, recipe, more, beside):
    for arm, value in zip(ARMS, (0.94, 0.80, 0.94)):
        write_result(tmp_path, arm, 0, value, recipe=recipe, **more)
    text = page(table_of(tmp_path))
    for words in ("93.81", "First study −10.07: open.", "irst study"):
        assert (words in text) == beside


def test_mcnemar_exact_by_hand():
    assert mcnemar_exact(0, 0) == mcnemar_exact(5, 5) == 1.0
    assert mcnemar_exact(0, 5) == mcnemar_exact(5, 0) == pytest.approx(2 / 32)
    assert mcnemar_exact(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar_exact(400, 500) == pytest.approx(0.00095, abs=5e-5)


@pytest.mark.parametrize("low, high, claimed, said", [
    (-0.12, -0.08, -0.10, "confirmed"), (-0.20, -0.15, -0.10, "confirmed"),
    (-0.02, 0.01, -0.01, "open"), (-0.001, 0.002, -0.01, "refuted"), (0.01, 0.02, -0.01, "refuted"),
    (-0.004, 0.003, 0.0, "confirmed"), (-0.02, 0.01, 0.0, "open"), (-0.02, -0.01, 0.0, "refuted"),
    (None, None, -0.1, "open")])
def test_what_an_interval_makes_of_a_claim(low, high, claimed, said):
    assert verdict(low, high, claimed) == said


def test_one_seed_tells_a_pair_of_networks_from_a_recipe(tmp_path):
    write_result(tmp_path, ARMS[0], 0, 0.97, wrong=(0, 1, 2))
    write_result(tmp_path, ARMS[1], 0, 0.85, wrong=range(15))
    write_result(tmp_path, ARMS[2], 0, 0.96, wrong=(1, 2, 3, 4))
    table = table_of(tmp_path)
    assert [row["only_right"] for row in table["rows"]] == [None, [12, 0], [2, 1]]
    apart, alike = conclusions(table)
    assert apart == ("NoPretrain: −12.00 points, one seed: this pair of networks differs beyond "
                     "chance (p < 0.001). First study −10.07: open.")
    assert alike == ("NoLS: −1.00 points, one seed: this pair of networks differs no more than by "
                     "chance (p = 1.000). First study +0.00: open.")


def test_an_interval_counts_the_seeds_that_both_have(tmp_path):
    for seed in range(3):
        write_result(tmp_path, ARMS[1], seed, 0.8 + 0.01 * seed)
    for seed in range(2):
        write_result(tmp_path, ARMS[0], seed, 0.9 + 0.012 * seed)
    table = table_of(tmp_path, (0, 1, 2))
    assert ", n = 2), " in conclusions(table)[0] and table["rows"][1]["n"] == 3
    assert "h, torch 2.9." in page(table)


def test_one_seed_without_predictions_claims_nothing(tmp_path):
    for arm, value in zip(ARMS, (0.94, 0.80, 0.94)):
        write_result(tmp_path, arm, 0, value)
    table = table_of(tmp_path)
    assert table["rows"][0]["std"] is None and "NaN" not in json.dumps(table)
    assert all("one seed: no effect is claimed" in words for words in conclusions(table))


def test_missing_and_failed_runs_are_named(tmp_path):
    write_result(tmp_path, ARMS[0], 0, 0.9)
    (tmp_path / f"{ARMS[1]}-seed0.FAILED").write_text("RunError: the loss is not finite\n")
    table = table_of(tmp_path, (0, 1))
    assert f"{ARMS[2]}-seed0: not finished" in conclusions(table)
    assert f"{ARMS[1]}-seed0: FAILED: RunError: the loss is not finite" in conclusions(table)


def test_runs_of_other_settings_in_one_table_are_named(tmp_path):
    write_result(tmp_path, ARMS[0], 0, 0.94, identity="i")
    write_result(tmp_path, ARMS[1], 0, 0.80, identity="i")
    write_result(tmp_path, ARMS[2], 0, 0.94, recipe={"epochs": 7}, identity="j")
    write_result(tmp_path, ARMS[0], 1, 0.93, recipe={"lr": 0.5}, identity="i")
    write_result(tmp_path, ARMS[2], 1, 0.94, recipe={"label_smoothing": 0.2}, identity="i")
    table = table_of(tmp_path, (0, 1))
    said = conclusions(table)
    words = f"differs from {ARMS[0]}-seed0 in more than its arm"
    assert f"{ARMS[2]}-seed0: {words} (data: i -> j, epochs: 30 -> 7)" in said
    assert f"{ARMS[0]}-seed1: {words} (lr: 0.002 -> 0.5)" in said
    assert f"{ARMS[2]}-seed1: {words} (label_smoothing: 0.0 -> 0.2)" in said
    assert [*table["unlike"]] == [f"{ARMS[0]}-seed1", f"{ARMS[2]}-seed0", f"{ARMS[2]}-seed1"]
    (tmp_path / f"{ARMS[0]}-seed0/result.json").unlink()
    (tmp_path / f"{ARMS[0]}-seed1/result.json").unlink()
    assert table_of(tmp_path, (0, 1))["unlike"] == {}, "no control, so nothing is compared"


def fail(*_, **__):
    raise RunError("the loss is not finite in epoch 1/2, step 3")


def test_a_failing_arm_is_marked_and_a_rerun_clears_it(tmp_path, monkeypatch):
    study = tmp_path / "ablation" / "s"
    study.mkdir(parents=True)
    mark = study / f"{ARMS[1]}-seed0.FAILED"
    monkeypatch.setattr(train_effnet, "train", fail)
    ablation.run_job(ARMS[1], 0, CONTROL, Runtime(), study)
    assert "not finite" in mark.read_text()
    seen = []
    monkeypatch.setattr(train_effnet, "train", lambda *job, **more: seen.append((*job, more)))
    monkeypatch.setattr("common.study.ablation.measure_cost", lambda *_, **__: None)
    ablation.run_job(ARMS[1], 0, CONTROL, Runtime(), study)
    assert not mark.exists()
    recipe, own, more = seen[0]
    assert more == {"script": "ablation/s", "copy_best": False}, "./best.pt is the control's"
    assert recipe == replace(CONTROL, pretrained=False, seed=0)
    assert own.run_name == f"{ARMS[1]}-seed0" and not own.resume


@pytest.fixture
def ablate(call, monkeypatch):
    """A function that calls ablation.py in tmp_path, where nothing trains: its exit code and what
    it prints."""
    monkeypatch.setattr("common.data.sources.load_splits", lambda *_: None)
    monkeypatch.setattr("common.study.ablation.measure_cost", lambda *_, **__: None)
    monkeypatch.setattr(train_effnet, "train", lambda *_, **__: None)
    return partial(call, "ablation.py")


def test_other_settings_are_another_study(ablate, monkeypatch):
    names = set()
    monkeypatch.setattr(ablation, "run_job", lambda *job: names.add(job[-1].name))
    for flags in ("", "--weights lite2", "--recipe report", "--train-limit 4500", "--lr 0.001",
                  "--data-dir photos", "--synthetic", "--smoke --weights lite2"):
        with pytest.raises(RunError, match="no finished run of"):
            ablate("--all", *flags.split())
    assert len(names) == 8 and any(name.startswith("report-") for name in names)
    assert not any("seed" in name for name in names)


@pytest.mark.parametrize("flags, start", [("", None), ("--weights lite2", "lite2")])
def test_the_smoke_study_needs_no_weights_but_takes_them(flags, start, ablate, monkeypatch):
    recipes = []
    monkeypatch.setattr(ablation, "run_job", lambda *job: recipes.append(job[2]))
    with pytest.raises(RunError, match="no finished run of"):
        ablate("--all", "--smoke", *flags.split())
    assert {(recipe.weights, recipe.pretrained) for recipe in recipes} == {(start, bool(start))}


def test_collect_tells_of_the_runs_not_of_the_flags(tmp_path, ablate):
    """Runs of 2 + 7 epochs from own weights, collected without any flag of theirs."""
    study = tmp_path / "runs/ablation/mine"
    own = dict(recipe={"epochs": 7, "head_epochs": 2}, weights="my own")
    for arm, top1 in zip(ARMS, (0.9, 0.8, 0.85)):
        write_result(study, arm, 0, top1, val=top1, **own)
    code, said = ablate("--arms", *ARMS[1:], "--collect", "--name", "mine")
    assert code == 0 and "the control starts from my own; 2 + 7 epochs; h, torch 2.9" in said
    table = json.loads((study / "ablation.json").read_text())
    assert (table["recipe"]["epochs"], table["recipe"]["head_epochs"]) == (7, 2)


def test_the_published_table_can_be_made_anew(tmp_path, ablate):
    (published,) = (ROOT / "docs/results/ablation").glob("*/")
    made = tmp_path / "runs/ablation" / published.name
    shutil.copytree(published, made, ignore=shutil.ignore_patterns("ablation.*"))
    code, _ = ablate("--all", "--collect", "--name", published.name)
    assert code == 0
    for name in ("ablation.md", "ablation.csv"):
        assert (made / name).read_text() == (published / name).read_text()
    new, old = (json.loads((place / "ablation.json").read_text()) for place in (made, published))
    assert new["rows"] == old["rows"] and new["conclusions"] == old["conclusions"]


def test_a_shard_minds_its_own_gaps_alone(tmp_path, ablate, monkeypatch):
    study = tmp_path / "runs/ablation/s"
    monkeypatch.setattr(train_effnet, "train", fail)
    with pytest.raises(RunError, match="holds no finished run .*: EfficientNetB2_Pretrained-seed0"):
        ablate("--all", "--name", "s", "--shard", "1/5")
    monkeypatch.setattr(ablation, "run_job",
                        lambda arm, seed, *_: write_result(study, arm, seed, 0.5))
    assert ablate("--all", "--name", "s", "--shard", "2/5")[0] == 0
    assert (study / f"{ARMS[0]}-seed0.FAILED").exists()


def test_shards_do_all_jobs_and_none_twice(ablate, monkeypatch):
    done = []
    monkeypatch.setattr(ablation, "run_job", lambda *job: done.append(job[:2]))
    counts = []
    for i in "1234":
        with pytest.raises(RunError, match="holds no finished run"):
            ablate("--all", "--seeds", "0", "1", "2", "2", "--shard", f"{i}/4")
        counts.append(len(done) - sum(counts))
    assert sorted(done) == sorted((arm, seed) for arm in ablation.ARMS for seed in range(3))
    assert max(counts) - min(counts) <= 1


def test_a_mistyped_name_is_one_line(tmp_path, ablate):
    with pytest.raises(InputError, match="^runs/ablation/mien holds no finished run of these arms"):
        ablate("--all", "--collect", "--name", "mien")
    assert not (tmp_path / "runs/ablation/mien").exists()


@pytest.mark.parametrize("flags, said", [
    ((), "one of the arguments --all --arms is required"),
    (("--all", "--arms", ARMS[2]), "not allowed with argument --all"),
    (("--arms", "NoSuchArm"), "invalid choice: 'NoSuchArm'"),
    (("--all", "--seeds", "-1"), "-1 is not a whole number from 0 to 2147483647"),
    (("--all", "--seeds", "2147483648"), "2147483648 is not a whole number from 0 to"),
    (("--all", "--seeds", "½"), "½ is not a whole number from 0 to"),
    (("--all", "--shard", "3/2", "--smoke"), "--shard: invalid shard value: '3/2'"),
    (("--all", "--shard", "0/2", "--smoke"), "--shard: invalid shard value: '0/2'"),
    (("--all", "--smoke", "--data-dir", "x"), "--data-dir has no effect"),
])
def test_bad_choices_are_refused(ablate, capsys, tmp_path, flags, said):
    with pytest.raises((SystemExit, InputError)) as refused:
        ablate(*flags)
    assert said in f"{refused.value}{capsys.readouterr().err}" and not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_stopped_study_goes_on_where_it_was(call, monkeypatch, tmp_path):
    """Two arms of the smoke study on a few images, stopped in the second one's second epoch."""
    flags = ("ablation.py", "--arms", ARMS[2], "--smoke", "--train-limit", "20", "--val-size", "20",
             "--epochs", "1", "--resize", "1", "--name", "s")
    study, begun = tmp_path / "runs/ablation/s", []

    def evaluate(*args, real=loop.evaluate, **more):
        begun.append((study / f"{ARMS[2]}-seed0").exists())
        if sum(begun) == 2:
            raise KeyboardInterrupt
        return real(*args, **more)

    monkeypatch.setattr(loop, "evaluate", evaluate)
    monkeypatch.setattr("common.data.sources.DRAWN_POOLS", {"train": (20, 0), "test": (10, 1)})
    with pytest.raises(KeyboardInterrupt):
        call(*flags)
    code, said = call(*flags)
    assert code == 0 and f"{ARMS[0]}-seed0 is finished: nothing to do" in said
    assert "resumed after epoch 1\n" in said
    table = json.loads((study / "ablation.json").read_text())
    assert [row["arm"] for row in table["rows"]] == [ARMS[0], ARMS[2]] and table["gaps"] == {}
    assert all(row["train_memory_mb"] > 0 for row in table["rows"])
