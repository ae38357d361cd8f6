"""Device, precision and the decision to compile, for machines that need not be here."""
import platform

import pytest
import torch

from common.config import Runtime
from common.errors import InputError
from common.training import runtime

CPU, GPU = torch.device("cpu"), torch.device("cuda")
LONG, SHORT = runtime.COMPILE_PAYS_AFTER, runtime.COMPILE_PAYS_AFTER - 1


@pytest.mark.parametrize("flag, device, images, expected", [
    ("auto", CPU, LONG, False), ("auto", GPU, SHORT, False), ("auto", GPU, LONG, True),
    ("on", CPU, 1, True), ("on", GPU, 1, True), ("off", GPU, LONG, False),
])
def test_when_to_compile(flag, device, images, expected, monkeypatch):
    monkeypatch.setattr(runtime, "compile_problem", lambda device: None)
    assert runtime.wants_compile(Runtime(compile=flag), device, images) is expected


def test_without_a_compiler_one_line_and_eager(monkeypatch, capsys):
    def refuse(function):
        raise RuntimeError("no compiler\nand much more")

    monkeypatch.setattr(torch, "compile", refuse)
    assert not runtime.wants_compile(Runtime(compile="on"), CPU, 1)
    assert capsys.readouterr().out == (
        "not compiled: no compiler; python -m common.toolchain tells more\n")


@pytest.mark.parametrize("bf16, amp, device, model, expected", [
    (True, "auto", CPU, "simple_cnn", torch.bfloat16),
    (False, "auto", CPU, "simple_cnn", None),
    (True, "auto", CPU, "efficientnet_b2", None),
    (True, "auto", GPU, "efficientnet_b2", torch.bfloat16),
    (False, "auto", GPU, "efficientnet_b2", torch.float16),
    (False, "bf16", CPU, "efficientnet_b2", torch.bfloat16),
    (True, "off", GPU, "simple_cnn", None),
    (True, "fp16", GPU, "simple_cnn", torch.float16),
])
def test_precision(bf16, amp, device, model, expected, monkeypatch):
    monkeypatch.setattr(runtime, "_cpu_has_bf16", lambda: bf16)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    assert runtime.amp_dtype(Runtime(amp=amp), device, model) is expected


def test_what_a_machine_lacks_is_one_line(monkeypatch):
    with pytest.raises(InputError, match="--amp fp16 needs a GPU"):
        runtime.amp_dtype(Runtime(amp="fp16"), CPU, "simple_cnn")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="--device cuda: this torch sees no CUDA GPU"):
        runtime.pick_device(Runtime(device="cuda"))
    assert runtime.pick_device(Runtime()) == CPU


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_freed_memory_comes_back_without_page_faults():
    resource = pytest.importorskip("resource")
    runtime.set_up(Runtime(device="cpu"), seed=0)
    faults = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.empty(2**26, dtype=torch.uint8).fill_(1)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert faults[-1] < 1000  # 64 MiB are 16,384 pages, ten times over
