"""Costs against counts worked out by hand, and memory that does not depend on what ran before."""
import gc
import json

import pytest
import torch
from torch import nn

from common.study import cost

SIZE = (3, 8, 8)
CPU = torch.device("cpu")


def small() -> nn.Module:
    """Convolution, ReLU and a linear layer on 8×8 images: 216 + 2,560 weights and 5 biases."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(),
                         nn.Linear(512, 5))


def large() -> nn.Module:
    """A wider network with BatchNorm and dropout, which ends in a 1×1 map."""
    return nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.SiLU(),
                         nn.Conv2d(64, 128, 8), nn.BatchNorm2d(128), nn.SiLU(),
                         nn.Flatten(), nn.Dropout(0.5), nn.Linear(128, 5))


def memory(model: nn.Module, n: int = 4, device: str = "cpu") -> dict[str, float]:
    """All megabytes of one quick measurement."""
    costs = cost.measure(model, SIZE, n, torch.device(device), quick=True)
    return {name: value for name, value in costs.items() if name.endswith("_mb")}


def test_linear_memory_by_hand() -> None:
    model, n = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), 32
    weights, images, logits = 4 * (192 * 5 + 5), 4 * n * 192, 4 * n * 5

    def prepare() -> tuple:
        return model, torch.rand(n, *SIZE)

    @torch.inference_mode()
    def infer(model: nn.Module, images: torch.Tensor) -> None:
        model(images)

    found = cost.peak_memory("inference", prepare, infer, CPU)
    assert found == {"inference_memory_mb": (weights + images + logits) / 1e6}
    trained = memory(model)["train_memory_mb"] * 1e6
    # Weights, gradients, AdamW's two moments, images.
    assert trained >= 4 * weights + 4 * 4 * 192


def test_memory_is_that_of_the_model_whatever_else_is_alive() -> None:
    alone = memory(small())
    ballast = [torch.ones(1 << 20) for _ in range(8)]
    larger = memory(large())
    assert memory(small()) == alone
    del ballast
    assert memory(large()) == larger and memory(small()) == alone
    assert larger["train_memory_mb"] > 4 * alone["train_memory_mb"]


def test_the_model_stays_as_it_was() -> None:
    model = large()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    memory(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and all(p.grad is None for p in model.parameters())


def test_nothing_stays_behind() -> None:
    def alive() -> int:
        gc.collect()
        return sum(type(thing) in (torch.Tensor, nn.Parameter) for thing in gc.get_objects())

    model = large()
    before = alive()
    memory(model)
    assert alive() <= before


def test_percentiles_are_of_the_samples_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    clock = [0.0]
    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])

    def forward() -> None:
        calls.append(1)
        clock[0] += 1.0 if len(calls) <= 10 else 0.001 * (len(calls) - 10)  # a slow warm-up

    found = cost.latency("1", forward, seconds=60)
    assert len(calls) == 10 + 100
    expected = {"latency_ms_1": 50.5, "latency_ms_1_p90": 90.1, "latency_ms_1_p99": 99.01}
    assert found == pytest.approx(expected)
    calls.clear()
    cost.latency("1", forward, seconds=0)
    assert len(calls) == 10 + 3  # out of time: three samples suffice


def test_quick_is_small_and_the_result_is_json() -> None:
    found = cost.measure(large(), SIZE, 64, CPU, torch.bfloat16, quick=True)
    assert found["batch_n"] == 4 and found["memory_method"] == cost.MEMORY_METHOD["cpu"]
    assert found["latency_ms_1"] <= found["latency_ms_1_p99"] and found["latency_ms_n"] > 0
    assert json.loads(json.dumps(found)) == found


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
    assert alone["train_memory_mb"] > 4 * 3 * 2781 / 1e6
    assert larger["train_memory_mb"] > 4 * alone["train_memory_mb"]
