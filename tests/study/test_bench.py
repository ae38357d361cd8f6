"""The bench measures what it says: variants that this machine can run, ratios of medians,
and a first look that never stops."""
import json
import statistics
from dataclasses import replace

import pytest
import torch

import train_effnet
import train_improved
from common.config import Runtime
from common.data.augment import augmentation
from common.models.build import build
from common.study import bench

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def case():
    """ImprovedCNN on a few drawn images."""
    return bench.make_case("improved_cnn", 20, Runtime(amp="off"), CPU, per_class=50)


def test_every_variant_of_a_cpu_is_measured_and_compared_with_the_plain_one(case):
    results = bench.rates(case, compiled=False, turns=2, seconds=0.05)
    medians = {one["variant"]: one["images_per_s"] for one in results}
    assert list(medians) == ["train plain", "train ours eager", "data plain", "data ours"]
    for one in results:
        assert len(one["samples"]) == 2 and min(one["samples"]) > 0 and one["cold_seconds"] > 0
        assert one["images_per_s"] == statistics.median(one["samples"])
        plain = medians[one["variant"].split()[0] + " plain"]
        assert one["ratio_to_plain"] == pytest.approx(one["images_per_s"] / plain)
        about = one["model"], one["batch_size"], one["precision"]
        assert about == ("improved_cnn", 20, "float32")


@pytest.mark.parametrize("name", bench.NETWORKS)
def test_every_network_is_measured_with_the_augmentation_and_size_of_its_script(name):
    script = {"efficientnet_b2": replace(train_effnet.DEFAULT, resize=2),
              "se_resnet18": train_improved.RESNET}.get(name, train_improved.CNN)
    ours = bench.make_case(name, 125, Runtime(), CPU, per_class=20).recipe
    for key in ("optimizer", "resize"):
        assert getattr(ours, key) == getattr(script, key)
    assert augmentation(ours) == augmentation(script) and build(ours.model)


def test_a_variant_that_fails_is_named_and_leaves_the_others(case, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("no such kernel")
        yield

    monkeypatch.setattr(bench, "our_train", fail)
    results = bench.rates(case, compiled=False, turns=1, seconds=0.01)
    assert [one["variant"] for one in results] == ["train plain", "data plain", "data ours"]
    assert "train ours eager: not measured (no such kernel)" in capsys.readouterr().out


def test_the_plain_data_side_gives_what_the_network_takes(case):
    images, labels = next(bench.plain_data(case))
    assert images.shape == (20, 3, 32, 32) and images.dtype == torch.float32
    assert labels.shape == (20,) and 0 <= labels.min() <= labels.max() < 10


def test_the_command_writes_what_it_measured(tmp_path, call, monkeypatch):
    monkeypatch.setattr(bench, "rates",
                        lambda case, *_: [{"batch_size": case.recipe.batch_size}])
    flags = "--device cpu --amp off --models simple_cnn --batch-sizes 20 50 --json deep/bench.json"
    call("common.study.bench", *flags.split())
    written = json.loads((tmp_path / "deep/bench.json").read_text())
    assert {"hardware", "torch", "git_commit"} <= written["environment"].keys()
    assert [one["batch_size"] for one in written["results"]] == [20, 50]
