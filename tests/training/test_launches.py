"""What saves launches changes nothing: casts, counts and the loss are those of plain PyTorch."""
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from drawn import AUGMENTED, PLAIN, do, equal, make_step, new_model

from common.config import Recipe
from common.models.build import freeze_backbone
from common.models.launches import training_loss
from common.training import loop


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


def test_an_image_with_a_pasted_square_learns_both_labels_by_their_pixels():
    torch.manual_seed(0)
    logits, labels, pasted = torch.randn(16, 3), torch.randint(3, (16,)), torch.rand(16)
    own, other = (F.cross_entropy(logits, some, label_smoothing=0.1, reduction="none")
                  for some in (labels, labels.roll(1)))
    expected = ((1 - pasted) * own + pasted * other).mean()
    torch.testing.assert_close(training_loss(logits, labels, 0.1, pasted=pasted), expected)


@pytest.mark.parametrize("name, resize, optimizer, frozen", [
    ("improved_cnn", 1, "sgd", False),
    ("improved_cnn", 1, "adamw", True),
    ("se_resnet18", 1, "sgd", False),
    ("efficientnet_b2", 2, "adamw", False),
])
def test_weights_cast_together_equal_autocasts_to_the_bit(name, resize, optimizer, frozen,
                                                          monkeypatch):
    # The ImageNet stem, since emulated bf16 takes its time.
    recipe = Recipe(model=name, stem="imagenet", batch_size=4, resize=resize, optimizer=optimizer,
                    cutmix=0.5, **AUGMENTED)
    found = []
    for together in (True, False):
        model = new_model(recipe)
        if frozen:
            freeze_backbone(model, recipe.model)
        if not together:  # autocast then casts each weight where it is used
            monkeypatch.setattr(loop, "cast_weights", lambda *_: {})
        found.append(do(make_step(recipe, model, torch.bfloat16), 2, 1e-3))
    (losses, state), (losses_2, state_2) = found
    assert torch.equal(losses, losses_2) and losses.isfinite().all()
    assert equal(state, state_2)


def test_batchnorm_counts_once_a_step_as_the_package_does():
    recipe = replace(PLAIN, model="improved_cnn")
    model = new_model(recipe)
    freeze_backbone(model, recipe.model)
    step = make_step(recipe, model)
    counts = [v for key, v in model.state_dict().items() if key.endswith("tracked")]
    do(step, 3)
    assert len(counts) == 3 and set(map(int, counts)) == {0}, "a frozen layer does not count"
    model.train()
    do(step, 3)
    assert set(map(int, counts)) == {3}


def test_a_step_that_fails_leaves_batchnorm_whole():
    model = new_model(replace(PLAIN, model="improved_cnn"))
    keys = model.state_dict().keys()
    model.head.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        do(make_step(model=model), 1)
    assert model.state_dict().keys() == keys
