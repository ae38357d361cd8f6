"""The bench measures what it says: every variant runs, ratios follow from rates, bounds from counts."""
import json
import statistics

import pytest

from common.study import bench
from common.config import Runtime


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The JSON of a very short session on SimpleCNN."""
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    session = bench._Bench(bench.Options(quick=True, json=str(path)), Runtime(device="cpu", amp="off"))
    session.turns, session.seconds = 2, 0.05
    session.run(["simple_cnn"], [50])
    return json.loads(path.read_text())


def test_every_variant_of_a_cpu_is_measured(measured):
    assert [r["variant"] for r in measured["results"]] == ["train plain", "train ours eager", "data plain", "data ours", "eval plain", "eval ours"]
    assert all(len(r["samples"]) == 2 and min(r["samples"]) > 0 and r["cold_seconds"] > 0 for r in measured["results"])
    assert {"hardware", "torch", "git_commit"} <= measured["environment"].keys()


def test_figures_are_medians_and_ratios_of_them(measured):
    rates = {r["variant"]: r["images_per_s"] for r in measured["results"]}
    for r in measured["results"]:
        assert r["images_per_s"] == pytest.approx(statistics.median(r["samples"]))
        assert r["ratio_to_plain"] == pytest.approx(r["images_per_s"] / rates[f"{r['variant'].split()[0]} plain"])


def test_the_bound_counts_the_network(measured):
    bound = measured["results"][0]["bound"]
    convolutions = 2 * (9 * 3 * 32 * 1024 + 9 * 32 * 64 * 256 + 9 * 64 * 128 * 64) + 2 * (2048 * 512 + 512 * 10)
    assert bound["flops"] == 3 * convolutions
    values = (3 + 32) * 1024 + (32 + 64) * 256 + (64 + 128) * 64 + 2048 + 512 + 512 + 10
    assert bound["bytes"] == 3 * 4 * values
    machine = measured["machine"]["float32"]
    assert bound["images_per_s"] == pytest.approx(min(machine["flops_per_s"] / bound["flops"], machine["bytes_per_s"] / bound["bytes"]))


def test_both_loops_learn_alike_from_the_same_weights(tmp_path, capsys):
    session = bench._Bench(bench.Options(json=str(tmp_path / "t.json")), Runtime(device="cpu", amp="off"))
    session.learning = (2, 30)
    session.run(["improved_cnn"], None, ["trajectory"])
    (found,) = json.loads((tmp_path / "t.json").read_text())["trajectories"]
    plain, ours = (found["losses"][loop] for loop in ("plain", "ours"))
    assert [len(run) for run in plain + ours] == [30] * 4
    for a, b in zip(plain, ours):
        assert a[0] == pytest.approx(b[0], abs=0.25) and a[0] > 2.1  # the same weights on another batch: the loss of guessing
        assert statistics.mean(b[-10:]) < statistics.mean(b[:10]) - 0.2 and statistics.mean(a[-10:]) == pytest.approx(statistics.mean(b[-10:]), abs=0.5)
    assert found["gap"]["mean"] == pytest.approx(statistics.mean(statistics.mean(b[15:]) - statistics.mean(a[15:]) for a, b in zip(plain, ours)), abs=1e-6)
    assert "the noise" in capsys.readouterr().out


def test_the_profile_adds_up(tmp_path, capsys):
    session = bench._Bench(bench.Options(json=str(tmp_path / "p.json")), Runtime(device="cpu", amp="off"))
    session.run(["improved_cnn"], [50], ["profile"])
    found = json.loads((tmp_path / "p.json").read_text())
    (profile,) = found["profiles"]
    kernels = {one["name"]: one for one in profile["kernels"]}
    assert found["results"] == [] and kernels["aten::convolution_backward"]["calls"] == kernels["aten::native_batch_norm"]["calls"] == 3
    assert profile["busy_seconds"] == pytest.approx(sum(one["seconds"] for one in profile["kernels"]))
    assert 0.5 * profile["step_seconds"] < profile["busy_seconds"] < 1.05 * profile["step_seconds"]
    assert "aten::convolution_backward" in capsys.readouterr().out
