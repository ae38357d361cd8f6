"""The result table holds what the files say, and says "not measured" of the rest."""
import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import train_baseline
import train_effnet
from common.data.sources import CLASSES
from common.errors import InputError
from common.study import figures, pages, results
from common.study.found import copy, find
from common.study.rows import ROWS, row_of, start
from common.study.tables import markdown, read_csv
from conftest import ROOT

B2 = replace(train_effnet.DEFAULT, resize=2)
TEN = list(CLASSES)
VERSIONS = {"hardware": "CPU x, 2 threads", "torch": "2.9", "git_commit": "abc"}
HISTORY = """stage,epoch,val_top1,images_per_s
head,1,0.5,5000
finetune,2,0.7,1234
finetune,3,0.75,1200
"""


def write_run(root: Path, script: str, recipe, test: float, name: str, **more) -> None:
    """A finished run; `more` replaces what result.json holds."""
    folder = root / script / name
    folder.mkdir(parents=True)
    card = {
        "script": script, "recipe": asdict(recipe), "split_hash": "s",
        "runtime": {"data_dir": "/home/me/data", "seed": 1},
    }  # fmt: skip
    result = {
        "source": "CIFAR-10", "class_names": TEN, "test_top1": test, "val_top1": 0.75,
        "train_seconds": 80.0, "wall_seconds": 110.0, "resumed": False, "versions": VERSIONS,
        "diagnosis": ["It overfits."], **more,
    }  # fmt: skip
    (folder / "recipe.json").write_text(json.dumps(card))
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "history.csv").write_text(HISTORY)
    (folder / "curves.png").write_bytes(b"png")


def lines(root: Path, title: str, asked: bool = True) -> list[str]:
    """The table's lines of a row, without the padding."""
    asked_for, other = pages.results(find(root))
    text = re.sub(" +", " ", asked_for if asked else other)
    return [line for line in text.splitlines() if line.startswith(f"| {title}")]


def test_seeds_share_a_line_and_gaps_are_named(tmp_path):
    for seed, test in enumerate((0.73, 0.74, 0.75)):
        recipe = replace(train_baseline.DEFAULT, seed=seed)
        write_run(tmp_path, "train_baseline", recipe, test, f"s{seed}")
    drawn = replace(train_baseline.DEFAULT, synthetic=True)
    write_run(tmp_path, "train_baseline", drawn, 0.99, "drawn", source="synthetic")
    (line,) = lines(tmp_path, "SimpleCNN")
    assert (
        "| random weights | val 73.30 | 74.00 ± 1.00 (n = 3) | 75.00 ± 0.00 (n = 3) "
        "| 3 | 80 s | 1.8 min |"
        in line
    )
    assert "| 1,234 |" in line and "99" not in line  # not the head epoch's 5,000
    shown = [row for row in ROWS if "FILE" not in row.command]
    assert pages.results(find(tmp_path))[0].count("not measured") == len(shown) - 1


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
def test_every_row_counts_what_its_command_gives(row):
    assert row.changes(row.recipe) == {} and row_of(row.recipe) is row


def test_other_settings_get_a_line_of_their_own_that_shows_them(tmp_path):
    recipe = replace(train_baseline.DEFAULT, epochs=2, lr=0.5, momentum=0.5)
    write_run(tmp_path, "train_baseline", recipe, 0.40, "quick")
    small = replace(train_effnet.SCRATCH, resize=2, train_limit=4500)
    write_run(tmp_path, "train_effnet", small, 0.31, "small")
    write_run(tmp_path, "train_baseline", replace(recipe, batch_size=32), 0.45, "further")
    # Where the command itself was not run, the nearest run on all images stands for it.
    (line,) = lines(tmp_path, "SimpleCNN")
    assert "SimpleCNN, epochs 2, lr 0.5, momentum 0.5 |" in line and "| val 73.30 |" in line
    (line,) = lines(tmp_path, "SimpleCNN", asked=False)
    assert "SimpleCNN, epochs 2, batch_size 32, lr 0.5, momentum 0.5 |" in line
    write_run(tmp_path, "train_baseline", train_baseline.DEFAULT, 0.73, "asked")
    assert "| 73.00 |" in lines(tmp_path, "SimpleCNN")[0]
    assert len(lines(tmp_path, "SimpleCNN", asked=False)) == 2
    assert "not measured" in lines(tmp_path, "EfficientNet-B2, 64 px, from scratch")[0]
    (line,) = lines(tmp_path, "EfficientNet-B2, 64 px, from scratch", asked=False)
    # The first study saw all images.
    assert "train_limit 4500 | random weights | – | 31.00 |" in line


def test_each_line_says_which_weights_it_started_from(tmp_path):
    lite2 = "ImageNet weights of EfficientNet-Lite2, transplanted"
    given = "/data/efficientnet-b2-8bb594d6.pth"
    for name, test, recipe, more in (
        ("given", 0.94, replace(B2, weights=given), {}),
        ("fetched", 0.96, replace(B2, seed=1), {}),
        ("lite2", 0.95, replace(B2, weights="lite2"), {"weights": lite2}),
        ("own", 0.92, replace(B2, weights="runs/b2-lite2/best.pt"), {}),
        ("small", 0.85, replace(B2, resize=1, weights="lite2"), {"weights": lite2}),
    ):
        write_run(tmp_path, "train_effnet", recipe, test, name, **more)
    first, second, third = lines(tmp_path, "EfficientNet-B2, 64 px, ")[1:]
    assert (
        "ImageNet weights | published ImageNet weights | 93.77 to 93.81 | 95.00 ± 1.41 (n = 2)"
        in first
    )
    assert f"64 px, Lite2's weights | {lite2} | – | 95.00 |" in second
    assert "own weights | weights of an own run | – | 92.00 |" in third
    assert f"| {lite2} | 85.99 | 85.00 |" in lines(tmp_path, "EfficientNet-B2, 32 px")[0]


def test_weights_are_told_by_their_file():
    for file, kind in (
        (None, "imagenet"),
        ("lite2", "lite2"),
        ("a/efficientnet_lite2-1.pth", "lite2"),
        ("b2-lite2/best.pt", "own"),
    ):
        assert start({"pretrained": True, "weights": file}) == kind
    assert start({"pretrained": False, "weights": "lite2"}) == "random"


def test_two_machines_and_another_data_set_do_not_share_a_line(tmp_path):
    write_run(tmp_path, "train_baseline", train_baseline.DEFAULT, 0.73, "a")
    gpu = {**VERSIONS, "hardware": "GPU y"}
    write_run(
        tmp_path,
        "train_baseline",
        replace(train_baseline.DEFAULT, seed=1),
        0.75,
        "b",
        versions=gpu,
    )
    write_run(
        tmp_path,
        "train_baseline",
        train_baseline.DEFAULT,
        0.5,
        "c",
        class_names=["ant", "bee"],
    )
    found = lines(tmp_path, "SimpleCNN")
    assert len(found) == 2 and "CPU x" in found[0] and "GPU y" in found[1]


def test_a_resumed_run_has_no_wall_clock(tmp_path):
    write_run(tmp_path, "train_baseline", train_baseline.DEFAULT, 0.73, "a", resumed=True)
    assert "| 80 s | – |" in lines(tmp_path, "SimpleCNN")[0]


@pytest.mark.parametrize("name", ["recipe.json", "result.json"])
def test_a_foreign_file_of_a_run_is_one_line_that_names_it(name, tmp_path):
    write_run(tmp_path, "train_baseline", train_baseline.DEFAULT, 0.73, "a")
    (tmp_path / "train_baseline/a" / name).write_text("{}")
    with pytest.raises(InputError, match=f"a/{name} lacks "):
        pages.results(find(tmp_path))


def test_copies_leave_out_drawn_images_and_paths_of_the_machine(tmp_path):
    runs, docs = tmp_path / "runs", tmp_path / "docs"
    write_run(runs, "train_baseline", train_baseline.DEFAULT, 0.73, "real")
    write_run(
        runs, "train_baseline", train_baseline.DEFAULT, 0.99, "drawn", source="synthetic"
    )
    write_run(runs, "ablation/s", B2, 0.93, "EfficientNetB2_Pretrained-seed0")
    arm = "ablation/s/EfficientNetB2_Pretrained-seed0"
    for place in (arm, "train_baseline/real"):
        (runs / place / "test_predictions.csv").write_text("name,label,prediction\n")
    for script, marker in (("ablation", "ablation.json"), ("analyze", "analysis.json")):
        (runs / script / "trial").mkdir(parents=True)
        (runs / script / "trial" / marker).write_text('{"source": "synthetic"}')
    (runs / "bench.json").write_text("{}")
    assert copy(runs, docs) == 3
    assert (docs / "bench.json").is_file() and not (docs / "train_baseline/drawn").exists()
    assert read_csv(docs / "train_baseline/real/history.csv")[0]["stage"] == "head"
    card = json.loads((docs / "train_baseline/real/recipe.json").read_text())
    assert card["runtime"] == {"data_dir": None, "seed": 1}
    # An arm is a run like any other, and its part of the table can be computed anew.
    assert (docs / arm / "test_predictions.csv").is_file()
    assert not (docs / "train_baseline/real/test_predictions.csv").exists()
    assert "93.00" in lines(docs, "EfficientNet-B2, 64 px, ImageNet")[0]


def test_runs_that_chose_a_default_are_grouped_by_setting(tmp_path):
    for lr, vals in ((1e-3, (0.80, 0.82)), (2e-3, (0.70, 0.72, 0.74))):
        for seed, val in enumerate(vals):
            recipe = replace(B2, lr=lr, seed=seed, train_limit=4500)
            write_run(
                tmp_path, "train_effnet", recipe, 0.5, f"lr{lr}-seed{seed}", val_top1=val
            )
    text = re.sub(" +", " ", pages.tuning(find(tmp_path))).splitlines()
    assert text[0] == "| lr | val % |"
    assert text[2].startswith("| 0.001 |") and text[2].endswith("| 81.00 ± 1.41 (n = 2) |")
    assert text[3].startswith("| 0.002 |") and text[3].endswith("| 72.00 ± 2.00 (n = 3) |")


def write_ablation(
    root: Path, name: str, seeds: list[int], top1: float, gaps=(), **changed
) -> None:
    folder = root / "ablation" / name
    folder.mkdir(parents=True)
    table = {
        "recipe": asdict(replace(B2, **changed)), "seeds": seeds,
        "gaps": dict.fromkeys(gaps, "missing"),
        "rows": [{"arm": "Control", "top1": top1}], "conclusions": [f"{name} was said."],
        "source": "ten", "weights": f"{name}'s weights",
        "versions": {"hardware": "one core", "torch": "2.14", "git_commit": "c4ef"},
    }  # fmt: skip
    (folder / "ablation.json").write_text(json.dumps(table))
    (folder / "ablation.md").write_text("words\n\n![arms](ablation.png)\n")


def test_the_ablation_shown_is_the_whole_one_with_most_seeds(tmp_path):
    write_ablation(tmp_path, "small", [0, 1, 2], 0.20, train_limit=1000)
    write_ablation(tmp_path, "broken", [0, 1, 2], 0.50, gaps=["NoLS-seed0"])
    assert pages.readme(tmp_path)["Ablation"] == "not measured\n"
    write_ablation(tmp_path, "one", [0], 0.90)
    write_ablation(tmp_path, "two", [0, 1], 0.95)
    shown = pages.readme(tmp_path)["Ablation"]
    assert shown.startswith(
        "ten; the control starts from two's weights; "
        f"{B2.head_epochs} + {B2.epochs} epochs; one core, torch 2.14, commit c4ef.\n\n|"
    )
    assert "95.00" in shown
    assert pages.said(tmp_path) == ["two was said."]
    assert "(ablation/one/ablation.png)" in pages.overview(tmp_path)


def test_a_bench_is_a_folded_table(tmp_path):
    one = {
        "model": "simple_cnn", "batch_size": 125, "variant": "train plain", "precision": "float32",
        "images_per_s": 1000.0, "ratio_to_plain": 1.0, "cold_seconds": 0.5,
    }  # fmt: skip
    env = {"hardware": "NVIDIA H200", "torch": "2.9", "git_commit": "abc"}
    (tmp_path / "bench.json").write_text(json.dumps({"environment": env, "results": [one]}))
    text = re.sub(" +", " ", pages.overview(tmp_path))
    assert "<summary>bench.json: NVIDIA H200, torch 2.9, commit abc</summary>" in text
    assert "| simple_cnn | 125 | train plain | float32 | 1,000 | 1.00 | 0.5 |" in text


def test_markdown_is_aligned_numbers_to_the_right():
    assert markdown([["run", "n"], ["a", "10"], ["long", "1"]]) == (
        "| run  |    n |\n| ---- | ---: |\n| a    |   10 |\n| long |    1 |\n"
    )
    assert markdown([["run", "n"]]) == "not measured\n"


def test_publishing_fills_both_guides_with_the_same_numbers(tmp_path, monkeypatch):
    write_run(tmp_path / "runs", "train_baseline", train_baseline.DEFAULT, 0.73, "a")
    write_run(tmp_path / "tune", "train_effnet", B2, 0.5, "lr-seed0")
    marks = f"before\n{results.MARK}\nold\n{results.END}\nafter\n"
    english, chinese = tmp_path / "README.md", tmp_path / "docs/README.zh.md"
    chinese.parent.mkdir()
    english.write_text(marks), chinese.write_text(marks)
    monkeypatch.chdir(tmp_path)
    assert (
        results.publish(Path("runs"), Path("elsewhere")) == 1 and "old" in english.read_text()
    )
    assert results.publish(Path("runs"), Path("docs/results"), Path("tune")) == 2
    texts = english.read_text(), chinese.read_text(encoding="utf-8")
    for text in texts:
        assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "73.00" in texts[0] and "未测量" in texts[1] and "not measured" not in texts[1]
    assert numbers(texts[0]) == numbers(texts[1])
    page = Path("docs/results/README.md").read_text()
    assert (
        "It overfits." in page
        and page.count("\n## ") == 8
        and Path("docs/results/study.png").is_file()
    )
    assert results.publish(Path("docs/results"), Path("docs/results")) == 0  # the pages anew
    assert Path("docs/results/README.md").read_text() == page
    english.write_text("no marks")
    with pytest.raises(InputError, match="lacks the marks"):
        results.fill(english, Path("docs/results"))


def numbers(text: str) -> list[str]:
    """Every number of the tables in a page."""
    tables = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    return re.findall(r"\d+(?:[.,]\d+)*", tables)


def test_the_study_figure_is_drawn_of_what_there_is(tmp_path):
    write_run(tmp_path, "train_baseline", train_baseline.DEFAULT, 0.73, "a")
    write_run(tmp_path, "train_effnet", replace(B2, epochs=9), 0.95, "b")
    figures.study(find(tmp_path), tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", results.GUIDES)
def test_the_guides_show_the_published_files(name, tmp_path):
    page = ROOT / name
    if not page.is_file():
        pytest.skip(f"there is no {name}")
    filled = tmp_path / page.name
    filled.write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    results.fill(filled, ROOT / "docs/results")
    assert filled.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")
