"""The training step against plain PyTorch, and that what it saves in launches changes nothing."""
import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from common.config import Recipe
from common.data import synthetic
from common.data.augment import Augmentation, Preprocess
from common.data.splits import make_splits
from common.models.build import build, freeze_all_but
from common.training import step as step_module
from common.training.step import (TrainStep, epoch_order, fit_batch_size, fit_lr, make_optimizer,
                                  set_train_mode, training_loss)

CPU = torch.device("cpu")
PLAIN = Recipe(model="simple_cnn", batch_size=20, lr=1e-2)
STRONG = Augmentation(4, True, 15, 0.2, 0.2, 0.5)


@pytest.fixture(scope="module")
def splits():
    """400 train / 100 val / 100 test drawn images."""
    drawn = *synthetic.draw(50, seed=0), *synthetic.draw(10, seed=1)
    return make_splits(*drawn, synthetic.CLASSES, "synthetic", val_size=100)


def make_step(splits, recipe=PLAIN, amp=None, spec=Augmentation(), freeze=None, **arguments):
    torch.manual_seed(0)
    model = build(recipe.model, input_size=32 * recipe.resize)
    model.to(memory_format=torch.channels_last)
    if freeze:
        freeze_all_but(model, freeze)
    set_train_mode(model)
    prepare = Preprocess(splits.mean, splits.std, recipe.resize, spec, CPU)
    return TrainStep(model, splits.train, prepare, make_optimizer(model, recipe, CPU),
                     recipe.batch_size, recipe.label_smoothing, amp, **arguments)


def do(step, steps, lr=1e-2):
    """(losses, state dict) after some steps of epoch 7."""
    step.start_epoch(7, [lr] * step.steps)
    for _ in range(steps):
        step()
    return step.losses[:steps], step.model.state_dict()


def test_step_equals_a_plain_loop(splits):
    """Same order and data, torch's unfused SGD: losses and weights of an epoch written by hand."""
    recipe = replace(PLAIN, weight_decay=1e-3, decay_all=True)
    step = make_step(splits, recipe)
    twin = copy.deepcopy(step.model)
    do(step, step.steps, lr=3e-3)
    assert sorted(step.order.flatten().tolist()) == list(range(len(splits.train)))

    optimizer = torch.optim.SGD(twin.parameters(), lr=3e-3, momentum=0.9, weight_decay=1e-3,
                                fused=False, foreach=False)
    losses, correct = [], 0
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (splits.mean, splits.std))
    for batch in step.order:
        images = (splits.train.images[batch].float() / 255 - mean) / std
        labels = splits.train.labels[batch]
        logits = twin(images)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        correct += int((logits.argmax(1) == labels).sum())
    assert step.losses.tolist() == pytest.approx(losses, rel=1e-4)
    assert step.top1() * len(splits.train) == pytest.approx(correct, abs=1)
    for a, b in zip(step.model.parameters(), twin.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=3e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, torch.tensor([0.2, 1.0, 3.0])])
def test_loss_equals_torchs(smoothing, weights):
    torch.manual_seed(0)
    logits, labels = torch.randn(16, 3, requires_grad=True), torch.randint(3, (16,))
    ours = training_loss(logits, labels, smoothing, weights)
    theirs = F.cross_entropy(logits, labels, weights, label_smoothing=smoothing)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_a_mixed_image_learns_both_labels_by_their_shares():
    torch.manual_seed(0)
    logits, labels, share = torch.randn(16, 3), torch.randint(3, (16,)), torch.rand(16)
    own, other = (F.cross_entropy(logits, some, label_smoothing=0.1, reduction="none")
                  for some in (labels, labels.roll(1)))
    expected = ((1 - share) * own + share * other).mean()
    torch.testing.assert_close(training_loss(logits, labels, 0.1, mixed=share), expected)


def test_the_step_mixes_images_and_labels_alike(splits):
    step = make_step(splits, spec=Augmentation(flip=True, cutmix=1.0))
    twin = copy.deepcopy(step.model)
    losses, _ = do(step, 1)
    generator = torch.Generator().manual_seed(7)
    batch = splits.train.take(step.order[0])
    images, share = step.prepare.train(batch.images, generator)
    expected = training_loss(twin(images), batch.labels, mixed=share)
    torch.testing.assert_close(losses[0], expected.detach())
    unmixed = training_loss(twin(images), batch.labels)
    assert not torch.isclose(unmixed, expected, rtol=1e-3)


@pytest.mark.parametrize("name, resize, optimizer, freeze", [
    ("improved_cnn", 1, "sgd", None),
    ("improved_cnn", 1, "adamw", "head"),
    ("se_resnet18", 1, "sgd", None),
    ("efficientnet_b2", 2, "adamw", None),
])
def test_weights_cast_together_equal_autocasts_to_the_bit(name, resize, optimizer, freeze, splits,
                                                          monkeypatch):
    recipe = Recipe(model=name, batch_size=8, resize=resize, optimizer=optimizer)
    found = []
    for together in (True, False):
        step = make_step(splits, recipe, torch.bfloat16, STRONG, freeze)
        if not together:  # autocast then casts each weight where it is used
            monkeypatch.setattr(step_module, "cast_weights", lambda *_: {})
        found.append(do(step, 2, 1e-3))
    (losses, state), (losses_2, state_2) = found
    assert torch.equal(losses, losses_2) and losses.isfinite().all()
    assert all(torch.equal(state[key], state_2[key]) for key in state)


def test_batchnorm_counts_once_a_step_as_the_package_does(splits):
    step = make_step(splits, replace(PLAIN, model="improved_cnn"), freeze="head")
    counts = [v for key, v in step.model.state_dict().items() if key.endswith("tracked")]
    do(step, 3)
    assert len(counts) == 3 and set(map(int, counts)) == {0}, "a frozen layer does not count"
    step.model.train()
    do(step, 3)
    assert set(map(int, counts)) == {3}


def test_a_step_that_fails_leaves_batchnorm_whole(splits):
    step = make_step(splits, replace(PLAIN, model="improved_cnn"))
    keys = step.model.state_dict().keys()
    step.model.head.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        do(step, 1)
    assert step.model.state_dict().keys() == keys


NETWORKS = [("simple_cnn", 1), ("improved_cnn", 1), ("se_resnet18", 1), ("efficientnet_b2", 2)]


@pytest.mark.parametrize("name, resize", NETWORKS)
def test_nothing_up_to_the_loss_waits_for_a_gpu_or_leaves_it(name, resize):
    """On tensors that claim to lie on a GPU and hold no data a read-back or a CPU tensor raises."""
    with FakeTensorMode():
        with torch.device("cuda", 0):  # for what the test makes, not for what it tests
            images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
            labels, weights = torch.zeros(8, dtype=torch.int64), torch.ones(10)
            model = build(name, input_size=32 * resize)
        prepare = Preprocess((0.5,) * 3, (0.25,) * 3, resize, STRONG, images.device)
        images, share = prepare.train(images, None)
        logits = model(images)
        loss = training_loss(logits, labels, 0.1, weights, share)
        assert loss.is_cuda and logits.shape == (8, 10)
        with pytest.raises(DataDependentOutputException):
            float(loss.detach())


def test_learning_rate_follows_the_table(splits):
    step = make_step(splits)
    step.start_epoch(0, [0.1 / (i + 1) for i in range(step.steps)])
    seen = []
    for _ in range(3):
        step()
        seen.append(float(step.optimizer.param_groups[0]["lr"]))
    assert seen == pytest.approx([0.1, 0.05, 0.1 / 3])


def test_weight_decay_spares_norms_and_biases_unless_asked():
    model = build("improved_cnn")
    recipe = replace(PLAIN, weight_decay=0.1)
    groups = make_optimizer(model, recipe, CPU).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    matrices = [m.weight for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert decayed == set(map(id, matrices))
    everything = make_optimizer(model, replace(recipe, decay_all=True), CPU).param_groups
    assert len(everything) == 1
    assert len(everything[0]["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("images, asked, fitted", [
    (45_000, 125, 125), (45_000, 64, 64), (45_000, 128, 128),  # large sets: as asked
    (600, 125, 30), (203, 64, 11), (100, 64, 9), (5, 64, 5), (1, 64, 1), (100, 1, 1),
])
def test_batches_shrink_to_make_twenty_steps_where_the_set_allows(images, asked, fitted):
    assert fit_batch_size(images, asked) == fitted


@pytest.mark.parametrize("optimizer, images, asked, lr", [
    ("sgd", 45_000, 128, 0.1), ("sgd", 152, 128, 0.00625), ("sgd", 160, 32, 0.025),
    ("adamw", 45_000, 125, 0.1), ("adamw", 160, 32, 0.05),
])
def test_a_smaller_batch_has_a_smaller_learning_rate(optimizer, images, asked, lr):
    recipe = Recipe(optimizer=optimizer, batch_size=asked)
    assert fit_lr(0.1, images, recipe) == pytest.approx(lr)


@pytest.mark.parametrize("images, batch_size", [(400, 20), (45, 20), (203, 11), (7, 7)])
def test_no_image_is_left_out_of_an_epoch(images, batch_size):
    order = epoch_order(images, batch_size, seed=3)
    assert order.shape[1] == batch_size
    shown = torch.bincount(order.flatten(), minlength=images)
    assert shown.min() == 1 and int(shown.sum()) - images < batch_size
    assert torch.equal(order, epoch_order(images, batch_size, seed=3))
    assert not torch.equal(order, epoch_order(images, batch_size, seed=4))
