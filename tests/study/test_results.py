"""The table of runs holds what their files say, in one row those that differ in their seed alone.
"""
import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import train_baseline
import train_effnet
import train_improved
from common.config import Recipe
from common.errors import InputError
from common.study.results import find, markdown, table
from conftest import ROOT

B2 = replace(train_effnet.DEFAULT, resize=2)
COMMAND = "common.study.results"


def write_run(folder: Path, recipe: Recipe, test: float, **more) -> None:
    """A finished run; `more` replaces what result.json holds."""
    folder.mkdir(parents=True)
    versions = {"hardware": "CPU x, 2 threads", "torch": "2.9", "precision": "float32"}
    result = {"source": "CIFAR-10", "test_top1": test, "val_top1": 0.75, "epochs": 3,
              "train_seconds": 80.0, "versions": versions, **more}
    card = {"recipe": asdict(recipe), "runtime": {"data_dir": None}}
    (folder / "recipe.json").write_text(json.dumps(card))
    (folder / "result.json").write_text(json.dumps(result))


def rows(root: Path) -> list[dict[str, str]]:
    """The table's rows, keyed by its header."""
    head, *lines = table(find(root), root)
    return [dict(zip(head, line)) for line in lines]


def test_seeds_share_a_row(tmp_path):
    for seed, test in enumerate((0.73, 0.74, 0.75)):
        recipe = replace(train_baseline.DEFAULT, seed=seed)
        write_run(tmp_path / f"train_baseline/a-seed{seed}", recipe, test, epochs=3 + seed // 2)
    (row,) = rows(tmp_path)
    assert row == {
        "run": "train_baseline/a", "what": "simple_cnn", "weights": "random", "epochs": "3 to 4",
        "test %": "74.00 ± 1.00 (n = 3: 73.00, 74.00, 75.00)",
        "val %": "75.00 ± 0.00", "time": "80 s", "on": "CPU x, 2 threads, torch 2.9, float32"}


def test_only_runs_that_differ_in_nothing_else_share_a_row(tmp_path):
    base = train_baseline.DEFAULT
    write_run(tmp_path / "s/a-seed0", base, 0.73)
    write_run(tmp_path / "s/again", base, 0.73)  # the same seed once more
    write_run(tmp_path / "s/long-seed1", replace(base, seed=1, epochs=60), 0.74, epochs=60)
    write_run(tmp_path / "t/b-seed1", replace(base, seed=1), 0.74)  # a copy, or another study
    write_run(tmp_path / "s/other-seed2", replace(base, seed=2), 0.74,
              versions={"hardware": "GPU y", "torch": "2.9"})
    assert [row["run"] for row in rows(tmp_path)] == [
        "s/a-seed0", "s/again", "s/long-seed1", "s/other-seed2", "t/b-seed1"]
    assert rows(tmp_path)[3]["on"] == "GPU y, torch 2.9, precision unknown"


def test_a_row_says_what_departs_from_the_usual(tmp_path):
    for name, changed in (
        ("a", {}), ("b", {"seed": 1, "lr": 0.004}), ("c", {"label_smoothing": 0.0}),
        ("d", {"train_limit": 4500}), ("e", {"train_limit": 4500, "cutmix": 0.5, "resize": 3}),
    ):
        write_run(tmp_path / name, replace(B2, **changed), 0.9)
    assert {row["run"]: row["what"] for row in rows(tmp_path)} == {
        "a": "efficientnet_b2", "b": "efficientnet_b2; lr: 0.002 -> 0.004",
        "c": "efficientnet_b2; label_smoothing: 0.1 -> 0.0",
        "d": "efficientnet_b2; train_limit: None -> 4500",
        "e": "efficientnet_b2; cutmix: 0.0 -> 0.5; resize: 2 -> 3; train_limit: None -> 4500"}


def test_seeds_and_trials_do_not_make_a_recipe_usual(tmp_path):
    """Five trials with few images, and one run with all: the latter is what is usual."""
    for seed in range(5):
        trial = replace(train_improved.CNN, seed=seed, lr=0.5, train_limit=500)
        write_run(tmp_path / f"trial-seed{seed}", trial, 0.4)
    write_run(tmp_path / "whole", train_improved.CNN, 0.9)
    assert [row["what"] for row in rows(tmp_path)] == [
        "improved_cnn; lr: 0.1 -> 0.5; train_limit: None -> 500", "improved_cnn"]


def test_weights_and_data_are_told_apart(tmp_path):
    for name, recipe in (
        ("a", B2), ("b", replace(B2, weights="lite2")), ("c", replace(B2, pretrained=False)),
        ("d", replace(B2, weights="runs/mine/best.pt")), ("e", replace(B2, weights="x/w.pth")),
        ("f", train_improved.RESNET),
    ):
        write_run(tmp_path / name, recipe, 0.9)
    write_run(tmp_path / "g", B2, 0.9, source="class folders, 3 classes")
    found = rows(tmp_path)
    assert [row["weights"] for row in found] == [
        "ImageNet", "lite2", "random", "runs/mine/best.pt", "x/w.pth", "random", "ImageNet"]
    assert found[6]["what"].endswith("data: CIFAR-10 -> class folders, 3 classes")


def test_runs_older_than_a_field_are_read_and_fields_of_younger_ones_shown(tmp_path):
    for seed, changed in enumerate(({"cutmix": None}, {}, {"mix_up": 0.3})):
        write_run(tmp_path / f"a-seed{seed}", replace(B2, seed=seed), 0.9)
        path = tmp_path / f"a-seed{seed}/recipe.json"
        card = json.loads(path.read_text())
        both = card["recipe"] | changed
        card["recipe"] = {key: value for key, value in both.items() if value is not None}
        path.write_text(json.dumps(card))
    old, young = rows(tmp_path)
    assert old["test %"].endswith("(n = 2: 90.00, 90.00)")
    assert young["what"] == "efficientnet_b2; mix_up: None -> 0.3"


@pytest.mark.parametrize("name, content", [
    ("result.json", "{}"), ("result.json", "not JSON"), ("recipe.json", '{"recipe": 3}'),
    ("recipe.json", None), ("result.json", '{"source": 1, "versions": [], "test_top1": "x", '
     '"val_top1": 0, "epochs": 1, "train_seconds": 1}'),
    ("recipe.json", '{"recipe": {"lr": []}, "runtime": {}}'),
    ("recipe.json", '{"recipe": {}, "runtime": null}')])
def test_a_foreign_file_is_one_line_and_the_rest_is_shown(name, content, tmp_path, call, capsys):
    for run in ("a", "b"):
        write_run(tmp_path / "runs" / run, train_baseline.DEFAULT, 0.73)
    file = tmp_path / "runs/b" / name
    file.write_text(content) if content else file.unlink()
    code, said = call(COMMAND)
    assert code == 0 and said.count("73.00") == 1
    find(Path("runs"))
    (problem,) = capsys.readouterr().err.splitlines()
    assert problem.startswith("left out: runs/b") and name in problem


def test_no_finished_run_is_one_line(tmp_path, call):
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "absent"):
        with pytest.raises(InputError, match=f"^{folder} holds no finished run: train first, or"):
            call(COMMAND, folder)


def test_each_figure_of_a_page_leads_to_its_file(tmp_path, call):
    for seed, test in enumerate((0.73, 0.74)):
        recipe = replace(train_baseline.DEFAULT, seed=seed)
        write_run(tmp_path / f"runs/odd name|-seed{seed}", recipe, test)
    write_run(tmp_path / "runs/b2", B2, 0.9)
    _, text = call(COMMAND, "--links")
    found = dict(re.findall(r"\[([\d.]+)\]\(([^)]*)\)", text))
    assert list(found) == ["90.00", "73.00", "74.00"] and "73.50 ± 0.71 (n = 2: [" in text
    assert found["73.00"] == "odd%20name%7C-seed0/result.json"
    assert r"odd name\|" in text and (tmp_path / "runs" / found["90.00"]).is_file()


def test_markdown_is_aligned_numbers_to_the_right():
    assert markdown([["run", "n"], ["a", "10"], ["long", "1"]]) == (
        "| run  |   n |\n| ---  | --: |\n| a    |  10 |\n| long |   1 |\n")


def test_every_published_run_is_in_the_table_and_on_the_page():
    """Each result.json below docs/results can be read, and docs/results/README.md links it."""
    place = ROOT / "docs/results"
    runs = find(place)
    assert len(runs) == sum(1 for _ in place.rglob("result.json")) >= 40
    linked = set(re.findall(r"\]\(([^)]*result\.json)\)", (place / "README.md").read_text()))
    assert {str(run.folder.relative_to(place) / "result.json") for run in runs} <= linked
