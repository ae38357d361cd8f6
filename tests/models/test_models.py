"""The table of networks: parameter counts, smallest inputs, feature maps and their words."""
from dataclasses import fields

import pytest
import torch
from torch import nn

from common.config import Recipe
from common.errors import InputError
from common.models.build import (NETWORKS, build, count_parameters, describe, freeze_backbone,
                                 in_eval_mode)


@pytest.mark.parametrize("name, arguments, expected", [
    ("simple_cnn", {}, 1_147_466),
    ("improved_cnn", {}, 1_147_914),
    ("efficientnet_b2", {}, 7_715_084),
    ("se_resnet18", {"stem": "cifar"}, 11_263_042),
    ("se_resnet18", {"stem": "imagenet"}, 11_270_722),
])
def test_parameter_counts(name, arguments, expected):
    assert count_parameters(build(name, **arguments)) == expected


def test_the_command_line_offers_the_networks_of_the_table():
    (model,) = (field for field in fields(Recipe) if field.name == "model")
    assert model.metadata["allowed"] == tuple(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_frozen_backbone_leaves_the_head_which_is_the_last_layer(name):
    model = build(name, num_classes=7)
    freeze_backbone(model, name)
    weight, bias = (p for p in model.parameters() if p.requires_grad)
    assert len(weight) == len(bias) == 7


@pytest.mark.parametrize("name", NETWORKS)
def test_the_smallest_input_works_and_a_smaller_one_is_refused(name):
    size = NETWORKS[name].smallest_input
    model = build(name, input_size=size).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, size, size)).shape == (1, 10)
    with pytest.raises(InputError, match=f"at least {size} px, not {size - 1}: choose"):
        build(name, input_size=size - 1)


def test_every_batch_norm_gets_the_momentum():
    models = [build(name, bn_momentum=0.3) for name in NETWORKS]
    norms = [m for model in models for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(norm.momentum == 0.3 for norm in norms)


def test_eval_mode_is_put_back_module_by_module():
    model = build("improved_cnn").train()
    model.blocks[1].eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(ZeroDivisionError), in_eval_mode(model):
        assert not any(module.training for module in model.modules())
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("name, stem, size, path, channels", [
    ("simple_cnn", "", 32, "32 → 16 → 8 → 4 px", "128"),
    ("improved_cnn", "", 64, "64 → 32 → 16 → 8 px", "128"),
    ("se_resnet18", "imagenet", 32, "32 → 16 → 8 → 4 → 2 → 1 px", "512"),
    ("se_resnet18", "cifar", 32, "32 → 16 → 8 → 4 px", "512"),
    ("efficientnet_b2", "", 64, "64 → 32 → 16 → 8 → 4 → 2 px", "1,408"),
    ("efficientnet_b2", "", 32, "32 → 16 → 8 → 4 → 2 → 1 px", "1,408"),
])
def test_sizes_of_the_feature_maps_and_the_warning(name, stem, size, path, channels):
    model = build(name, input_size=size, stem=stem).train()
    lines = describe(model, size)
    assert lines[1] == f"feature maps: {path} ({channels} channels at the end)"
    warned = [line for line in lines if "1×1" in line]
    assert len(warned) == path.endswith(" 1 px")
    assert model.training and not any(m._forward_hooks for m in model.modules())
