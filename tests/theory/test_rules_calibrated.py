"""Optimizers that are not timm's: calibrated, marked so, and right against a simulation of themselves."""

import threading

import pytest
import timm.optim
import torch
from torch.optim import Optimizer

from smdtrack.theory import calibration, decay_response, equilibrium_lines, identify
from tests.theory.simulator import Simulation, at_equilibrium


class Average(Optimizer):
    """A heavy-ball average; `free` takes the learning rate out of its weight decay."""

    def __init__(self, params, lr=1e-3, beta=0.8, weight_decay=0.0, free=False):
        super().__init__(params, {"lr": lr, "beta": beta, "weight_decay": weight_decay, "free": free})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                buffer = self.state[parameter].setdefault("buffer", torch.zeros_like(parameter))
                buffer.mul_(group["beta"]).add_(parameter.grad, alpha=1 - group["beta"])
                parameter.mul_(1 - (1 if group["free"] else group["lr"]) * group["weight_decay"])
                parameter.sub_(3 * group["lr"] * buffer)


class WithoutDecay(Optimizer):
    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(group["lr"] * parameter.grad)


def weight(*shape):
    return torch.nn.Parameter(torch.randn(shape or (16, 16)))


@pytest.mark.parametrize(
    "build",
    [
        lambda weights: Average(weights, lr=0.1, weight_decay=1e-2),
        pytest.param(lambda weights: torch.optim.ASGD(weights, lr=0.1, weight_decay=1e-2), marks=pytest.mark.slow),
    ],
    ids=["toy", "torch ASGD"],
)
def test_the_line_agrees_with_a_simulation(build):
    simulation = Simulation(build)
    assert not simulation.family.known
    at_equilibrium(simulation)
    simulation.run(300, sample=0)
    trace = simulation.run(1500)
    assert simulation.line().kind == "calibrated"
    assert any("calibrated" in text for text in simulation.line().assumptions)
    assert trace.angle / trace.line == pytest.approx(1, abs=0.02)


def test_it_is_measured_once_whatever_the_schedule(monkeypatch):
    optimizer = Average([weight()], lr=0.1, weight_decay=1e-2, beta=0.7)
    first = identify(optimizer).line(optimizer.param_groups[0], (16, 16))
    for module, measuring in ((calibration, "_calibrate"), (decay_response, "_measure")):
        monkeypatch.setattr(module, measuring, lambda *_: pytest.fail("ran again"))
    twin = Average([weight()], lr=0.1, weight_decay=1e-2, beta=0.7)
    assert identify(twin).line(twin.param_groups[0], (16, 16)) == first
    twin.param_groups[0]["lr"] = 0.025
    assert identify(twin).line(twin.param_groups[0], (16, 16)).angular_update == pytest.approx(
        first.angular_update / 2, rel=1e-3
    )


def test_the_line_follows_the_schedule_on_another_thread():
    """Where nothing may be run: lines are made on the writer's thread, too."""
    optimizer = Average([weight()], lr=0.1, weight_decay=1e-2, beta=0.6)
    family = identify(optimizer)
    first = family.line(optimizer.param_groups[0], (16, 16))
    optimizer.param_groups[0]["lr"] = 0.025
    found = []
    thread = threading.Thread(target=lambda: found.append(family.line(optimizer.param_groups[0], (16, 16))))
    thread.start()
    thread.join()
    assert found[0].angular_update == pytest.approx(first.angular_update / 2, rel=1e-3)


def test_other_hyper_parameters_and_shapes_are_measured_anew(monkeypatch):
    monkeypatch.setattr(calibration, "_STEPS", 2048)
    before = set(calibration._cache)
    for beta, shape in ((0.55, (16, 16)), (0.55, (16, 16)), (0.5, (16, 16)), (0.5, (16, 32))):
        optimizer = Average([weight(*shape)], beta=beta)
        identify(optimizer).line(optimizer.param_groups[0], shape)
    assert sorted(key[2] for key in set(calibration._cache) - before) == [(16, 16), (16, 16), (16, 32)]


@pytest.mark.parametrize("free", [False, True])
def test_how_the_learning_rate_enters_the_decay_is_found_out(free):
    optimizer = Average([weight()], lr=0.05, weight_decay=1e-3, free=free)
    assert equilibrium_lines(optimizer)[0].decay_rate == pytest.approx(1e-3 if free else 5e-5, rel=0.01)


def test_without_weight_decay_among_its_arguments_there_is_no_equilibrium():
    line = equilibrium_lines(WithoutDecay([weight()]))[0]
    assert line.memory == pytest.approx(1, abs=0.02)
    assert line.decay_rate == 0
    assert "no equilibrium" in line.reason
    assert line.drift_corrected(1e-4) == pytest.approx(1e-2, rel=0.01)


def test_a_trust_ratio_that_needs_weight_decay_is_noticed():
    """LAMB without weight decay is Adam, so that it must be run with it."""

    class OwnLamb(timm.optim.Lamb):
        def step(self, closure=None):
            return super().step(closure)

    line = equilibrium_lines(OwnLamb([weight()], lr=0.01, weight_decay=0.1))[0]
    assert (line.kind, line.reason) == ("none", "its step follows the weight's norm in a way that is not known")
