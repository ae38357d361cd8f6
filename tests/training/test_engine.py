"""The step against a plain PyTorch loop, and what `fit` promises: learning, stopping, freezing, resuming."""
import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from common.data.augment import Preprocess
from common.training.fit import evaluate, fit, predict
from common.training.step import TrainStep, make_optimizer
from common.models.build import HEADS, architecture, build, freeze_all_but
from common.training.run import Run, card
from common.data import synthetic
from common.data.augment import Augmentation
from common.config import Recipe, Stage
from common.data.splits import make_splits
from common.errors import RunError

CPU = torch.device("cpu")
PLAIN = Recipe(model="simple_cnn", epochs=2, batch_size=20, lr=1e-2)


@pytest.fixture(scope="module")
def splits():
    """400 train / 100 val / 100 test drawn images."""
    return make_splits(*synthetic.draw(50, seed=0), *synthetic.draw(10, seed=1), synthetic.CLASSES, "synthetic", val_size=100)


def prepare_for(splits, spec=Augmentation(), resize=1):
    return Preprocess(splits.mean, splits.std, resize, spec, CPU)


def arch_of(recipe, splits):
    return architecture(recipe.model, num_classes=len(splits.classes), stem=recipe.stem, bn_momentum=recipe.bn_momentum)


def new_model(recipe, splits, seed=0):
    torch.manual_seed(seed)
    return build(**arch_of(recipe, splits))


def new_run(folder: Path, recipe, splits, prepare) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    return Run(folder, recipe, card(arch_of(recipe, splits), splits, recipe, splits.mean, splits.std, prepare.clean(splits.val.images[:4]), {}))


def train(model, splits, recipe, folder, stage=None, run=None, spec=Augmentation()):
    prepare = prepare_for(splits, spec)
    run = run or new_run(folder, recipe, splits, prepare)
    fit(model, splits, stage or Stage("train", recipe.epochs, recipe.lr, recipe.schedule), recipe, prepare, run)
    return run


def equal_states(a, b):
    return all(torch.equal(a[key], b[key]) for key in a) and a.keys() == b.keys()


def test_step_equals_a_plain_loop(splits):
    """Same order, same data, torch's unfused SGD: the same losses and weights as an epoch written out by hand."""
    recipe = replace(PLAIN, weight_decay=1e-3, decay_all=True)
    model, prepare = new_model(recipe, splits), prepare_for(splits)
    twin = copy.deepcopy(model)
    step = TrainStep(model, splits.train, prepare, make_optimizer(model, recipe, CPU), recipe.batch_size)
    step.start_epoch(7, [0.01] * step.steps)
    order = step.order.clone()
    assert sorted(order.flatten().tolist()) == list(range(len(splits.train)))
    for _ in range(step.steps):
        step()

    optimizer = torch.optim.SGD(twin.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3, fused=False, foreach=False)
    losses, correct = [], []
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (splits.mean, splits.std))
    for batch in order:
        images, labels = (splits.train.images[batch].float() / 255 - mean) / std, splits.train.labels[batch]
        logits = twin(images)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        correct.append(int((logits.argmax(1) == labels).sum()))
    assert step.losses.tolist() == pytest.approx(losses, rel=1e-4)
    assert sum(step.hits.tolist()) == pytest.approx(sum(correct), abs=1)
    for a, b in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name, resize", [("simple_cnn", 1), ("improved_cnn", 1), ("se_resnet18", 1), ("efficientnet_b2", 2)])
def test_nothing_up_to_the_loss_waits_for_a_gpu_or_leaves_it(name, resize):
    """Augmentation, network and loss on tensors that claim to lie on a GPU and hold no data: a read-back raises, a CPU tensor among them, too."""
    with FakeTensorMode():
        with torch.device("cuda", 0):  # for what the test makes, not for what it tests
            images, labels, model = torch.zeros(8, 3, 32, 32, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64), build(name)
        prepare = Preprocess((0.5,) * 3, (0.25,) * 3, resize, Augmentation(4, True, 15, 0.2, 0.2), images.device)
        logits = model(prepare.train(images, None))
        loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
        assert loss.is_cuda and logits.shape == (8, 10)
        with pytest.raises(DataDependentOutputException):
            float(loss.detach())


def test_learning_rate_follows_the_table(splits):
    model = new_model(PLAIN, splits)
    optimizer = make_optimizer(model, PLAIN, CPU)
    step = TrainStep(model, splits.train, prepare_for(splits), optimizer, 20)
    step.start_epoch(0, [0.1 / (i + 1) for i in range(step.steps)])
    seen = []
    for _ in range(3):
        step()
        seen.append(float(optimizer.param_groups[0]["lr"]))
    assert seen == pytest.approx([0.1, 0.05, 0.1 / 3])


def test_weight_decay_spares_norms_and_biases_unless_asked():
    model = build("improved_cnn")
    recipe = replace(PLAIN, weight_decay=0.1)
    decayed = {id(p) for group in make_optimizer(model, recipe, CPU).param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(m.weight) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    everything = make_optimizer(model, replace(recipe, decay_all=True), CPU).param_groups
    assert len(everything) == 1 and len(everything[0]["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("name", list(HEADS))
def test_first_loss_is_that_of_guessing(name, splits):
    torch.manual_seed(0)
    loss, _ = evaluate(build(name).eval(), splits.val, prepare_for(splits))
    assert loss == pytest.approx(np.log(10), abs=0.25)


@pytest.mark.parametrize("name, lr, epochs", [("simple_cnn", 0.01, 50), ("improved_cnn", 0.01, 20)])
def test_64_images_can_be_learned_by_heart(name, lr, epochs, splits, tmp_path):
    few = replace(splits, train=splits.train.take(np.arange(64)), val=splits.val.take(np.arange(10)))
    recipe = replace(PLAIN, model=name, epochs=epochs, batch_size=16, lr=lr)
    model = new_model(recipe, splits)
    train(model, few, recipe, tmp_path)
    assert evaluate(model, few.train, prepare_for(splits))[1] > 0.99


def test_shuffled_train_labels_teach_nothing(splits, tmp_path):
    shuffled = splits.train.labels[torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0))]
    recipe = replace(PLAIN, model="improved_cnn", epochs=4)
    run = train(new_model(recipe, splits), replace(splits, train=replace(splits.train, labels=shuffled)), recipe, tmp_path)
    assert run.history[-1]["val_top1"] < 0.22  # chance is 0.10 with a standard deviation of 0.03 on 100 images
    honest = train(new_model(recipe, splits), splits, recipe, tmp_path / "honest")
    assert honest.history[-1]["val_top1"] > run.history[-1]["val_top1"] + 0.05


def test_test_labels_never_steer_training(splits, tmp_path):
    recipe = replace(PLAIN, epochs=2)
    scrambled = replace(splits, test=replace(splits.test, labels=splits.test.labels.flip(0), images=255 - splits.test.images))
    a, b = (train(new_model(recipe, splits), data, recipe, tmp_path / name) for data, name in ((splits, "a"), (scrambled, "b")))
    assert equal_states(a.best_weights, b.best_weights) and a.best["epoch"] == b.best["epoch"]


def test_val_twice_gives_equal_logits(splits):
    model, prepare = new_model(replace(PLAIN, model="improved_cnn"), splits), prepare_for(splits, Augmentation(4, True, 15, 0.2, 0.5))
    model.train()
    first, second = (predict(model, splits.val.images, prepare, batch_size=33) for _ in range(2))
    assert torch.equal(first, second) and first.shape == (100, 10)
    torch.testing.assert_close(first, predict(model, splits.val.images, prepare, batch_size=100), rtol=1e-4, atol=1e-5)


def test_nan_loss_stops_and_names_the_step(splits, tmp_path):
    recipe = replace(PLAIN, lr=1e30, epochs=3)
    with pytest.raises(RunError, match=r"not finite in epoch 1/3, step \d+: lower --lr"):
        train(new_model(recipe, splits), splits, recipe, tmp_path)
    assert not (tmp_path / "best.pt").exists() and (tmp_path / "last.pt").exists()


def test_out_of_memory_suggests_a_batch_size(splits, tmp_path, monkeypatch):
    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(TrainStep, "_step", full)
    with pytest.raises(RunError, match="--batch-size 20: try --batch-size 10"):
        train(new_model(PLAIN, splits), splits, PLAIN, tmp_path)


def test_early_stopping(splits, tmp_path, monkeypatch):
    values = iter([0.3, 0.5, 0.4, 0.5, 0.45, 0.6])
    monkeypatch.setattr("common.training.fit.evaluate", lambda *_, **__: (1.0, next(values)))
    run = train(new_model(PLAIN, splits), splits, PLAIN, tmp_path, Stage("train", 6, 0.01, patience=3))
    assert [row["epoch"] for row in run.history] == [1, 2, 3, 4, 5] and run.best["epoch"] == 2


def test_frozen_backbone_stands_still_and_then_moves(splits, tmp_path):
    """Weights and BatchNorm statistics bit-identical through stage 1, moving in stage 2."""
    recipe = replace(PLAIN, model="improved_cnn", epochs=1)
    model = new_model(recipe, splits)
    before = copy.deepcopy(model.state_dict())
    freeze_all_but(model, "head")
    run = train(model, splits, recipe, tmp_path, Stage("head", 1, 0.01))
    after = model.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"head.weight", "head.bias"}
    model.requires_grad_(True)
    train(model, splits, recipe, tmp_path, Stage("finetune", 1, 0.01), run)
    assert {key for key in before if torch.equal(before[key], model.state_dict()[key])} == set()
    assert [row["stage"] for row in run.history] == ["head", "finetune"]


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_resume_is_exact(stop_after, splits, tmp_path):
    """Two stages of two epochs, stopped anywhere (the stage boundary too): weights and history as if never stopped."""
    spec, recipe = Augmentation(4, True, 10, 0.2, 0.2), replace(PLAIN, model="improved_cnn", optimizer="adamw", batch_size=50)

    def whole(folder, run=None, model=None, epochs=(2, 2)):
        model = model or new_model(recipe, splits)
        model.head.register_forward_pre_hook(lambda _, inputs: F.dropout(inputs[0], 0.5, model.training))  # global generator
        freeze_all_but(model, "head")
        run = fit(model, small, recipe, folder, Stage("head", epochs[0], 1e-3), run, spec)
        model.requires_grad_(True)
        if epochs[1]:
            fit(model, small, recipe, folder, Stage("finetune", epochs[1], 1e-3, "constant"), run, spec)
        return model, run

    small = replace(splits, train=splits.train.take(np.arange(0, 400, 4)), val=splits.val.take(np.arange(0, 100, 5)))
    model, run = whole(tmp_path / "straight")
    _, part = whole(tmp_path / "parts", epochs=(min(2, stop_after), max(0, stop_after - 2)))
    resumed = new_run(tmp_path / "parts", recipe, small, prepare_for(small, spec))
    fresh = new_model(recipe, small, seed=99)
    resumed.restore(fresh)
    assert len(resumed.history) == stop_after
    again, resumed = whole(tmp_path / "parts", resumed, fresh)
    assert equal_states(model.state_dict(), again.state_dict())
    assert equal_states(run.best_weights, resumed.best_weights)
    for a, b in zip(run.history, resumed.history, strict=True):
        assert {k: v for k, v in a.items() if k not in ("seconds", "images_per_s")} == {k: v for k, v in b.items() if k not in ("seconds", "images_per_s")}
