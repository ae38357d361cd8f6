"""Costs against counts worked out by hand, and memory that does not depend on what ran before."""
import gc
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from common.study import cost

SIZE = (3, 8, 8)


def small() -> nn.Module:
    """Convolution, ReLU and a linear layer on 8×8 images: 216 + 2,560 weights and 5 biases."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5))


def large() -> nn.Module:
    """A wider network with BatchNorm and dropout, which ends in a 1×1 map."""
    return nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.SiLU(), nn.Conv2d(64, 128, 8), nn.BatchNorm2d(128), nn.SiLU(),
                         nn.Flatten(), nn.Dropout(0.5), nn.Linear(128, 5))


def memory(model: nn.Module, **options: object) -> list[object]:
    """All byte counts of one quick measurement."""
    result = cost.measure(model, SIZE, quick=True, **options)
    return [result[name] for name in ("activation_bytes_per_image", "train_memory", "inference_memory", "checkpoint_bytes")]


def test_counts_by_hand() -> None:
    result = cost.measure(small(), SIZE, quick=True)
    assert result["parameters"] == 216 + 2560 + 5
    assert result["checkpoint_bytes"] == 4 * (216 + 2560 + 5)
    assert result["flops_per_image"] == 2 * (8 * 64 * 27 + 512 * 5)  # a multiplication and an addition for each weight used
    assert result["activation_bytes_per_image"] == 4 * (3 * 64 + 8 * 64 + 5)  # image, ReLU's output, logits; the convolution's is freed
    batch_norm = cost.measure(large(), SIZE, quick=True)
    assert batch_norm["checkpoint_bytes"] == 4 * (batch_norm["parameters"] + 2 * (64 + 128)) + 2 * 8


def test_linear_memory_by_hand() -> None:
    model, n = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), 32
    weights, images, logits = 4 * (192 * 5 + 5), 4 * n * 192, 4 * n * 5
    result = cost.measure(model, SIZE, n, make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, foreach=False), samples=3, seconds=0)
    assert result["inference_memory"] == {"allocated": weights + images + logits, "reserved": None}
    assert weights * 2 + images + logits < result["train_memory"]["allocated"] < weights * 3 + images + logits * 6
    adam = cost.measure(model, SIZE, n, samples=3, seconds=0)
    assert adam["train_memory"]["allocated"] >= result["train_memory"]["allocated"] + 2 * weights


def test_memory_grows_with_batch_by_its_activations() -> None:
    few, many = (cost.measure(small(), SIZE, n, samples=3, seconds=0) for n in (16, 48))
    grown = many["train_memory"]["allocated"] - few["train_memory"]["allocated"]
    assert 32 * few["activation_bytes_per_image"] <= grown <= 3 * 32 * few["activation_bytes_per_image"]


def test_memory_is_the_same_alone_and_after_a_larger_model(run_script: Callable) -> None:
    code = f"import json, sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_cost as t; print(json.dumps(t.memory(t.small())))"
    alone = json.loads(run_script("-c", code).stdout)
    ballast = [torch.ones(1 << 20) for _ in range(8)]
    larger = memory(large())
    assert memory(small()) == alone
    del ballast
    assert memory(large()) == larger and memory(small()) == alone
    assert larger[1]["allocated"] > 4 * alone[1]["allocated"]


def test_autocast_saves_activations() -> None:
    wide = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1), nn.Flatten(), nn.Linear(2048, 5))
    full, half = (memory(wide, amp_dtype=dtype, memory_format=torch.channels_last)[0] for dtype in (None, torch.bfloat16))
    assert 0.5 * full <= half < 0.6 * full


def test_model_and_random_state_stay_as_they_were() -> None:
    model = large().train()
    model[0].requires_grad_(False)
    before, state = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    cost.measure(model, SIZE, quick=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training and all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()][:3] == [False, False, True]


def test_nothing_stays_behind() -> None:
    def alive() -> int:
        gc.collect()
        return sum(type(thing) in (torch.Tensor, nn.Parameter) for thing in gc.get_objects())

    model = large()
    before = alive()
    cost.measure(model, SIZE, quick=True)
    assert alive() <= before


def test_latency_percentiles_and_samples() -> None:
    result = cost.measure(small(), SIZE, 16, samples=40, seconds=60)
    assert result["latency_ms"].keys() == {"1", "16"}
    for numbers in result["latency_ms"].values():
        samples = numbers["samples"]
        assert len(samples) == 40 and min(samples) > 0
        assert min(samples) <= numbers["p50"] <= numbers["p90"] <= numbers["p99"] <= max(samples)
        assert numbers["p50"] == pytest.approx((sorted(samples)[19] + sorted(samples)[20]) / 2)
    assert json.loads(json.dumps(result)) == result


def test_latency_leaves_out_the_warm_up_and_ends_in_time() -> None:
    calls = []

    def forward() -> None:
        calls.append(time.sleep(0.002 if calls else 0.2))

    numbers = cost.latency(forward, torch.device("cpu"), samples=10, seconds=30)
    assert len(calls) == 11 and len(numbers["samples"]) == 10 and min(numbers["samples"]) >= 2
    calls.clear()
    assert len(cost.latency(forward, torch.device("cpu"), samples=1000, seconds=0)["samples"]) == 3 == len(calls) - 1


def test_quick_is_small_and_says_so() -> None:
    result = cost.measure(large(), SIZE, 64, quick=True)
    assert result["quick"] and result["batch_size"] == 4 and result["device"] == "cpu" and result["amp_dtype"] == "float32"
    assert [len(numbers["samples"]) for numbers in result["latency_ms"].values()] == [3, 3]


def test_live_bytes_count_each_storage_once_until_freed() -> None:
    with cost.LiveBytes() as counter:
        a = torch.zeros(100)
        b = a.view(10, 10)[2:].t()
        assert counter.live == 400
        c = a + 1
        assert counter.live == 800
        del a, b
        assert counter.live == 400
        c.mul_(2)
        d = c.double()
        assert counter.live == counter.peak == 1200
        del c, d
    assert (counter.live, counter.peak) == (0, 1200)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_memory_is_the_same_alone_and_after_a_larger_model() -> None:
    alone = memory(small(), device="cuda")
    larger = memory(large(), device="cuda")
    assert memory(small(), device="cuda") == alone and memory(large(), device="cuda") == larger
    assert alone[1]["reserved"] >= alone[1]["allocated"] > 4 * 3 * 2781
