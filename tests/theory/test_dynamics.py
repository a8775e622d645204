"""Nesterov's line from the momentum buffer, against the real optimizer under gradients that are not white."""

import math

import pytest
import torch

from smdtrack.theory.dynamics import memory_from_buffer
from tests.theory.simulator import Simulation

LR, DECAY, MOMENTUM = 0.1, 2e-3, 0.9


def settled(correlation: float):
    """The simulation near its equilibrium, with the alignment of update and buffer of 3000 steps, and their trace."""
    simulation = Simulation(
        lambda weights: torch.optim.SGD(weights, lr=LR, weight_decay=DECAY, momentum=MOMENTUM, nesterov=True),
        norm=3.0,
        correlation=correlation,
    )
    simulation.run(3000, sample=0)
    along = squared = 0.0
    angles, norms = [], []
    for _ in range(3000):
        before = simulation.weight.detach().clone()
        angles += simulation.run(1, sample=0).angle2
        update = (before - simulation.weight.detach()) / LR
        along += float((update * simulation.state["momentum_buffer"]).sum())
        squared += float(update.square().sum())
        norms.append(float(before.square().sum()))
    return simulation, along / squared, angles, norms


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9, -0.5])
def test_the_buffer_gives_the_line_for_any_correlation(correlation):
    simulation, alignment, angles, norms = settled(correlation)
    measured = math.sqrt(sum(angles) / len(angles))
    line = simulation.family.line(simulation.group, (32, 32), alignment=alignment)
    drift = math.log(norms[-1] / norms[0]) / (len(norms) - 1)
    assert line.kind == "from state"
    assert measured / line.drift_corrected(drift) == pytest.approx(1, abs=0.01)

    white = simulation.family.line(simulation.group, (32, 32))
    off = abs(measured / white.drift_corrected(drift) - 1)
    assert off < 0.01 if correlation == 0 else off > 0.03, "or there would be nothing to mend"


def test_white_gradients_give_the_memory_of_the_impulse_response():
    assert memory_from_buffer(0.9, 0.8124) == pytest.approx(14.16, abs=0.01)


def test_only_coupled_nesterov_asks_for_the_buffer():
    def entry(**settings):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2, 2))], lr=0.1, momentum=0.9, **settings)
        return Simulation(lambda _: optimizer).family.momentum_entry(optimizer.param_groups[0])

    assert entry(nesterov=True, weight_decay=1e-3) == "momentum_buffer"
    assert entry(nesterov=True) is None
    assert entry(weight_decay=1e-3) is None
