"""What `fit` promises: learning, stopping, freezing, resuming, one line where it cannot go on."""
import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.config import Recipe, Stage
from common.data import synthetic
from common.data.augment import Augmentation, Preprocess
from common.data.splits import make_splits
from common.errors import RunError
from common.models.build import HEADS, architecture, build, freeze_all_but
from common.training.fit import evaluate, fit, predict, train_one_epoch
from common.training.run import Run, card
from common.training.step import TrainStep, make_optimizer

CPU = torch.device("cpu")
PLAIN = Recipe(model="simple_cnn", epochs=2, batch_size=20, lr=1e-2)
TIMES = ("seconds", "images_per_s")


@pytest.fixture(scope="module")
def splits():
    """400 train / 100 val / 100 test drawn images."""
    drawn = *synthetic.draw(50, seed=0), *synthetic.draw(10, seed=1)
    return make_splits(*drawn, synthetic.CLASSES, "synthetic", val_size=100)


def prepare_for(splits, spec=Augmentation()):
    return Preprocess(splits.mean, splits.std, 1, spec, CPU)


def arch_of(recipe, splits):
    return architecture(recipe.model, num_classes=len(splits.classes), stem=recipe.stem,
                        bn_momentum=recipe.bn_momentum)


def new_model(recipe, splits, seed=0):
    torch.manual_seed(seed)
    return build(**arch_of(recipe, splits))


def new_run(folder: Path, recipe, splits, prepare) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    probe = prepare.clean(splits.val.images[:4])
    described = card(arch_of(recipe, splits), splits, recipe, splits.mean, splits.std, probe, {})
    return Run(folder, described)


def train(model, splits, recipe, folder, stage=None, run=None, spec=Augmentation()):
    prepare = prepare_for(splits, spec)
    run = run or new_run(folder, recipe, splits, prepare)
    stage = stage or Stage("train", recipe.epochs, recipe.lr, recipe.schedule)
    fit(model, splits, stage, recipe, prepare, run)
    return run


def equal_states(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def take(splits, train_images, val_images):
    return replace(splits, train=splits.train.take(np.asarray(train_images)),
                   val=splits.val.take(np.asarray(val_images)))


@pytest.mark.parametrize("name", list(HEADS))
def test_first_loss_is_that_of_guessing(name, splits):
    torch.manual_seed(0)
    loss, _ = evaluate(build(name).eval(), splits.val, prepare_for(splits))
    assert loss == pytest.approx(np.log(10), abs=0.25)


@pytest.mark.parametrize("name, lr, epochs", [
    ("simple_cnn", 0.01, 30), ("improved_cnn", 0.003, 20)])
def test_64_images_can_be_learned_by_heart(name, lr, epochs, splits, tmp_path):
    few = take(splits, range(64), range(10))
    recipe = replace(PLAIN, model=name, epochs=epochs, batch_size=16, lr=lr)
    model = new_model(recipe, splits)
    train(model, few, recipe, tmp_path)
    assert evaluate(model, few.train, prepare_for(splits))[1] > 0.99


def test_shuffled_train_labels_teach_nothing(splits, tmp_path):
    generator = torch.Generator().manual_seed(0)
    shuffled = splits.train.labels[torch.randperm(len(splits.train), generator=generator)]
    scrambled = replace(splits, train=replace(splits.train, labels=shuffled))
    recipe = replace(PLAIN, model="improved_cnn", epochs=4)
    run = train(new_model(recipe, splits), scrambled, recipe, tmp_path)
    top1 = run.history[-1]["val_top1"]
    assert top1 < 0.22  # chance is 0.10 with a standard deviation of 0.03 on 100 images
    honest = train(new_model(recipe, splits), splits, recipe, tmp_path / "honest")
    assert honest.history[-1]["val_top1"] > top1 + 0.05


def test_test_labels_never_steer_training(splits, tmp_path):
    test = replace(splits.test, labels=splits.test.labels.flip(0), images=255 - splits.test.images)
    a = train(new_model(PLAIN, splits), splits, PLAIN, tmp_path / "a")
    b = train(new_model(PLAIN, splits), replace(splits, test=test), PLAIN, tmp_path / "b")
    assert equal_states(a.best_weights, b.best_weights) and a.best["epoch"] == b.best["epoch"]


def test_class_weights_reach_the_loss_and_val_stays_plain(splits, tmp_path):
    """A tenth of one class: with weights the first epoch's loss counts its images ten times."""
    labels = splits.train.labels.numpy()
    rare = np.flatnonzero(labels == 0)[:4]
    lopsided = take(splits, np.sort(np.r_[rare, np.flatnonzero(labels != 0)]), range(100))
    losses = []
    for weighted in (False, True):
        recipe = replace(PLAIN, epochs=1, lr=0.0, class_weights=weighted)
        model = new_model(recipe, splits)
        with torch.no_grad():
            model.head.bias[0] = -3.0  # only the rare class is lost
        run = train(model, lopsided, recipe, tmp_path / str(weighted))
        losses.append((run.history[0]["train_loss"], run.history[0]["val_loss"]))
    (plain, plain_val), (balanced, balanced_val) = losses
    assert balanced > plain + 0.1 and balanced_val == plain_val


def test_val_twice_gives_equal_logits(splits):
    model = new_model(replace(PLAIN, model="improved_cnn"), splits)
    prepare = prepare_for(splits, Augmentation(4, True, 15, 0.2, 0.5))
    model.train()
    images = splits.val.images
    first, second = (predict(model, images, prepare, batch_size=33) for _ in range(2))
    assert torch.equal(first, second) and first.shape == (100, 10)
    whole = predict(model, images, prepare, batch_size=100)
    torch.testing.assert_close(first, whole, rtol=1e-4, atol=1e-5)


def test_nan_loss_stops_and_names_the_step(splits, tmp_path):
    recipe = replace(PLAIN, lr=1e30, epochs=3)
    with pytest.raises(RunError, match=r"not finite in epoch 1/3, step \d+: lower --lr"):
        train(new_model(recipe, splits), splits, recipe, tmp_path)
    assert not (tmp_path / "best.pt").exists() and (tmp_path / "last.pt").exists()


@pytest.mark.parametrize("words", [
    "CUDA out of memory. Tried to allocate 2.00 GiB.",
    "[enforce fail at alloc_cpu.cpp] data. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 4096 bytes.",
])
def test_out_of_memory_suggests_a_batch_size(words, splits, tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError(words)

    monkeypatch.setattr(TrainStep, "_step", full)
    with pytest.raises(RunError, match="--batch-size 20: try --batch-size 10"):
        train(new_model(PLAIN, splits), splits, PLAIN, tmp_path)


def test_other_errors_are_not_called_a_want_of_memory(splits, tmp_path, monkeypatch):
    def wrong(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(TrainStep, "_step", wrong)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        train(new_model(PLAIN, splits), splits, PLAIN, tmp_path)


def test_the_time_left_is_said_once_a_stage(splits, tmp_path, capsys):
    train(new_model(PLAIN, splits), splits, PLAIN, tmp_path)
    printed = capsys.readouterr().out.splitlines()
    said = [line.startswith("this takes about ") for line in printed]
    assert said == [True, False, False]


def test_early_stopping(splits, tmp_path, monkeypatch):
    values = iter([0.3, 0.5, 0.4, 0.5, 0.45, 0.6])
    monkeypatch.setattr("common.training.fit.evaluate", lambda *_, **__: (1.0, next(values)))
    stage = Stage("train", 6, 0.01, patience=3)
    run = train(new_model(PLAIN, splits), splits, PLAIN, tmp_path, stage)
    assert [row["epoch"] for row in run.history] == [1, 2, 3, 4, 5] and run.best["epoch"] == 2
    train(new_model(PLAIN, splits), splits, PLAIN, tmp_path, stage, run)
    assert len(run.history) == 5, "a stage that gave up is over"


def test_frozen_backbone_stands_still_and_then_moves(splits, tmp_path):
    """Weights and BatchNorm statistics bit-identical through stage 1, moving in stage 2."""
    recipe = replace(PLAIN, model="improved_cnn", epochs=1)
    model = new_model(recipe, splits)
    before = copy.deepcopy(model.state_dict())

    def still():
        after = model.state_dict()
        return {key for key in before if torch.equal(before[key], after[key])}

    freeze_all_but(model, "head")
    run = train(model, splits, recipe, tmp_path, Stage("head", 1, 0.01))
    assert set(before) - still() == {"head.weight", "head.bias"}
    model.requires_grad_(True)
    train(model, splits, recipe, tmp_path, Stage("finetune", 1, 0.01), run)
    assert still() == set()
    assert [row["stage"] for row in run.history] == ["head", "finetune"]


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_resume_is_exact(stop_after, splits, tmp_path):
    """Two stages of two epochs, stopped anywhere: weights and history as if never stopped."""
    spec = Augmentation(4, True, 10, 0.2, 0.2)
    recipe = replace(PLAIN, model="improved_cnn", optimizer="adamw", batch_size=50)
    small = take(splits, range(0, 400, 4), range(0, 100, 5))

    def whole(folder, run=None, model=None, epochs=(2, 2)):
        model = model or new_model(recipe, splits)
        model.head.register_forward_pre_hook(  # draws from the global generator
            lambda _, inputs: F.dropout(inputs[0], 0.5, model.training))
        freeze_all_but(model, "head")
        run = train(model, small, recipe, folder, Stage("head", epochs[0], 1e-3), run, spec)
        model.requires_grad_(True)
        if epochs[1]:
            stage = Stage("finetune", epochs[1], 1e-3)
            train(model, small, recipe, folder, stage, run, spec)
        return model, run

    model, run = whole(tmp_path / "straight")
    whole(tmp_path / "parts", epochs=(min(2, stop_after), max(0, stop_after - 2)))
    resumed = new_run(tmp_path / "parts", recipe, small, prepare_for(small, spec))
    fresh = new_model(recipe, small, seed=99)
    resumed.restore(fresh)
    assert len(resumed.history) == stop_after
    again, resumed = whole(tmp_path / "parts", resumed, fresh)
    assert equal_states(model.state_dict(), again.state_dict())
    assert equal_states(run.best_weights, resumed.best_weights)
    for a, b in zip(run.history, resumed.history, strict=True):
        assert {**a, **dict.fromkeys(TIMES)} == {**b, **dict.fromkeys(TIMES)}


def test_resume_is_exact_with_drop_connect(splits, tmp_path):
    """The masks of all blocks are drawn at once, from a generator seeded by the epoch."""
    recipe = replace(PLAIN, model="efficientnet_b2", optimizer="adamw", batch_size=8)
    few = take(splits, range(0, 400, 25), range(0, 100, 20))
    stage, states = Stage("train", 2, 1e-3), []
    for folder, epochs in (("straight", (2,)), ("parts", (1, 2))):
        for last in epochs:
            model = new_model(recipe, few)
            run = new_run(tmp_path / folder, recipe, few, prepare_for(few))
            if last != epochs[0]:
                run.restore(model)
            train(model, few, recipe, tmp_path, replace(stage, epochs=last), run)
        states.append(model.state_dict())
    assert equal_states(*states)


def test_an_epoch_can_be_run_by_itself(splits):
    model, prepare = new_model(PLAIN, splits), prepare_for(splits)
    step = TrainStep(model, splits.train, prepare, make_optimizer(model, PLAIN, CPU), 20)
    heard = []
    loss, top1 = train_one_epoch(step, 1, [0.01] * step.steps, heard.append, "Epoch 1/1")
    assert loss == pytest.approx(np.log(10), abs=0.25) and 0 <= top1 <= 1
    assert heard[-1] == "in epoch 1/1, step 20" and len(heard) == step.steps
