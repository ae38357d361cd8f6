"""The result table holds what the files say, and says "not measured" of the rest."""
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import train_baseline
import train_effnet
from common import results
from common.errors import InputError


def write_run(root: Path, script: str, recipe, test: float, name: str, source: str = "CIFAR-10, official batches") -> None:
    folder = root / script / name
    folder.mkdir(parents=True)
    versions = {"hardware": "CPU x, 2 threads", "torch": "2.9", "python": "3.12", "git_commit": "abc"}
    (folder / "recipe.json").write_text(json.dumps({"script": script, "recipe": asdict(recipe)}))
    (folder / "result.json").write_text(json.dumps({"source": source, "test_top1": test, "val_top1": 0.75, "train_seconds": 90.0, "images_per_s": 1234.0,
                                                    "versions": versions, "diagnosis": ["It overfits."], "test_interval_95": [0.7, 0.8], "best_epoch": 2}))
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


def test_publishing_copies_and_fills_the_readme(tmp_path, monkeypatch):
    write_run(tmp_path / "runs", "train_baseline", train_baseline.DEFAULT, 0.73, "a")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{results.MARK}\nold\n{results.END}\nafter\n")
    found = results.find(tmp_path / "runs")
    results.copy(found, tmp_path / "docs")
    assert (tmp_path / "docs/train_baseline/a/history.csv").read_text() == "epoch,val_top1\n1,0.5\n2,0.75\n"
    results.fill_readme(readme, results.find(tmp_path / "docs"))
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text and "73.00" in text
    assert "It overfits." in results.overview(results.find(tmp_path / "docs"), tmp_path / "docs")
    readme.write_text("no marks")
    with pytest.raises(InputError, match="lacks the marks"):
        results.fill_readme(readme, found)


def test_the_readme_shows_the_published_files():
    root = Path(__file__).parent.parent
    assert results.table(results.find(root / "docs" / "results")) in (root / "README.md").read_text()
