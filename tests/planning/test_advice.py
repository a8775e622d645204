"""Single reviews; that their suggestions help is tested through the command."""

import pytest

from smdtrack.planning.advice import ema_window, review_line
from smdtrack.planning.lr_drops import joined
from smdtrack.planning.lr_schedule import line_at_peak
from smdtrack.planning.recipe import Recipe

SHAPE = (4, 4)


def codes(recipe):
    return [finding.code for finding in review_line(recipe, line_at_peak(recipe, SHAPE))]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, []),
        ({"weight_decay": 0.0}, ["no-line"]),
        ({"opt": "madgrad"}, ["no-line"]),
        ({"weight_decay": 0.02}, ["strong-decay"]),
        ({"weight_decay": 0.2}, ["large-angle", "strong-decay"]),
        ({"opt": "lamb", "lr": 0.2}, ["large-angle"]),
        ({"clip_grad": 1.0, "clip_mode": "agc"}, ["clipping"]),
        ({"model_ema": True, "model_ema_decay": 0.9999}, ["ema-window"]),
        ({"model_ema": True, "model_ema_decay": 0.99}, []),
        ({"model_ema": False, "model_ema_decay": 0.9999}, []),
    ],
)
def test_what_is_found_without_a_schedule(settings, expected):
    assert codes(Recipe(**{"opt": "momentum", "lr": 0.1, "weight_decay": 1e-4, **settings})) == expected


def test_under_a_trust_ratio_the_learning_rate_is_to_be_changed():
    recipe = Recipe(opt="lamb", lr=0.2, weight_decay=0.1)
    (finding,) = review_line(recipe, line_at_peak(recipe, SHAPE))
    assert finding.change == "learning rate 0.1 gives 0.1 rad per step"


def test_the_window_of_an_average():
    assert ema_window(0.999) == pytest.approx(1000)
    assert ema_window(1.0) == float("inf")


@pytest.mark.parametrize(("words", "text"), [(["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")])
def test_enumerations(words, text):
    assert joined(words) == text
