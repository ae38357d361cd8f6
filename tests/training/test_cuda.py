"""What only a GPU can show: the captured step equals the eager one, and everything random stays
random inside a graph."""
import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run as run_process
from drawn import AUGMENTED, PLAIN, do, drawn_splits, make_run, make_step, new_model
from torch import nn

from common.config import Runtime, Stage
from common.data.augment import Preprocess
from common.errors import RunError
from common.models.build import freeze_backbone
from common.training.graph import accelerate
from common.training.loop import fit, predict, train_one_epoch
from common.training.runtime import compile_problem

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]
GPU = torch.device("cuda")
PLAINLY = replace(PLAIN, model="improved_cnn", batch_size=40)
SMALL = replace(PLAINLY, cutmix=0.5, **AUGMENTED)
ADAMW = replace(SMALL, optimizer="adamw", lr=1e-3)


def captured(recipe=SMALL, model=None, amp=None, compiles=False):
    """(step on the GPU, the replay of its graph)."""
    step = make_step(recipe, model, amp, "cuda")
    do_step = accelerate(step, compiles)
    assert do_step is not step, "it was not captured"
    return step, do_step


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
def test_captured_equals_eager_over_20_steps(recipe, amp, tolerance):
    eager, (step, replay) = make_step(recipe, amp=amp, device="cuda"), captured(recipe, amp=amp)
    states = eager.model.state_dict().values(), step.model.state_dict().values()
    for a, b in zip(*states, strict=True):
        assert torch.equal(a, b), "capturing left a trace in the weights"
    for epoch in range(3):
        sums = [float(do(one, 7, recipe.lr, epoch, do_step)[0].sum())
                for one, do_step in ((eager, eager), (step, replay))]
        assert sums[0] == pytest.approx(sums[1], rel=tolerance)


class Recorder(nn.Module):
    """A linear classifier that keeps a copy of what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 32 * 32, 10)
        self.register_buffer("seen", torch.zeros(40, 3, 32, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.copy_(x)
        return self.fc(x.flatten(1))


def test_every_replay_draws_fresh_augmentation():
    step, replay = captured(model=Recorder().cuda())
    views = []
    for _ in range(2):  # the same seed must give the same augmentation
        step.start_epoch(1, [0.0] * step.steps)
        show_the_same_images(step)
        for _ in range(4):
            replay()
            views.append(step.model.seen.clone())
    for i in range(4):
        assert torch.equal(views[i], views[4 + i])
        assert not any(torch.allclose(views[i], views[j]) for j in range(i))


def test_dropout_is_fresh_in_every_replay():
    step, replay = captured(replace(PLAINLY, model="se_resnet18", stem="imagenet"))
    step.start_epoch(1, [0.0] * step.steps)
    show_the_same_images(step)
    for _ in range(4):
        replay()
    assert len({round(loss, 5) for loss in step.losses[:4].tolist()}) > 1


def test_learning_rate_is_obeyed_inside_the_graph():
    step, replay = captured(replace(SMALL, momentum=0.0))
    step.start_epoch(0, [0.0, 0.1] + [0.0] * (step.steps - 2))
    weights = [step.model.head.weight.detach().clone()]
    for _ in range(3):
        replay()
        weights.append(step.model.head.weight.detach().clone())
    moved = [not torch.equal(a, b) for a, b in zip(weights, weights[1:])]
    assert moved == [False, True, False]
    assert {float(group["lr"]) for group in step.optimizer.param_groups} == {0.0}


@pytest.mark.parametrize("compiles", [False, True])
def test_freeze_and_unfreeze_moves_the_backbone(compiles):
    if compiles and (problem := compile_problem(torch.device("cuda"))):
        pytest.skip(problem)
    model = new_model(SMALL, "cuda")
    before = copy.deepcopy(model.state_dict())
    backbone = {key for key in before if not key.startswith("head")}
    # BatchNorm takes their gradient away, but for rounding.
    noise = {f"blocks.{i}.0.bias" for i in range(3)}
    for frozen in (True, False):
        if frozen:
            freeze_backbone(model, SMALL.model)
        else:
            model.requires_grad_(True)
        step, replay = captured(model=model, compiles=compiles)
        _, after = do(step, 3, do_step=replay)
        still = {key for key in before if torch.equal(before[key], after[key])}
        assert still - noise == (backbone - noise if frozen else set())


def test_fp16_skips_the_update_on_overflow():
    step, replay = captured(amp=torch.float16)
    step.start_epoch(0, [0.01] * step.steps)
    replay()
    before = [p.detach().clone() for p in step.model.parameters()]
    step.scaler._scale.fill_(1e38)
    replay()
    assert all(torch.equal(a, b) for a, b in zip(before, step.model.parameters()))
    assert float(step.scaler._scale) == pytest.approx(5e37)
    step.scaler._scale.fill_(1024.0)
    replay()
    assert not torch.equal(before[0], next(step.model.parameters()))


def test_evaluation_on_a_gpu_agrees_with_a_cpu():
    model, logits = new_model(PLAINLY), []
    with torch.no_grad():
        model.head.weight.mul_(50)
    for device in ("cpu", "cuda"):
        prepare = Preprocess([0.5] * 3, [0.25] * 3, PLAINLY, torch.device(device))
        images = drawn_splits(device).val.images
        logits.append(predict(model.to(device), images, prepare).cpu())
    assert logits[0].std(0).max() > 0.4, "the images must matter"
    torch.testing.assert_close(*logits, rtol=2e-2, atol=5e-2)


class Syncing(Recorder):
    """A classifier that cannot be captured, since the host reads what it computes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The default generator has begun its part of the capture.
        x = nn.functional.dropout(x, 0.5, self.training)
        return super().forward(x) * (1 if float(x.sum()) else 2)


def test_what_cannot_be_captured_stays_eager(capsys):
    """A failed capture leaves nothing behind: weights, stream, both generators; and the eager run
    is what it would have been."""
    losses = []
    for tries in (False, True):
        torch.manual_seed(0)  # the same weights both times
        step = make_step(SMALL, Syncing().cuda(), device="cuda")
        stream = torch.cuda.current_stream()
        before = copy.deepcopy(step.model.fc.state_dict())
        if tries:
            do_step = accelerate(step, False)
            assert capsys.readouterr().out.startswith("eager steps: t")
            assert do_step is step and torch.cuda.current_stream() == stream
            after = step.model.fc.state_dict()
            assert all(torch.equal(value, before[key]) for key, value in after.items())
        losses.append(float(do(step, 3)[0].sum()))
    assert losses[0] > 0 and losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert torch.rand(3, device="cuda").shape == (3,)


def test_non_finite_loss_is_found_after_the_epoch():
    step, replay = captured()
    with pytest.raises(RunError, match="not finite in epoch 1/1, step"):
        train_one_epoch(step, replay, 0, [1e30] * step.steps, lambda where: None, "Epoch 1/1")


def test_cpu_and_gpu_agree_on_a_step():
    gpu, cpu = make_step(device="cuda"), make_step()
    cpu.model.load_state_dict({key: v.cpu() for key, v in gpu.model.state_dict().items()})
    for step in (gpu, cpu):
        do(step, step.steps, epoch=3)
    assert torch.equal(gpu.order.cpu(), cpu.order)
    np.testing.assert_allclose(gpu.losses.cpu(), cpu.losses, rtol=5e-3)


def script(cwd: Path, *words: str) -> str:
    """What a command prints that ends well."""
    done = run_process(cwd, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_smoke_run_and_analysis_on_the_gpu(tmp_path):
    train = ("train_effnet.py", "--resize", "2", "--smoke", "--compile", "off")
    analyze = ("analyze.py", "--ckpt", "best.pt", "--faithfulness", "50")
    for command in (train, analyze):
        said = script(tmp_path, *command)
        assert "eager steps" not in said and "eager evaluation" not in said
    (file,) = tmp_path.glob("runs/train_effnet/*/result.json")
    result = json.loads(file.read_text())
    assert result["peak_memory_bytes"] > 0 and "CPU" not in result["versions"]["hardware"]


def test_a_compiled_run_on_the_gpu(tmp_path):
    said = script(tmp_path, "train_improved.py", "--smoke", "--compile", "on")
    assert "not compiled" not in said and "eager steps" not in said


def test_deterministic_twice_is_identical_on_the_gpu(tmp_path):
    results = []
    for name in "ab":
        script(tmp_path, "train_improved.py", "--smoke", "--deterministic",
               "--name", name)
        file = tmp_path / "runs" / "train_improved" / name / "result.json"
        results.append(json.loads(file.read_text()))
    for key in ("test_loss", "test_top1", "val_loss", "clean_train_loss"):
        assert results[0][key] == results[1][key], key


def test_the_bench_measures_every_variant(tmp_path):
    script(tmp_path, "-m", "common.study.bench", "--quick", "--compile", "--models", "simple_cnn",
           "--batch-sizes", "125", "--json", "bench.json")
    content = json.loads((tmp_path / "bench.json").read_text())
    found = {one["variant"]: one for one in content["results"]}
    assert {"train plain", "train ours eager", "train ours captured", "train ours compiled",
            "data plain", "data ours"} <= found.keys()
    assert all(one["images_per_s"] > 0 for one in found.values())


def test_out_of_memory_names_a_smaller_batch(tmp_path):
    recipe = replace(SMALL, model="efficientnet_b2", batch_size=500, resize=16)
    # So many images that an epoch has its twenty steps of 500, which take hundreds of gigabytes.
    few = drawn_splits("cuda")
    many = replace(few, train=few.train.take(np.arange(10_000) % len(few.train)))
    run = make_run(tmp_path, recipe, many, device="cuda")
    with pytest.raises(RunError, match="out of memory at --batch-size 500: try --batch-size 250"):
        fit(run, Stage("train", 1, 0.01))


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


def test_resume_on_the_gpu_goes_on_where_it_stopped(tmp_path):
    def train(folder: str, epochs: int):
        run = make_run(tmp_path / folder, ADAMW, device="cuda")
        if (run.folder / "last.pt").exists():
            run.restore()
        fit(run, Stage("train", epochs, 1e-3))
        return [row["train_loss"] for row in run.history]

    train("parts", 2)
    again = train("parts", 4)
    assert len(again) == 4 and again == pytest.approx(train("straight", 4), rel=1e-2)
    assert again[-1] < again[0], "it learns"
