"""The groups of a model's weights, against timm's own grouping and the formulas for single optimizers."""

import math
from dataclasses import replace

import pytest
import timm
import torch

from smdtrack.notices import SmdtrackError
from smdtrack.planning.model_weights import group_weights, spread
from smdtrack.planning.recipe import Recipe

ADAMW = Recipe(opt="adamw", lr=1e-3, weight_decay=0.5)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model("test_resnet")


def test_one_group_of_all_decayed_weights_without_layer_decay(model):
    (group,) = group_weights(model, ADAMW)
    classifier = model.get_classifier().weight
    weights = [weight for weight in model.parameters() if weight.ndim >= 2 and weight is not classifier]
    assert (group.lr_scale, group.weights) == (1.0, len(weights))
    assert group.parameters == sum(weight.numel() for weight in weights)
    assert group.line.decay_rate == pytest.approx(5e-4)


def test_adamws_equilibrium_norm_needs_no_gradients(model):
    (group,) = group_weights(model, ADAMW)
    classifier = model.get_classifier().weight
    expected = [
        float(weight.detach().square().mean().sqrt()) / math.sqrt(1e-3 / (2 * 0.5))
        for weight in model.parameters()
        if weight.ndim >= 2 and weight is not classifier
    ]
    assert sorted(group.start_norms) == pytest.approx(sorted(expected), rel=1e-3)
    low, middle, high = spread([group])
    assert min(expected) <= low <= middle <= high <= max(expected)


def test_sgds_equilibrium_norm_is_the_fourth_root_of_its_formula(model):
    """||w||^4 = H^2 lr^2 C^2 / (2 gamma), H = 1/(1 - a)."""
    recipe = Recipe(opt="momentum", lr=0.1, weight_decay=1e-3)
    (without,) = group_weights(model, recipe)
    assert without.start_norms == ()
    assert spread([without]) is None
    (group,) = group_weights(model, recipe, effective_gradient=0.5)
    equilibrium = ((0.1 * 10 * 0.5) ** 2 / (2 * 0.1 * 1e-3 * 10)) ** 0.25
    first = float(model.get_parameter("conv1.0.weight").detach().norm())
    assert any(norm == pytest.approx(first / equilibrium) for norm in group.start_norms)


def test_layer_decay_groups_as_timm_does(model):
    recipe = replace(ADAMW, layer_decay=0.5)
    groups = group_weights(model, recipe)
    from timm.optim import create_optimizer_v2

    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.5, layer_decay=0.5)
    classifier = model.get_classifier().weight
    scales = {
        group["lr_scale"]
        for group in optimizer.param_groups
        if group["weight_decay"] and any(p.ndim >= 2 and p is not classifier for p in group["params"])
    }
    assert [group.lr_scale for group in groups] == sorted(scales)
    for group in groups:
        assert group.line.decay_rate == pytest.approx(5e-4 * group.lr_scale)


def test_without_decay_there_is_no_group(model):
    with pytest.raises(SmdtrackError, match=r"^no weight of this model is decayed under this recipe$"):
        group_weights(model, replace(ADAMW, weight_decay=0.0))
