"""What only a GPU can show: the captured step equals the eager one, and everything random stays
random inside a graph."""
import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common import toolchain
from common.config import Recipe, Runtime, Stage
from common.data import synthetic
from common.data.augment import Augmentation, Preprocess
from common.data.splits import make_splits
from common.errors import RunError
from common.models.build import architecture, build, freeze_all_but
from common.study import bench
from common.training.fit import fit, predict, train_one_epoch
from common.training.graph import captured_forward, compile_model
from common.training.run import Run, card, load_model
from common.training.runtime import amp_dtype, pick_device
from common.training.step import TrainStep, make_optimizer, set_train_mode
from conftest import ROOT

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]
GPU = torch.device("cuda")
SPEC = Augmentation(4, True, 15, 0.2, 0.2, 0.5)
SMALL = Recipe(model="improved_cnn", batch_size=50, lr=1e-2)
ADAMW = replace(SMALL, optimizer="adamw", lr=1e-3)
# Parts of the names that libraries give to kernels of convolutions and matrix products, by GPU.
KERNELS = ("gemm", "conv", "fprop", "cutlass", "nvjet", "xmma")


@pytest.fixture(scope="module")
def splits():
    """500 train / 100 val / 100 test drawn images."""
    drawn = *synthetic.draw(60, seed=0), *synthetic.draw(10, seed=1)
    return make_splits(*drawn, synthetic.CLASSES, "synthetic", val_size=100).to(GPU)


def new_model(name="improved_cnn", **arguments):
    """A network on the GPU, as the scripts put it there."""
    return build(name, **arguments).to(GPU, memory_format=torch.channels_last)


def prepare_for(splits, resize=1, spec=Augmentation()):
    return Preprocess(splits.mean, splits.std, resize, spec, GPU)


def make_step(splits, recipe=SMALL, amp=None, model=None, spec=SPEC):
    """A step on the GPU, not captured yet."""
    torch.manual_seed(0)
    model = model or new_model(recipe.model, stem=recipe.stem)
    set_train_mode(model)
    prepare = prepare_for(splits, recipe.resize, spec)
    optimizer = make_optimizer(model, recipe, GPU)
    return TrainStep(model, splits.train, prepare, optimizer, recipe.batch_size,
                     recipe.label_smoothing, amp)


def show_the_same_images(step):
    """Let every step of the epoch see the first one's images."""
    step.order.copy_(step.order[:1].expand_as(step.order).clone())


@pytest.mark.parametrize("recipe, amp, tolerance", [
    (SMALL, None, 1e-3),
    (SMALL, torch.bfloat16, 3e-2),
    (SMALL, torch.float16, 3e-2),
    (ADAMW, None, 1e-3),
    (replace(SMALL, model="se_resnet18", nesterov=True), torch.bfloat16, 5e-2),
    (replace(ADAMW, model="efficientnet_b2", resize=2, label_smoothing=0.1), torch.bfloat16, 5e-2),
])
def test_captured_equals_eager_over_20_steps(splits, recipe, amp, tolerance):
    eager, captured = make_step(splits, recipe, amp), make_step(splits, recipe, amp)
    assert captured.capture() is None
    states = eager.model.state_dict().values(), captured.model.state_dict().values()
    for a, b in zip(*states, strict=True):
        assert torch.equal(a, b), "capturing left a trace in the weights"
    losses = [[], []]
    for epoch in range(3):
        for step, seen in ((eager, losses[0]), (captured, losses[1])):
            step.start_epoch(epoch, [recipe.lr] * step.steps)
            for _ in range(min(7, step.steps)):
                step()
            seen.append(float(step.losses.sum()))
    np.testing.assert_allclose(losses[0], losses[1], rtol=tolerance)


class Recorder(nn.Module):
    """A linear classifier that keeps a copy of what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 32 * 32, 10)
        self.register_buffer("seen", torch.zeros(50, 3, 32, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.copy_(x)
        return self.fc(x.flatten(1))


def test_every_replay_draws_fresh_augmentation(splits):
    step = make_step(splits, model=Recorder().cuda())
    assert step.capture() is None
    step.start_epoch(1, [0.0] * step.steps)
    show_the_same_images(step)
    views = []
    for _ in range(4):
        step()
        views.append(step.model.seen.clone())
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(views[i], views[j])
    step.start_epoch(1, [0.0] * step.steps)
    show_the_same_images(step)
    step()
    assert torch.equal(step.model.seen, views[0]), "the same seed must give the same augmentation"


def test_dropout_is_fresh_in_every_replay(splits):
    recipe = replace(SMALL, model="se_resnet18", stem="imagenet", lr=0.0)
    step = make_step(splits, recipe, spec=Augmentation())
    assert step.capture() is None
    step.start_epoch(1, [0.0] * step.steps)
    show_the_same_images(step)
    for _ in range(4):
        step()
    assert len({round(loss, 5) for loss in step.losses[:4].tolist()}) > 1


def test_learning_rate_is_obeyed_inside_the_graph(splits):
    step = make_step(splits, replace(SMALL, momentum=0.0))
    assert step.capture() is None
    step.start_epoch(0, [0.0, 0.1] + [0.0] * (step.steps - 2))
    weight = step.model.head.weight
    start = weight.detach().clone()
    step()
    assert torch.equal(weight, start)
    step()
    moved = weight.detach().clone()
    assert not torch.equal(moved, start)
    step()
    assert torch.equal(weight, moved)
    groups = step.optimizer.param_groups
    assert [float(group["lr"]) for group in groups] == [0.0] * len(groups)


@pytest.mark.parametrize("compiled", [False, True])
def test_freeze_and_unfreeze_moves_the_backbone(splits, compiled):
    torch.manual_seed(0)
    model = new_model()
    if compiled:
        if problem := toolchain.compile_ready("cuda"):
            pytest.skip(problem)
        compile_model(model)
    before = copy.deepcopy(model.state_dict())
    backbone = {key for key in before if not key.startswith("head")}
    # BatchNorm takes their gradient away, but for rounding.
    noise = {f"blocks.{i}.0.bias" for i in range(3)}
    for frozen in (True, False):
        if frozen:
            freeze_all_but(model, "head")
        else:
            model.requires_grad_(True)
        step = make_step(splits, model=model)
        assert step.capture() is None
        step.start_epoch(0, [0.01] * step.steps)
        for _ in range(3):
            step()
        after = model.state_dict()
        still = {key for key in before if torch.equal(before[key], after[key])}
        assert still - noise == (backbone - noise if frozen else set())


def test_fp16_skips_the_update_on_overflow(splits):
    step = make_step(splits, amp=torch.float16)
    assert step.capture() is None
    step.start_epoch(0, [0.01] * step.steps)
    step()
    before = [p.detach().clone() for p in step.model.parameters()]
    step.scaler._scale.fill_(1e38)
    step()
    assert all(torch.equal(a, b) for a, b in zip(before, step.model.parameters()))
    assert float(step.scaler._scale) == pytest.approx(5e37)
    step.scaler._scale.fill_(1024.0)
    step()
    assert not torch.equal(before[0], next(step.model.parameters()))


def test_captured_evaluation_equals_eager(splits):
    torch.manual_seed(0)
    model, prepare = new_model("se_resnet18").train(), prepare_for(splits, resize=2)
    images = splits.val.images
    with torch.no_grad():
        for _ in range(10):
            model(prepare.clean(images))  # BatchNorm learns its statistics
        model.fc.weight.mul_(20)

    def logits(forward=None):
        """Of 100 images: two full batches and a short one."""
        return predict(model, images, prepare, 40, torch.bfloat16, forward=forward)

    forward = captured_forward(model, prepare, torch.bfloat16, images[:40])
    assert not model.training
    eager, captured = logits(), logits(forward)
    assert eager.std(0).max() > 0.4, "the images must matter"
    torch.testing.assert_close(captured, eager, rtol=2e-2, atol=1e-1)
    with torch.no_grad():
        model.fc.bias.add_(5)
    torch.testing.assert_close(logits(forward), captured + 5, rtol=2e-2, atol=1e-1)


def test_a_step_that_cannot_be_captured_stays_eager(splits):
    """A failed capture leaves nothing behind: weights, stream, both generators; and the eager run
    is what it would have been."""
    class Syncing(Recorder):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            # The default generator has begun its part of the capture.
            x = nn.functional.dropout(x, 0.5)
            float(x.sum())
            return super().forward(x)

    losses = []
    for captured in (False, True):
        torch.manual_seed(0)  # the same weights both times
        step, stream = make_step(splits, model=Syncing().cuda()), torch.cuda.current_stream()
        before = copy.deepcopy(step.model.fc.state_dict())
        if captured:
            problem = step.capture()
            assert problem and "\n" not in problem and step.graph is None
            assert torch.cuda.current_stream() == stream
            after = step.model.fc.state_dict()
            assert all(torch.equal(value, before[key]) for key, value in after.items())
        step.start_epoch(0, [0.01] * step.steps)
        for _ in range(3):
            step()
        losses.append(float(step.losses.sum()))
    assert losses[0] > 0 and losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_evaluation_that_cannot_be_captured_stays_eager(splits, capsys):
    class Syncing(Recorder):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.flatten(1)) * (1 if float(x.sum()) else 2)

    model, stream = Syncing().cuda(), torch.cuda.current_stream()
    batch = splits.val.images[:50]
    forward = captured_forward(model, prepare_for(splits), None, batch)
    assert "eager evaluation" in capsys.readouterr().out
    assert torch.cuda.current_stream() == stream
    assert forward(batch).shape == (50, 10)
    assert torch.rand(3, device="cuda").shape == (3,)


def test_non_finite_loss_is_found_after_the_epoch(splits):
    step = make_step(splits)
    assert step.capture() is None
    with pytest.raises(RunError, match="not finite in epoch 1/1, step"):
        train_one_epoch(step, 0, [1e30] * step.steps, lambda where: None, "Epoch 1/1")


def test_cpu_and_gpu_agree_on_a_step(splits):
    recipe, device = replace(SMALL, model="simple_cnn"), torch.device("cpu")
    gpu = make_step(splits, recipe, spec=Augmentation())
    model = build("simple_cnn").to(memory_format=torch.channels_last)
    weights = gpu.model.state_dict().items()
    model.load_state_dict({key: value.cpu() for key, value in weights})
    prepare = Preprocess(splits.mean, splits.std, 1, Augmentation(), device)
    optimizer = make_optimizer(model, recipe, device)
    cpu = TrainStep(model, splits.to("cpu").train, prepare, optimizer, 50)
    for step in (gpu, cpu):
        step.start_epoch(3, [0.01] * step.steps)
        for _ in range(step.steps):
            step()
    assert torch.equal(gpu.order.cpu(), cpu.order)
    np.testing.assert_allclose(gpu.losses.cpu(), cpu.losses, rtol=5e-3)


def test_bf16_is_chosen_where_the_gpu_has_it():
    has_bf16 = torch.cuda.get_device_capability() >= (8, 0)
    expected = torch.bfloat16 if has_bf16 else torch.float16
    assert amp_dtype(Runtime(), pick_device(Runtime()), "efficientnet_b2") == expected


def script(cwd: Path, *words: str) -> str:
    """What a command prints that ends well."""
    done = subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True,
                          timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_smoke_run_and_analysis_on_the_gpu(tmp_path):
    train = ("train_effnet.py", "--resize", "2", "--smoke", "--compile", "off")
    analyze = ("analyze.py", "--ckpt", "best.pt", "--faithfulness", "50")
    for name, *flags in (train, analyze):
        said = script(tmp_path, str(ROOT / name), *flags)
        assert "eager steps" not in said and "eager evaluation" not in said
    (file,) = tmp_path.glob("runs/train_effnet/*/result.json")
    result = json.loads(file.read_text())
    assert result["peak_memory_bytes"] > 0 and "CPU" not in result["versions"]["hardware"]


def test_a_compiled_run_on_the_gpu(tmp_path):
    said = script(tmp_path, str(ROOT / "train_improved.py"), "--smoke", "--compile", "on")
    assert "not compiled" not in said and "eager steps" not in said


def test_deterministic_twice_is_identical_on_the_gpu(tmp_path):
    results = []
    for name in "ab":
        script(tmp_path, str(ROOT / "train_improved.py"), "--smoke", "--deterministic",
               "--name", name)
        file = tmp_path / "runs" / "train_improved" / name / "result.json"
        results.append(json.loads(file.read_text()))
    for key in ("test_loss", "test_top1", "val_loss", "clean_train_loss"):
        assert results[0][key] == results[1][key], key


def test_the_bench_measures_every_variant(tmp_path):
    script(tmp_path, "-m", "common.study.bench", "--quick", "--compile", "--parts", *bench.PARTS,
           "--models", "simple_cnn", "--batch-sizes", "125", "--json", "bench.json")
    content = json.loads((tmp_path / "bench.json").read_text())
    found = {one["variant"]: one for one in content["results"]}
    assert {"train plain", "train ours eager", "train ours captured", "train ours compiled",
            "data plain", "data ours"} <= found.keys()
    assert all(one["images_per_s"] > 0 for one in found.values())


def test_the_profile_names_the_kernels_of_a_captured_step(tmp_path):
    script(tmp_path, "-m", "common.study.bench", "--parts", "profile", "--models", "simple_cnn",
           "--batch-sizes", "125", "--json", "bench.json")
    (profile,) = json.loads((tmp_path / "bench.json").read_text())["profiles"]
    rows = [line.lower() for line in profile["table"]]
    assert any(kernel in row for row in rows for kernel in KERNELS)
    (total,) = [row.split()[-1] for row in rows if row.startswith("self cuda time total:")]
    number, unit = total.rstrip("mus"), total.lstrip("0123456789.")
    busy = float(number) * {"s": 1, "ms": 1e-3, "us": 1e-6}[unit] / profile["steps"]
    assert 0 < busy < 1.1 * profile["step_seconds"]


def test_out_of_memory_names_a_smaller_batch(splits, tmp_path):
    recipe = replace(SMALL, model="efficientnet_b2", batch_size=500, resize=16)
    # So many images that an epoch has its twenty steps of 500, which take hundreds of gigabytes.
    many = replace(splits, train=splits.train.take(np.arange(10_000) % len(splits.train)))
    prepare = prepare_for(many, 16, SPEC)
    run = new_run(tmp_path, recipe, many, prepare)
    with pytest.raises(RunError, match="out of memory at --batch-size 500: try --batch-size 250"):
        fit(new_model("efficientnet_b2"), many, Stage("train", 1, 0.01), recipe, prepare, run)


def test_peak_memory_of_a_run_leaves_out_the_one_before(tmp_path, monkeypatch):
    import train_baseline
    import train_effnet

    monkeypatch.chdir(tmp_path)
    peaks = []
    small, large = (train_baseline, "simple_cnn", 1), (train_effnet, "efficientnet_b2", 2)
    # The first also pays for cuDNN's choice of algorithms.
    for module, model, resize in (small, small, large, small):
        recipe = replace(module.RECIPES["default"], **module.SMOKE[model], resize=resize)
        name = f"run{len(peaks)}"
        module.train(recipe, Runtime(run_name=name))
        result = Path("runs", module.__name__, name, "result.json").read_text()
        peaks.append(json.loads(result)["peak_memory_bytes"])
    assert peaks[3] == pytest.approx(peaks[1], rel=0.1) and peaks[2] > 1.5 * peaks[1]


def new_run(folder: Path, recipe, splits, prepare) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    arch = architecture(recipe.model, num_classes=10, input_size=32 * recipe.resize)
    probe = prepare.clean(splits.val.images[:4]).cpu()
    return Run(folder, card(arch, splits, recipe, splits.mean, splits.std, probe, {}))


def test_resume_on_the_gpu_goes_on_where_it_stopped(splits, tmp_path):
    prepare = prepare_for(splits, spec=SPEC)

    def train(folder: Path, epochs: int, resumed: bool = False) -> Run:
        torch.manual_seed(0)
        model, run = new_model(), new_run(folder, ADAMW, splits, prepare)
        if resumed:
            run.restore(model)
        fit(model, splits, Stage("train", epochs, 1e-3), ADAMW, prepare, run)
        return run

    straight = train(tmp_path / "straight", 4)
    train(tmp_path / "parts", 2)
    again = train(tmp_path / "parts", 4, resumed=True)
    assert len(again.history) == 4
    for a, b in zip(straight.history, again.history):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-2)


def test_fit_on_the_gpu_learns(splits, tmp_path):
    prepare = prepare_for(splits)
    run = new_run(tmp_path, SMALL, splits, prepare)
    stage = Stage("train", 8, 0.02)
    fit(new_model(), splits, stage, SMALL, prepare, run, amp=torch.bfloat16)
    assert run.history[-1]["train_loss"] < run.history[0]["train_loss"] - 0.3
    load_model(tmp_path / "best.pt", "cuda")
