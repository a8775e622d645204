"""The oracle itself: trajectories from sampled gradient sizes, against simulations under timm's schedules."""

import math

import pytest

from smdtrack.planning.lr_schedule import lr_segments, make_optimizer
from smdtrack.planning.recipe import Recipe
from tests.planning.trajectory import rates, replay
from tests.theory.compare import build
from tests.theory.schedules import WINDOW
from tests.theory.simulator import Simulation
from tests.theory.test_transients import BETAS, RUNS, equilibrium_norm

EVERY = 10
STEPS_PER_EPOCH = 100
SCHEDULES = {
    "cosine": {"sched": "cosine"},
    "tanh": {"sched": "tanh"},
    "step": {"sched": "step", "decay_epochs": 8},
    "multistep": {"sched": "multistep", "decay_milestones": [8, 14]},
    "poly": {"sched": "poly"},
    "wsd": {"sched": "wsd"},
    "two cycles": {"sched": "cosine", "lr_cycle_limit": 2, "epochs": 10},
    "on updates": {"sched": "cosine", "sched_on_updates": True},
}
FAST = {("momentum", "cosine"), ("sgd", "multistep"), ("adamw", "two cycles")}
ALL = [
    pytest.param(name, schedule, marks=() if (name, schedule) in FAST else pytest.mark.slow)
    for name in ("momentum", "sgd", "adamw")
    for schedule in SCHEDULES
]


@pytest.mark.parametrize(("name", "schedule"), ALL)
def test_norm_and_angle_follow_from_the_sampled_gradients(name, schedule):
    """The gradients double over the run and are sampled at every tenth step."""
    case = RUNS[name]
    settings = {
        "epochs": 20,
        "warmup_epochs": 3,
        "warmup_lr": case.lr / 100,
        "min_lr": case.lr / 50,
        "opt_betas": case.arguments.get("betas"),
        **SCHEDULES[schedule],
    }
    recipe = Recipe(lr=case.lr, weight_decay=case.weight_decay, opt=name, **settings)
    learning_rates = list(rates(lr_segments(make_optimizer(recipe, (32, 32)), recipe, STEPS_PER_EPOCH)[0]))

    start = 2 * equilibrium_norm(Simulation(build(case)).line())
    simulation = Simulation(build(case), norm=start)
    trace = simulation.run(0)
    for step, lr in enumerate(learning_rates):
        simulation.scale = (1 + step / len(learning_rates)) / 32
        part = simulation.run(1, [lr], sample=0)
        for family in ("angle2", "norm2", "gradient2"):
            getattr(trace, family).extend(getattr(part, family))

    family, group = simulation.family, simulation.group
    sampled = list(range(EVERY, len(learning_rates) + 1, EVERY))
    points = replay(
        [family.line({**group, "lr": lr}, (32, 32)) for lr in learning_rates],
        sampled,
        [math.sqrt(trace.gradient2[step - 1]) for step in sampled],
        start,
        coordinates=1024,
        betas=BETAS if name == "adamw" else None,
    )
    assert len(points) == len(learning_rates)
    # Under tanh the learning rate falls fastest between the sampled steps, whose gradients are interpolated.
    tolerance = 0.06 if name == "adamw" else 0.04 if schedule == "tanh" else 0.03
    for step in range(0, len(points), 50):
        assert points[step].norm == pytest.approx(math.sqrt(trace.norm2[step]), rel=tolerance)
    for first in range(0, len(points) - WINDOW + 1, WINDOW):
        predicted = sum(point.angle**2 for point in points[first : first + WINDOW])
        assert math.sqrt(predicted) == pytest.approx(
            math.sqrt(sum(trace.angle2[first : first + WINDOW])), rel=tolerance
        )


def test_steps_and_gradients_must_match():
    with pytest.raises(ValueError, match="2 steps and 1 gradients"):
        replay([], [1, 2], [1.0], 1.0)
