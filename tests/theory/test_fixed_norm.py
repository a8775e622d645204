"""Optimizers that keep a weight's norm fixed: told by what they do, and right against a simulation of themselves."""

import math

import pytest
import torch
from torch.optim import Optimizer

from smdtrack.theory import identify
from smdtrack.theory.fixed_norm import fixed_norm
from tests.theory.simulator import Simulation


class FixedNormAverage(Optimizer):
    """Turns the weight by a step of `lr` times its norm along an average of gradients, and restores the norm.

    `raw` keeps the length of the average, so that the angle depends on the size of the gradients.
    """

    def __init__(self, params, lr=1e-3, beta=0.9, raw=False):
        super().__init__(params, {"lr": lr, "beta": beta, "raw": raw})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
                average.lerp_(parameter.grad, 1 - group["beta"])
                norm = parameter.norm()
                length = average if group["raw"] else average / average.norm()
                parameter.sub_(group["lr"] * norm * length)
                parameter.mul_(norm / parameter.norm())


class SquareRootOfLr(Optimizer):
    """Steps by the signs of the gradients times the square root of lr."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(group["lr"] ** 0.5 * 1e-3 * parameter.grad.sign())


def line_of(optimizer):
    return identify(optimizer).line(optimizer.param_groups[0], (32, 32))


def parameter():
    return torch.nn.Parameter(torch.randn(32, 32))


@pytest.mark.parametrize("lr", [0.003, 0.02, 0.05])
def test_the_learning_rate_sets_the_angle(lr):
    simulation = Simulation(lambda weights: FixedNormAverage(weights, lr=lr))
    simulation.run(100, sample=0)
    trace = simulation.run(300)
    line = simulation.line()
    assert (line.kind, line.trust, line.decay_rate) == ("calibrated", "whole", 0.0)
    assert trace.angle / trace.line == pytest.approx(1, abs=0.01)
    assert line.drift_corrected(0.0) == line.angular_update
    assert line.reason == (
        "the optimizer keeps the norm fixed: there is no balance of growth and decay, and the angle is set by lr"
    )
    assert abs(trace.drift) < 1e-9


def test_the_angle_follows_a_schedule():
    optimizer = FixedNormAverage([parameter()], lr=0.02)
    first = line_of(optimizer).angular_update
    optimizer.param_groups[0]["lr"] = 0.005
    assert line_of(optimizer).angular_update == pytest.approx(first / 4, rel=0.03)


def test_an_angle_that_depends_on_the_gradients_has_no_line():
    line = line_of(FixedNormAverage([parameter()], lr=0.02, raw=True))
    assert line.kind == "none"
    assert line.reason == "it keeps the weight's norm fixed, and the angle depends on the size of the gradients"


@pytest.mark.parametrize(
    "build",
    [
        lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
        lambda weights: torch.optim.AdamW(weights, lr=1e-3),
        lambda weights: torch.optim.SGD(weights, lr=1e-9),
    ],
    ids=["momentum", "AdamW", "SGD"],
)
def test_ordinary_optimizers_let_the_norm_grow(build):
    optimizer = build([parameter()])
    assert fixed_norm(optimizer, optimizer.param_groups[0]) is None


def test_a_step_that_is_not_proportional_to_lr_has_no_line():
    line = line_of(SquareRootOfLr([parameter()]))
    assert (line.kind, line.reason) == ("none", "its step is not proportional to the learning rate")


def test_rprop_says_why_it_has_no_line():
    line = line_of(torch.optim.Rprop([parameter()]))
    assert line.kind == "none"
    assert line.reason == (
        "its step sizes adapt to the signs of the gradients: the learning rate is only where they start"
    )


def test_torchs_adafactor_turns_by_a_share_of_the_weight():
    simulation = Simulation(lambda weights: torch.optim.Adafactor(weights, lr=0.01, weight_decay=0.001))
    simulation.run(300, sample=0)
    trace = simulation.run(700)
    assert simulation.line().kind == "approximate"
    assert trace.angle / trace.line == pytest.approx(1, abs=0.02)
    simulation.group["lr"] = 1.0
    assert simulation.line().angular_update == pytest.approx(math.atan(1000**-0.5 / 0.999), rel=0.02)
