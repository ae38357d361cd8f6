"""The learning rate at the points where its formula is known, and over whole runs; batches and the
order of an epoch's images."""
import math

import pytest
import torch

from common.config import Recipe, Stage
from common.training.schedule import (batch_size_for, epoch_lrs, epoch_order, epoch_seed, lr_factor,
                                      lr_for)


@pytest.mark.parametrize("images, asked, batch", [
    (45_000, 125, 125), (45_000, 64, 64), (45_000, 128, 128),  # large sets: as asked
    (600, 125, 30), (203, 64, 11), (100, 64, 9), (5, 64, 5), (1, 64, 1), (100, 1, 1),
])
def test_batches_shrink_to_make_twenty_steps_where_the_set_allows(images, asked, batch):
    assert batch_size_for(images, asked) == batch


@pytest.mark.parametrize("optimizer, images, asked, lr", [
    ("sgd", 45_000, 128, 0.1), ("sgd", 152, 128, 0.00625), ("sgd", 160, 32, 0.025),
    ("adamw", 45_000, 125, 0.1), ("adamw", 160, 32, 0.05),
])
def test_a_smaller_batch_has_a_smaller_learning_rate(optimizer, images, asked, lr):
    recipe = Recipe(optimizer=optimizer, batch_size=asked)
    assert lr_for(0.1, images, recipe) == pytest.approx(lr)


@pytest.mark.parametrize("images, batch_size", [(400, 20), (45, 20), (203, 11), (7, 7), (5, 9)])
def test_no_image_is_left_out_of_an_epoch(images, batch_size):
    order = epoch_order(images, batch_size, seed=3)
    assert order.shape[1] == min(batch_size, images)
    shown = torch.bincount(order.flatten(), minlength=images)
    assert shown.min() == 1 and int(shown.sum()) - images < batch_size
    assert torch.equal(order, epoch_order(images, batch_size, seed=3))
    assert not torch.equal(order, epoch_order(images, batch_size, seed=4))


def test_no_two_epochs_of_any_runs_share_a_seed():
    assert len({epoch_seed(seed, epoch) for seed in range(20) for epoch in range(500)}) == 10_000


def test_constant_is_the_peak_from_first_to_last_step():
    assert {lr_factor(step, 100, "constant") for step in range(100)} == {1.0}


def test_cosine_starts_at_the_peak_and_ends_at_zero():
    assert lr_factor(0, 1000, "cosine") == 1
    assert lr_factor(250, 1000, "cosine") == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert lr_factor(500, 1000, "cosine") == pytest.approx(0.5)
    assert 0 < lr_factor(999, 1000, "cosine") < 3e-6
    assert lr_factor(1000, 1000, "cosine") == 0


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_warm_up_is_linear_and_never_zero(schedule):
    factors = [lr_factor(step, 40, schedule, warmup=4) for step in range(5)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("warmup", [0, 1, 7, 59])
def test_after_the_warm_up_the_cosine_only_falls(warmup):
    factors = [lr_factor(step, 60, "cosine", warmup) for step in range(warmup, 60)]
    assert factors[0] == 1
    assert all(after < before for before, after in zip(factors, factors[1:]))
    assert factors == [lr_factor(step, 60 - warmup, "cosine") for step in range(60 - warmup)]


def test_a_warm_up_longer_than_the_run_only_rises():
    factors = [lr_factor(step, 3, "cosine", warmup=6) for step in range(3)]
    assert factors == [1 / 6, 2 / 6, 3 / 6]
    assert lr_factor(0, 1, "cosine", warmup=1) == 1


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize(("epochs", "steps", "warmup_epochs", "warmup"), [
    (1, 1, 0, 0), (5, 7, 0, 0), (4, 10, 1, 10), (3, 9, 0.5, 4), (2, 3, 0.1, 0), (1, 10, 3, 5)])
def test_epochs_put_together_are_the_whole_run(schedule, epochs, steps, warmup_epochs, warmup):
    """And each is planned from its number alone, as a resumed run asks for it."""
    stage = Stage("train", epochs, 0.3, schedule, warmup_epochs)
    lrs = [epoch_lrs(stage, epoch, steps) for epoch in range(epochs)]
    assert [len(epoch) for epoch in lrs] == [steps] * epochs
    total = epochs * steps
    expected = [0.3 * lr_factor(step, total, schedule, warmup) for step in range(total)]
    assert [lr for epoch in lrs for lr in epoch] == expected
