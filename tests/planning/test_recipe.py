"""A recipe's settings: timm's names, defaults and rule for the learning rate."""

import pytest

from smdtrack.notices import SmdtrackError
from smdtrack.planning.recipe import Recipe, scaled_lr


def test_timms_own_helpers_read_a_recipe():
    from timm.optim import optimizer_kwargs
    from timm.scheduler.scheduler_factory import scheduler_kwargs

    recipe = Recipe(lr=0.1, weight_decay=1e-4, opt="adamw", opt_betas=(0.8, 0.99), epochs=7, min_lr=0.01)
    assert optimizer_kwargs(recipe)["betas"] == (0.8, 0.99)
    schedule = scheduler_kwargs(recipe)
    assert (schedule["num_epochs"], schedule["min_lr"], schedule["cycle_decay"]) == (7, 0.01, 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_lr": 5.0}, "min_lr 5.0 is above the learning rate 0.1"),
        ({"sched": "step", "decay_rate": 2.0}, "decay_rate 2.0 would raise the learning rate; a factor from 0 to 1"),
    ],
)
def test_settings_that_contradict_each_other(changes, message):
    with pytest.raises(SmdtrackError, match=f"^{message}"):
        Recipe(lr=0.1, weight_decay=0.0, **changes)


def test_a_power_above_one_is_no_contradiction_for_poly():
    assert Recipe(lr=0.1, weight_decay=0.0, sched="poly", decay_rate=2.0).decay_rate == 2.0


def test_a_warm_up_as_long_as_the_run_is_noted():
    assert Recipe(lr=0.1, weight_decay=0.0, epochs=5).notes() == ["warm-up (5 epochs) takes the whole run (5 epochs)"]
    assert Recipe(lr=0.1, weight_decay=0.0, epochs=5, sched="none").notes() == []


@pytest.mark.parametrize(
    ("opt", "settings", "factor"),
    [
        ("momentum", {}, 2.0),
        ("adamw", {}, 2.0**0.5),
        ("lamb", {"world_size": 4}, 8.0**0.5),
        ("adamw", {"lr_base_scale": "linear", "grad_accum_steps": 3}, 6.0),
        ("momentum", {"lr_base_scale": "sqrt", "lr_base_size": 512}, 1.0),
    ],
)
def test_the_learning_rate_follows_the_batch_as_in_timms_train_py(opt, settings, factor):
    assert scaled_lr(opt, 0.1, 512, **settings) == pytest.approx(0.1 * factor)
