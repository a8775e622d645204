"""The learning rate of every step, against timm's scheduler stepped as its train.py does."""

from dataclasses import replace

import pytest
import torch
from timm.scheduler import create_scheduler

from smdtrack.notices import SmdtrackError
from smdtrack.planning.lr_schedule import (
    check_optimizer,
    corrected_variant,
    ignored_settings,
    lr_segments,
    make_optimizer,
    schedule_exponent,
)
from smdtrack.planning.recipe import Recipe

STEPS = 7
LR = 0.1
SHAPE = (4, 4)
RECIPE = Recipe(lr=LR, weight_decay=1e-4, opt="momentum")


def rates_of_timms_train_py(recipe):
    """Learning rate in force at each update: the scheduler is stepped after every update and after every epoch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=LR)
    scheduler, epochs = create_scheduler(recipe, optimizer, updates_per_epoch=STEPS)
    rates, updates = [], 0
    for epoch in range(epochs):
        for _ in range(STEPS):
            rates.append(optimizer.param_groups[0]["lr"])
            updates += 1
            scheduler.step_update(num_updates=updates)
        scheduler.step(epoch + 1, metric=float(epoch))
    return rates


@pytest.mark.parametrize("on_updates", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"sched": "cosine"},
        {"sched": "cosine", "lr_cycle_limit": 2, "cooldown_epochs": 3, "min_lr": 1e-3},
        {"sched": "tanh", "lr_cycle_mul": 2.0, "lr_cycle_limit": 2},
        {"sched": "step", "decay_epochs": 4.4},
        {"sched": "multistep", "decay_milestones": (5, 9)},
        {"sched": "poly", "lr_k_decay": 1.5, "decay_rate": 2.0},
        {"sched": "wsd", "decay_epochs": 0.3},
        {"sched": "rsqrt", "decay_epochs": 3},
        {"sched": "constant"},
        {"sched": "cosine", "warmup_prefix": True},
    ],
    ids=str,
)
def test_the_rate_of_every_step_is_timms(changes, on_updates):
    settings = {"epochs": 12, "warmup_epochs": 2, "decay_epochs": 4, "sched_on_updates": on_updates, **changes}
    recipe = replace(RECIPE, **settings)
    segments, _ = lr_segments(make_optimizer(recipe, SHAPE), recipe, STEPS)
    found = [segment.lr for segment in segments for _ in range(segment.steps)]
    assert found == pytest.approx(rates_of_timms_train_py(recipe))
    assert segments[-1].epoch < len(found) / STEPS <= segments[-1].epoch + 1


def test_a_long_schedule_on_updates_is_read_at_a_few_thousand_points():
    recipe = replace(RECIPE, epochs=100, sched_on_updates=True)
    segments, _ = lr_segments(make_optimizer(recipe, SHAPE), recipe, 1000)
    assert sum(segment.steps for segment in segments) == 100_000
    assert len(segments) < 5000
    assert max(segment.lr for segment in segments) == pytest.approx(LR, rel=0.01)


def test_a_plateau_schedule_is_shown_without_drops_and_says_so():
    recipe = replace(RECIPE, sched="plateau", epochs=30, warmup_epochs=0, patience_epochs=1)
    segments, notes = lr_segments(make_optimizer(recipe, SHAPE), recipe, STEPS)
    assert {segment.lr for segment in segments} == {LR}
    assert notes == ["a plateau schedule depends on the validation metric; it is shown as if it never dropped"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sched": "cosin"}, r"timm refuses the schedule 'cosin': .*; schedules are cosine, tanh, step, .*"),
        ({"sched": "wsd", "epochs": 4, "decay_epochs": 9}, "timm refuses the schedule 'wsd': .* requires .*"),
    ],
)
def test_a_refused_schedule_is_one_line(changes, message):
    recipe = replace(RECIPE, **changes)
    with pytest.raises(SmdtrackError, match=message) as caught:
        lr_segments(make_optimizer(recipe, SHAPE), recipe, STEPS)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"opt_kwargs": {"foo": 1}}, "optimizer 'momentum' refuses these settings: .*foo.*"),
        ({"opt_kwargs": {"lr": 5}}, "opt_kwargs sets 'lr', which lr already sets"),
        ({"opt": "adamw", "opt_betas": (0.9,)}, "adamw takes 2 betas, not 1"),
        (
            {"opt": "adamw", "opt_betas": (0.9, 0.9), "opt_kwargs": {"betas": (0.9, 0.9)}},
            "opt_kwargs sets 'betas', which opt_betas already sets",
        ),
    ],
)
def test_refused_settings_of_the_optimizer_are_one_line(changes, message):
    with pytest.raises(SmdtrackError, match=f"^{message}$"):
        make_optimizer(replace(RECIPE, **changes), SHAPE)


def test_settings_that_timm_ignores_are_named():
    assert ignored_settings(replace(RECIPE, opt_betas=(0.9, 0.99), opt_eps=1e-6)) == [
        "timm ignores opt_betas for momentum, which has none",
        "timm ignores opt_eps for momentum, which has none",
    ]
    assert ignored_settings(replace(RECIPE, opt="lookahead_adamw", opt_betas=(0.9, 0.99))) == []


def test_an_optimizer_that_timm_lacks_or_cannot_create_is_named_with_the_reason():
    check_optimizer("lookahead_adamw")
    with pytest.raises(SmdtrackError, match=r"^timm has no optimizer 'adam-w'; did you mean adamw, .*$"):
        check_optimizer("adam-w")
    with pytest.raises(SmdtrackError, match=r"^optimizer 'bnblion' needs the package bitsandbytes"):
        check_optimizer("bnblion")


@pytest.mark.parametrize(
    ("name", "exponent"),
    [("momentum", 0.5), ("adamw", 0.5), ("adamc", 1.0), ("sgdc", 1.0), ("lamb", 1.0), ("lars", 1.0), ("larc", 0.0)],
)
def test_by_which_power_of_the_learning_rate_the_angle_falls(name, exponent):
    recipe = Recipe(lr=1e-3, weight_decay=0.1, opt=name)
    assert schedule_exponent(recipe, SHAPE) == exponent


def test_variants_with_a_corrected_decay():
    """timm's lambc ends in c, too, but for its clipped trust ratio."""
    names = {"adamw": "adamc", "nadamw": "nadamc", "lion": "lionc", "sgdw": "sgdc", "lamb": None, "muon": None}
    assert {name: corrected_variant(name) for name in names} == names


def test_a_strong_decay_does_not_change_the_power():
    assert schedule_exponent(Recipe(lr=1e-3, weight_decay=7.0, opt="lion"), SHAPE) == 0.5
