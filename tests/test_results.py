"""The result table holds what the files say, and says "not measured" of the rest."""
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import train_baseline
import train_effnet
from common import compare, results
from common.errors import InputError


def write_run(root: Path, script: str, recipe, test: float, name: str, source: str = "CIFAR-10, official batches", classes: int = 10, **more) -> None:
    folder = root / script / name
    folder.mkdir(parents=True)
    versions = {"hardware": "CPU x, 2 threads", "torch": "2.9", "python": "3.12", "git_commit": "abc"}
    (folder / "recipe.json").write_text(json.dumps({"script": script, "recipe": asdict(recipe)}))
    (folder / "result.json").write_text(json.dumps({
        "source": source, "classes": classes, "test_top1": test, "val_top1": 0.75, "train_seconds": 90.0, "wall_seconds": 110.0, "resumed": False,
        "images_per_s": 1234.0, "versions": versions, "diagnosis": ["It overfits."], "test_interval_95": [0.7, 0.8], "best_epoch": 2, **more}))
    (folder / "history.csv").write_text("epoch,val_top1\n1,0.5\n2,0.75\n")
    (folder / "curves.png").write_bytes(b"png")


def test_seeds_share_a_row_and_gaps_are_named(tmp_path):
    for seed, test in enumerate((0.73, 0.74, 0.75)):
        write_run(tmp_path, "train_baseline", replace(train_baseline.DEFAULT, seed=seed), test, f"s{seed}")
    write_run(tmp_path, "train_baseline", replace(train_baseline.DEFAULT, synthetic=True), 0.99, "drawn", "synthetic")
    small = replace(train_effnet.SCRATCH, resize=2, train_limit=4500, epochs=6, head_epochs=1)
    write_run(tmp_path, "train_effnet", small, 0.31, "small")
    lines = results.table(results.find(tmp_path)).splitlines()
    simple = next(line for line in lines if line.startswith("| SimpleCNN"))
    assert "| 74.00 ± 1.00 (n = 3) |" in simple and "90 s" in simple and "1,234" in simple and "99" not in simple
    scratch = [line for line in lines if "from scratch" in line]
    assert "not measured" in scratch[0] and "4,500 training images" in scratch[1] and "31.00 (n = 1, seed 0)" in scratch[1]
    assert "`python train_effnet.py --resize 2 --no-pretrained --train-limit 4500 --head-epochs 1 --epochs 6 --lr 0.002`" in scratch[1]
    assert sum("not measured" in line for line in lines) == len(results.ROWS) - 1


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
    (runs,) = results.groups(row, results.find(root))
    return results.cells(row, runs)


def test_another_data_set_counts_as_pretraining_alone(tmp_path):
    scratch = replace(train_effnet.SCRATCH, resize=2)
    write_run(tmp_path, "train_effnet", scratch, 0.40, "tiny", "class folders, 200 classes", classes=200)
    write_run(tmp_path, "train_effnet", replace(scratch, pretrained=True, weights="tiny/best.pt"), 0.95, "own")
    lines = {line.split(" | ")[0]: line for line in results.table(results.find(tmp_path)).splitlines()}
    assert "40.00" in lines["| EfficientNet-B2, pretraining on another set"] and "95.00" in lines["| EfficientNet-B2, 64 px, own weights"]
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


def ablation_json(folder: Path, seeds: list[int], top1: float, limit: int | None, source: str = "CIFAR-10") -> None:
    folder.mkdir(parents=True)
    row = dict.fromkeys(compare.COLUMNS) | {"arm": "EfficientNetB2_Pretrained", "n": len(seeds), "top1": top1, "parameters": 7, "batch_n": 125}
    (folder / "ablation.json").write_text(json.dumps({"seeds": seeds, "source": source, "rows": [row], "recipe": {"train_limit": limit}, "conclusions": ["NoLS: nothing."]}))


def test_the_ablation_shown_is_the_full_one_with_most_seeds(tmp_path):
    assert "not measured" in results.ablation(tmp_path)
    ablation_json(tmp_path / "ablation/small", [0, 1, 2], 0.20, 1000)
    ablation_json(tmp_path / "ablation/drawn", [0, 1, 2], 0.30, None, "synthetic")
    assert "not measured" in results.ablation(tmp_path)
    ablation_json(tmp_path / "ablation/one", [0], 0.90, None)
    ablation_json(tmp_path / "ablation/two", [0, 1], 0.95, None)
    assert "95.00" in results.ablation(tmp_path) and "- NoLS: nothing." in results.ablation(tmp_path)


def test_a_bench_is_named_for_its_machine(tmp_path):
    one = {"model": "simple_cnn", "batch_size": 125, "variant": "train plain", "precision": "float32", "images_per_s": 1000.0, "samples": [900.0, 1100.0],
           "ratio_to_plain": 1.0, "cold_seconds": 0.5, "bound": {"images_per_s": 4000.0}}
    source, target = tmp_path / "runs", tmp_path / "docs"
    source.mkdir(), target.mkdir()
    (source / "bench.json").write_text(json.dumps({"environment": {"hardware": "NVIDIA H200", "torch": "2.9", "git_commit": "abc"}, "results": [one]}))
    assert results.copy(source, target) == 1 and (target / "bench-nvidia-h200.json").is_file()
    assert "| simple_cnn | 125 | train plain | float32 | 1,000 | 900-1,100 | 1.00 | 25% | 0.5 |" in results.speed(target)


def test_publishing_copies_and_fills_the_readme(tmp_path, monkeypatch):
    write_run(tmp_path / "runs", "train_baseline", train_baseline.DEFAULT, 0.73, "a")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{results.MARK}\nold\n{results.END}\nafter\n")
    assert results.publish(tmp_path / "runs", tmp_path / "docs", readme) == 1
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
