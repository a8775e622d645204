"""The learning rate of every step, against timm's scheduler stepped as its train.py does."""

from types import SimpleNamespace

import pytest
import torch
from timm.scheduler import create_scheduler

from smdtrack.cli._recipe import DEFAULTS
from smdtrack.planning.lr_schedule import optimizer_of, pieces

STEPS = 7
LR = 0.1


def as_train_py_does(options):
    """Learning rate in force at each update: the scheduler is asked after every update and after every epoch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=LR)
    scheduler, epochs = create_scheduler(SimpleNamespace(**options), optimizer, updates_per_epoch=STEPS)
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
        {"sched": "multistep", "decay_milestones": [5, 9]},
        {"sched": "poly", "lr_k_decay": 1.5, "decay_rate": 2.0},
        {"sched": "wsd", "decay_epochs": 0.3},
        {"sched": "rsqrt", "decay_epochs": 3},
        {"sched": "constant"},
        {"sched": "cosine", "warmup_prefix": True},
    ],
    ids=str,
)
def test_every_steps_rate_is_timms(changes, on_updates):
    options = {
        **DEFAULTS,
        "epochs": 12,
        "warmup_epochs": 2,
        "decay_epochs": 4,
        "sched_on_updates": on_updates,
        **changes,
    }
    schedule, _ = pieces(optimizer_of("momentum", LR, 1e-4, (4, 4), {"momentum": 0.9}), STEPS, options)
    found = [piece.lr for piece in schedule for _ in range(piece.steps)]
    assert found == pytest.approx(as_train_py_does(options))
    assert schedule[-1].epoch < len(found) / STEPS <= schedule[-1].epoch + 1


def test_a_long_schedule_on_updates_is_taken_in_strides():
    options = {**DEFAULTS, "epochs": 100, "sched_on_updates": True}
    schedule, _ = pieces(optimizer_of("momentum", LR, 1e-4, (4, 4), {"momentum": 0.9}), 1000, options)
    assert sum(piece.steps for piece in schedule) == 100_000
    assert len(schedule) < 5000
    assert max(piece.lr for piece in schedule) == pytest.approx(LR, rel=0.01)
