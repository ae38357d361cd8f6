"""The result table holds what the files say, and says "not measured" of the rest."""
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import train_baseline
import train_effnet
from common.study.ablation import COLUMNS, REPORT_TOP1
from common.study import results
from common.data.sources import CLASSES
from common.errors import InputError


def write_run(root: Path, script: str, recipe, test: float, name: str, source: str = "CIFAR-10, official batches", names=CLASSES, smoke=False, **more) -> None:
    folder = root / script / name
    folder.mkdir(parents=True)
    versions = {"hardware": "CPU x, 2 threads", "torch": "2.9", "python": "3.12", "git_commit": "abc"}
    (folder / "recipe.json").write_text(json.dumps({"script": script, "recipe": asdict(recipe), "split_hash": "s", "runtime": {"smoke": smoke}}))
    (folder / "result.json").write_text(json.dumps({
        "source": source, "class_names": names, "test_top1": test, "val_top1": 0.75, "train_seconds": 90.0, "wall_seconds": 110.0, "resumed": False,
        "images_per_s": 1234.0, "versions": versions, "diagnosis": ["It overfits."], "test_interval_95": [0.7, 0.8], "best_epoch": 2, **more}))
    (folder / "history.csv").write_text("epoch,val_top1\n1,0.5\n2,0.75\n")
    (folder / "curves.png").write_bytes(b"png")


def lines_of(root: Path, title: str, **options) -> list[str]:
    return [line for line in results.table(results.find(root), **options).splitlines() if line.startswith(f"| {title}")]


def test_seeds_share_a_row_and_gaps_are_named(tmp_path):
    for seed, test in enumerate((0.73, 0.74, 0.75)):
        write_run(tmp_path, "train_baseline", replace(train_baseline.DEFAULT, seed=seed), test, f"s{seed}")
    write_run(tmp_path, "train_baseline", replace(train_baseline.DEFAULT, synthetic=True), 0.99, "drawn", "synthetic")
    small = replace(train_effnet.SCRATCH, resize=2, train_limit=4500, epochs=6, head_epochs=1)
    write_run(tmp_path, "train_effnet", small, 0.31, "small")
    (simple,) = lines_of(tmp_path, "SimpleCNN")
    assert "| 74.00 ± 1.00 (n = 3) |" in simple and "90 s" in simple and "1,234" in simple and "99" not in simple
    scratch = lines_of(tmp_path, "EfficientNet-B2, 64 px, from scratch")
    assert "not measured" in scratch[0] and "4,500 training images" in scratch[1] and "31.00 (n = 1, seed 0)" in scratch[1]
    assert "`python train_effnet.py --resize 2 --no-pretrained --train-limit 4500 --epochs 6 --head-epochs 1`" in scratch[1]
    assert results.table(results.find(tmp_path)).count("not measured") == len(results.ROWS) - 1


def test_every_row_counts_what_its_command_gives():
    """No run of a row's own command differs from it, and no other row takes it."""
    for row in results.ROWS:
        recipe = results._default(row)[0]
        assert results.changes(row, recipe) == {}
        assert [other for other in results.ROWS if other.script == row.script and other.fits(recipe) and other is not results.PRETRAINING
                and not results.changes(other, recipe)] == ([row] if row is not results.PRETRAINING else [r for r in results.ROWS if r.key == "b2-scratch"])


def test_other_settings_get_a_line_of_their_own_that_shows_them(tmp_path):
    write_run(tmp_path, "train_baseline", replace(train_baseline.DEFAULT, epochs=2, lr=0.5, momentum=0.5), 0.40, "quick")
    first, second = lines_of(tmp_path, "SimpleCNN")
    assert "not measured" in first
    assert "SimpleCNN, other settings" in second and "`python train_baseline.py --epochs 2 --lr 0.5` with momentum 0.5 |" in second
    assert lines_of(tmp_path, "SimpleCNN", others=False) == [first] and lines_of(tmp_path, "SimpleCNN", full=False) == [second]
    assert "With other settings" in results.summary(tmp_path)
    shutil.rmtree(tmp_path / "train_baseline")
    assert "With other settings" not in results.summary(tmp_path)


def test_imagenet_weights_given_by_hand_are_imagenet_weights(tmp_path):
    recipe = replace(train_effnet.DEFAULT, resize=2, weights="/data/efficientnet-b2-8bb594d6.pth")
    write_run(tmp_path, "train_effnet", recipe, 0.94, "given")
    write_run(tmp_path, "train_effnet", replace(recipe, seed=1, weights=None), 0.96, "fetched")
    write_run(tmp_path, "train_effnet", replace(recipe, resize=1, weights="a/best.pt"), 0.85, "small")
    assert "95.00 ± 1.41 (n = 2)" in lines_of(tmp_path, "EfficientNet-B2, 64 px, ImageNet weights")[0]
    assert "not measured" in lines_of(tmp_path, "EfficientNet-B2, 64 px, own weights")[0]
    assert "85.00" in lines_of(tmp_path, "EfficientNet-B2, 32 px, pretrained, own weights")[0]


def test_trials_are_not_published(tmp_path):
    write_run(tmp_path / "runs", "train_baseline", train_baseline.DEFAULT, 0.73, "real")
    write_run(tmp_path / "runs", "train_baseline", replace(train_baseline.DEFAULT, synthetic=True), 0.99, "smoke", "synthetic", smoke=True)
    for script, marker in (("ablation", "ablation.json"), ("analyze", "analysis.json")):
        (tmp_path / "runs" / script / "trial").mkdir(parents=True)
        (tmp_path / "runs" / script / "trial" / marker).write_text(json.dumps({"source": "synthetic", "synthetic": True}))
    assert results.copy(tmp_path / "runs", tmp_path / "docs") == 1
    assert results.copy(tmp_path / "runs", tmp_path / "trial", trials=True) == 4


def test_paths_of_the_machine_are_not_published(tmp_path):
    write_run(tmp_path / "runs", "train_baseline", train_baseline.DEFAULT, 0.73, "a")
    path = tmp_path / "runs/train_baseline/a/recipe.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"runtime": {"data_dir": "/home/me/data", "seed": 1}}))
    results.copy(tmp_path / "runs", tmp_path / "docs")
    assert json.loads((tmp_path / "docs/train_baseline/a/recipe.json").read_text())["runtime"] == {"data_dir": None, "seed": 1}


def test_another_machine_keeps_its_results(tmp_path):
    for machine, test in (("CPU x", 0.73), ("NVIDIA H200", 0.74), ("CPU x", 0.75)):
        source = tmp_path / f"runs{test}"
        write_run(source, "train_baseline", train_baseline.DEFAULT, test, "a", versions={"hardware": machine, "torch": "2.9", "python": "3", "git_commit": "c"})
        results.copy(source, tmp_path / "docs")
    kept = {run.folder.name: run.result["test_top1"] for run in results.find(tmp_path / "docs")}
    assert kept == {"a": 0.75, "a-nvidia-h200": 0.74}  # the same machine's later run replaces its earlier one


def test_costs_come_from_the_runs(tmp_path):
    write_run(tmp_path, "train_baseline", train_baseline.DEFAULT, 0.73, "a", peak_memory_bytes=None, peak_rss_bytes=1_500_000_000)
    line = cells(tmp_path, "baseline")
    assert (line["training"], line["wall-clock"], line["memory"]) == ("90 s", "110 s", "1.5 GB RAM")
    write_run(tmp_path, "train_baseline", replace(train_baseline.DEFAULT, seed=1), 0.74, "b", peak_memory_bytes=None, peak_rss_bytes=2_500_000_000, resumed=True)
    line = cells(tmp_path, "baseline")
    assert (line["wall-clock"], line["memory"]) == ("–", "2.0 GB RAM")  # a resumed run's last process tells nothing of the whole
    write_run(tmp_path, "train_effnet", replace(train_effnet.DEFAULT, resize=2), 0.93, "c", peak_memory_bytes=3_000_000_000, peak_rss_bytes=1)
    assert cells(tmp_path, "b2")["memory"] == "3.0 GB"


def cells(root: Path, key: str) -> dict[str, str]:
    row = next(row for row in results.ROWS if row.key == key)
    ((full, runs),) = results.groups(row, results.find(root))
    assert full
    return results.cells(row, runs)


def test_another_data_set_counts_as_pretraining_alone(tmp_path):
    scratch = replace(train_effnet.SCRATCH, resize=2)
    write_run(tmp_path, "train_effnet", scratch, 0.40, "tiny", "class folders, 200 classes", [f"n{k}" for k in range(200)])
    write_run(tmp_path, "train_effnet", replace(train_effnet.DEFAULT, resize=2, weights="tiny/best.pt"), 0.95, "own")
    lines = {line.split(" | ")[0]: line for line in results.table(results.find(tmp_path)).splitlines()}
    assert "40.00" in lines["| EfficientNet-B2, pretraining (200 classes)"] and "95.00" in lines["| EfficientNet-B2, 64 px, own weights"]
    assert all("not measured" in lines[f"| EfficientNet-B2, 64 px, {name}"] for name in ("from scratch", "ImageNet weights"))


def test_two_machines_do_not_share_a_row(tmp_path):
    write_run(tmp_path, "train_baseline", train_baseline.DEFAULT, 0.73, "a")
    write_run(tmp_path, "train_baseline", replace(train_baseline.DEFAULT, seed=1), 0.75, "b", versions={"hardware": "GPU y", "torch": "2.9"})
    lines = [line for line in results.table(results.find(tmp_path)).splitlines() if line.startswith("| SimpleCNN")]
    assert len(lines) == 2 and "CPU x" in lines[0] and "GPU y" in lines[1] and all("n = 1" in line for line in lines)


def test_the_size_curve_needs_two_sizes(tmp_path):
    write_run(tmp_path, "train_effnet", replace(train_effnet.DEFAULT, resize=2), 0.93, "two")
    assert not results.size_curve(results.find(tmp_path), tmp_path / "c.png")
    write_run(tmp_path, "train_effnet", train_effnet.DEFAULT, 0.86, "one")
    assert results.size_curve(results.find(tmp_path), tmp_path / "c.png") and (tmp_path / "c.png").stat().st_size > 10_000


def ablation_json(folder: Path, seeds: list[int], top1: float, source: str = "CIFAR-10", arms=tuple(REPORT_TOP1), failed=(), **changed) -> None:
    folder.mkdir(parents=True)
    rows = [dict.fromkeys(COLUMNS) | {"arm": arm, "n": len(seeds), "top1": top1, "parameters": 7, "batch_n": 125} for arm in arms]
    recipe = asdict(replace(train_effnet.DEFAULT, **{"resize": 2, **changed}))
    (folder / "ablation.json").write_text(json.dumps({"seeds": seeds, "source": source, "class_names": CLASSES, "rows": rows, "recipe": recipe,
                                                      "failed": dict.fromkeys(failed, "why"), "conclusions": ["NoLS: nothing."]}))


def test_the_ablation_shown_is_the_whole_one_with_most_seeds(tmp_path):
    ablation_json(tmp_path / "ablation/small", [0, 1, 2], 0.20, train_limit=1000)
    ablation_json(tmp_path / "ablation/short", [0, 1, 2], 0.20, epochs=3)
    ablation_json(tmp_path / "ablation/drawn", [0, 1, 2], 0.30, "synthetic")
    ablation_json(tmp_path / "ablation/part", [0, 1, 2], 0.40, arms=("EfficientNetB2_Pretrained",))
    ablation_json(tmp_path / "ablation/broken", [0, 1, 2], 0.50, failed=("EfficientNetB2_NoLS-seed0",))
    assert "not measured" in results.ablation(tmp_path)
    ablation_json(tmp_path / "ablation/one", [0], 0.90)
    ablation_json(tmp_path / "ablation/two", [0, 1], 0.95, weights="own/best.pt")
    assert "95.00" in results.ablation(tmp_path) and "- NoLS: nothing." in results.ablation(tmp_path)


def test_a_bench_is_named_for_its_machine(tmp_path):
    one = {"model": "simple_cnn", "batch_size": 125, "variant": "train plain", "precision": "float32", "images_per_s": 1000.0, "samples": [900.0, 1100.0],
           "ratio_to_plain": 1.0, "cold_seconds": 0.5, "bound": {"images_per_s": 4000.0}}
    profile = {"model": "simple_cnn", "batch_size": 125, "precision": "float32", "step_seconds": 0.002, "busy_seconds": 0.001,
               "kernels": [{"name": "gemm<a|b>", "calls": 2.0, "seconds": 0.00075}, {"name": "copy", "calls": 1.0, "seconds": 0.00025}]}
    source, target = tmp_path / "runs", tmp_path / "docs"
    source.mkdir(), target.mkdir()
    (source / "bench.json").write_text(json.dumps({"environment": {"hardware": "NVIDIA H200", "torch": "2.9", "git_commit": "abc"}, "results": [one], "profiles": [profile]}))
    assert results.copy(source, target) == 1 and (target / "bench-nvidia-h200.json").is_file()
    assert "| simple_cnn | 125 | train plain | float32 | 1,000 | 900-1,100 | 1.00 | 25% | 0.5 |" in results.speed(target)
    assert "| `gemm<a\\|b>` | 2 | 0.75 | 75.0% |" in results.speed(target)


def test_publishing_copies_and_fills_the_readme(tmp_path, monkeypatch):
    write_run(tmp_path / "runs", "train_baseline", train_baseline.DEFAULT, 0.73, "a")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{results.MARK}\nold\n{results.END}\nafter\n")
    monkeypatch.chdir(tmp_path)
    assert results.publish(tmp_path / "runs", tmp_path / "docs") == 1 and "old" in readme.read_text()  # another place leaves README alone
    assert results.publish(tmp_path / "runs", tmp_path / "docs/results") == 1 and "73.00" in readme.read_text()
    assert (tmp_path / "docs/train_baseline/a/history.csv").read_text() == "epoch,val_top1\n1,0.5\n2,0.75\n"
    results.fill_readme(readme, tmp_path / "docs")
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text and "73.00" in text
    assert "It overfits." in results.overview(results.find(tmp_path / "docs"), tmp_path / "docs")
    readme.write_text("no marks")
    with pytest.raises(InputError, match="lacks the marks"):
        results.fill_readme(readme, tmp_path / "docs")


def test_the_readme_shows_the_published_files():
    root = Path(__file__).parent.parent
    assert f"{results.MARK}\n{results.summary(root / 'docs' / 'results')}{results.END}" in (root / "README.md").read_text()
