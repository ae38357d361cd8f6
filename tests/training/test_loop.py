"""The step against plain PyTorch; and what `fit` promises: learning, stopping, freezing, resuming,
one line where it cannot go on."""
import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drawn import (AUGMENTED, PLAIN, do, drawn_splits, equal, make_run, make_step, new_model)
from torch import nn

from common.config import Stage
from common.data.augment import Preprocess
from common.errors import RunError
from common.models.build import freeze_backbone
from common.models.launches import training_loss
from common.training import loop
from common.training.loop import eval_batch_size, evaluate, fit, make_optimizer, predict

CPU = torch.device("cpu")
MODELS = ("simple_cnn", "improved_cnn", "se_resnet18", "efficientnet_b2")
BN = replace(PLAIN, model="improved_cnn")
TIMES = dict.fromkeys(("seconds", "images_per_s"))
TRAIN = Stage("train", PLAIN.epochs, PLAIN.lr)


def take(train_images, val_images):
    """Some of the drawn images."""
    splits = drawn_splits()
    return replace(splits, train=splits.train.take(np.asarray(train_images)),
                   val=splits.val.take(np.asarray(val_images)))


def trained(folder, recipe=PLAIN, stage=TRAIN, **of_run):
    """A run after one stage."""
    run = make_run(folder, recipe, **of_run)
    fit(run, stage)
    return run


@pytest.mark.parametrize("recipe, rtol", [(PLAIN, 1e-4), (BN, 1e-2)])
def test_step_equals_a_plain_loop(recipe, rtol):
    """Same order, data and rates, torch's unfused SGD: an epoch's losses and weights by hand.
    BatchNorm enlarges differences in the last bits."""
    step = make_step(replace(recipe, weight_decay=1e-3, decay_all=True))
    twin, train, splits = copy.deepcopy(step.model), step.split, drawn_splits()
    step.start_epoch(7, [6e-3 / (i + 1) for i in range(step.steps)])
    for _ in range(step.steps):
        step()
    assert sorted(step.order.flatten().tolist()) == list(range(len(train)))

    optimizer = torch.optim.SGD(twin.parameters(), momentum=0.9, weight_decay=1e-3, fused=False,
                                foreach=False)
    losses, correct = [], 0
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (splits.mean, splits.std))
    for i, batch in enumerate(step.order):
        optimizer.param_groups[0]["lr"] = 6e-3 / (i + 1)
        images, labels = (train.images[batch].float() / 255 - mean) / std, train.labels[batch]
        logits = twin(images)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        correct += int((logits.argmax(1) == labels).sum())
    assert step.losses.tolist() == pytest.approx(losses, rel=rtol)
    assert step.top1() * len(train) == pytest.approx(correct, abs=1)
    for a, b in zip(step.model.state_dict().values(), twin.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=10 * rtol, atol=rtol / 3)


def test_the_step_mixes_images_and_labels_alike():
    step = make_step(replace(PLAIN, flip=True, cutmix=1.0))
    twin = copy.deepcopy(step.model)
    losses, _ = do(step, 1)
    batch = step.split.take(step.order[0])
    images, pasted = step.prepare.augment(batch.images, torch.Generator().manual_seed(7))
    expected = training_loss(twin(images), batch.labels, pasted=pasted)
    torch.testing.assert_close(losses[0], expected.detach())
    assert not torch.isclose(training_loss(twin(images), batch.labels), expected, rtol=1e-3)


def test_weight_decay_spares_norms_and_biases_unless_asked():
    model, recipe = new_model(BN), replace(BN, weight_decay=0.1)
    groups = make_optimizer(model, recipe, CPU).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    matrices = [m.weight for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert decayed == set(map(id, matrices))
    (everything,) = make_optimizer(model, replace(recipe, decay_all=True), CPU).param_groups
    assert len(everything["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("name", MODELS)
def test_first_loss_is_that_of_guessing(name):
    recipe = replace(PLAIN, model=name)
    prepare = Preprocess([0.5] * 3, [0.25] * 3, recipe, CPU)
    loss, _ = evaluate(new_model(recipe), drawn_splits().val, prepare)
    assert loss == pytest.approx(np.log(10), abs=0.25)


def test_val_twice_gives_equal_logits_whatever_the_batch(monkeypatch):
    recipe, images = replace(BN, **AUGMENTED), drawn_splits().val.images
    model, prepare = new_model(recipe).train(), Preprocess([0.5] * 3, [0.25] * 3, recipe, CPU)
    logits = []
    for size in (33, 33, 100):
        monkeypatch.setattr(loop, "EVAL_PIXELS", size * 32 * 32)
        logits.append(predict(model, images, prepare))
    first, second, whole = logits
    assert torch.equal(first, second) and first.shape == (100, 10)
    torch.testing.assert_close(first, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size, resize, batch", [
    (32, 1, 500), (32, 2, 500), (64, 3, 55), (32, 16, 7), (1024, 16, 1)])
def test_evaluations_memory_follows_the_pixels(size, resize, batch):
    prepare = Preprocess([0.5] * 3, [0.25] * 3, replace(PLAIN, resize=resize), CPU)
    assert eval_batch_size(torch.empty(0, 3, size, size), prepare) == batch


def test_val_is_evaluated_in_such_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "EVAL_PIXELS", 40 * 64 * 64)
    run, sizes = make_run(tmp_path, replace(PLAIN, resize=2)), []
    run.model.register_forward_pre_hook(
        lambda model, inputs: None if model.training else sizes.append(len(inputs[0])))
    fit(run, replace(TRAIN, epochs=1))
    assert sizes == [40, 40, 20]


def test_64_images_can_be_learned_by_heart(tmp_path):
    few = take(range(64), range(10))
    run = trained(tmp_path, replace(BN, batch_size=16), Stage("train", 12, 0.005), splits=few)
    assert evaluate(run.model, few.train, run.prepare)[1] > 0.98


def test_shuffled_train_labels_teach_nothing(tmp_path):
    train = drawn_splits().train
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    shuffled = replace(drawn_splits(), train=replace(train, labels=train.labels[order]))
    lost, honest = (trained(tmp_path / name, BN, replace(TRAIN, epochs=3), splits=splits).history
                    for name, splits in (("lost", shuffled), ("honest", drawn_splits())))
    # Chance is 0.10, with a standard deviation of 0.03 on 100 images.
    assert lost[-1]["val_top1"] < 0.22 < honest[-1]["val_top1"]


def test_test_labels_never_steer_training(tmp_path):
    few = take(range(100), range(50))
    labels, images = few.test.labels.flip(0), 255 - few.test.images
    other = replace(few, test=replace(few.test, labels=labels, images=images))
    a, b = trained(tmp_path / "a", splits=few), trained(tmp_path / "b", splits=other)
    assert equal(a.best_weights, b.best_weights) and a.best["epoch"] == b.best["epoch"]


def test_class_weights_reach_the_loss_and_val_stays_plain(tmp_path):
    """A tenth of one class: with weights the first epoch's loss counts its images ten times."""
    labels = drawn_splits().train.labels.numpy()
    rare = np.flatnonzero(labels == 0)[:4]
    lopsided = take(np.sort(np.r_[rare, np.flatnonzero(labels != 0)]), range(100))
    rows = []
    for weighted in (False, True):
        recipe = replace(PLAIN, class_weights=weighted)
        model = new_model(recipe)
        with torch.no_grad():
            model.head.bias[0] = -3.0  # only the rare class is lost
        stage = Stage("train", 1, 0.0)
        rows += trained(tmp_path / str(weighted), recipe, stage, splits=lopsided,
                        model=model).history
    plain, balanced = rows
    assert balanced["train_loss"] > plain["train_loss"] + 0.1
    assert balanced["val_loss"] == plain["val_loss"]


def test_nan_loss_stops_and_names_the_step(tmp_path):
    with pytest.raises(RunError, match=r"not finite in epoch 1/2, step \d+: a lower --lr"):
        trained(tmp_path, stage=replace(TRAIN, lr=1e30))
    assert not (tmp_path / "best.pt").exists() and (tmp_path / "last.pt").exists()


def failing(error):
    """A network whose forward pass raises."""
    def fail(*_):
        raise error

    model = new_model()
    model.register_forward_pre_hook(fail)
    return model


@pytest.mark.parametrize("error", [
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), MemoryError()])
@pytest.mark.parametrize("batch_size, remedy", [
    (20, "--batch-size 20: try --batch-size 10"), (2, "--batch-size 2: use smaller images"),
])
def test_a_want_of_memory_is_one_line_that_helps(error, batch_size, remedy, tmp_path):
    with pytest.raises(RunError, match=f"^out of memory at {remedy}"):
        trained(tmp_path, replace(PLAIN, batch_size=batch_size), model=failing(error))
    assert (tmp_path / "last.pt").exists()


def test_other_errors_are_not_called_a_want_of_memory(tmp_path):
    with pytest.raises(RuntimeError, match="illegal memory access"):
        trained(tmp_path, model=failing(RuntimeError("CUDA error: an illegal memory access")))


def test_the_time_left_is_said_once_a_stage(tmp_path, capsys):
    trained(tmp_path, splits=take(range(40), range(10)))
    printed = capsys.readouterr().out.splitlines()
    said = [line.startswith("this takes about ") for line in printed]
    assert said == [True, False, False]


def test_early_stopping(tmp_path, monkeypatch):
    values = iter([0.3, 0.5, 0.4, 0.5, 0.45, 0.6])
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: (1.0, next(values)))
    stage, few = Stage("train", 6, 0.01, patience=3), take(range(40), range(10))
    run = trained(tmp_path, stage=stage, splits=few)
    assert [row["epoch"] for row in run.history] == [1, 2, 3, 4, 5] and run.best["epoch"] == 2
    again = make_run(tmp_path, splits=few)
    again.restore()
    fit(again, stage)
    assert again.history == run.history, "a stage that gave up is over"


def test_frozen_backbone_stands_still_and_then_moves(tmp_path):
    """Weights and BatchNorm statistics bit-identical through stage 1, moving in stage 2."""
    run = make_run(tmp_path, BN)
    before = copy.deepcopy(run.model.state_dict())

    def still():
        after = run.model.state_dict()
        return {key for key in before if torch.equal(before[key], after[key])}

    freeze_backbone(run.model, BN.model)
    fit(run, Stage("head", 1, 0.01))
    assert set(before) - still() == {"head.weight", "head.bias"}
    run.model.requires_grad_(True)
    fit(run, Stage("finetune", 1, 0.01))
    assert still() == set()
    assert [row["stage"] for row in run.history] == ["head", "finetune"]


@pytest.mark.parametrize("name, length, stop_after", [
    ("improved_cnn", 2, 1), ("improved_cnn", 2, 2), ("improved_cnn", 2, 3),
    ("efficientnet_b2", 1, 1)])
def test_resume_is_exact(name, length, stop_after, tmp_path):
    """Two stages, stopped anywhere: weights and history as if never stopped; with every
    augmentation, dropout, and B2's drop-connect."""
    recipe = replace(PLAIN, model=name, optimizer="adamw", batch_size=50, **AUGMENTED)
    few = take(range(0, 400, 4 if name == "improved_cnn" else 25), range(0, 100, 5))

    def both(folder, stop=2 * length, resume=False):
        run = make_run(folder, recipe, few, new_model(replace(recipe, seed=99 * resume)))
        if resume:
            run.restore()
            assert len(run.history) == stop_after
        if name == "improved_cnn":  # which has no dropout of its own
            run.model.head.register_forward_pre_hook(
                lambda _, inputs: F.dropout(inputs[0], 0.5, run.model.training))
        freeze_backbone(run.model, name)
        fit(run, Stage("head", min(stop, length), 1e-3))
        run.model.requires_grad_(True)
        fit(run, Stage("finetune", max(0, stop - length), 1e-3))
        return run

    straight = both(tmp_path / "straight")
    both(tmp_path / "parts", stop_after)
    parts = both(tmp_path / "parts", resume=True)
    assert equal(straight.model.state_dict(), parts.model.state_dict())
    assert equal(straight.best_weights, parts.best_weights)
    assert [row | TIMES for row in straight.history] == [row | TIMES for row in parts.history]
