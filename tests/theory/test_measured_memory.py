"""The measured memory and the two forces, from the inner products of real optimizers' steps."""

import math

import numpy as np
import pytest
import torch
from timm.optim import create_optimizer_v2

from smdtrack.theory.measured_memory import decay_force, growth_force, measured_memory
from tests.theory.simulator import Simulation, at_equilibrium


def moments(simulation, steps):
    """Returns the means of `<w, d>/<w, w>` and `<d, d>/<w, w>`, the RMS angle and the drift."""
    trace = simulation.run(steps, sample=0)
    return sum(trace.along) / steps, sum(trace.change2) / steps, trace.angle, trace.drift


def simulated(name, correlation, settle=800, **settings):
    simulation = Simulation(
        lambda weights: create_optimizer_v2(weights, name, **settings), (48, 48), correlation=correlation
    )
    at_equilibrium(simulation)
    simulation.run(settle, sample=0)
    return simulation


CASES = [
    ("adamw", 0.0, {"lr": 1e-3, "weight_decay": 1.0, "betas": (0.9, 0.99)}),
    pytest.param("adamw", 0.9, {"lr": 1e-3, "weight_decay": 1.0, "betas": (0.9, 0.99)}, marks=pytest.mark.slow),
    pytest.param("nadamw", 0.7, {"lr": 1e-3, "weight_decay": 1.0, "betas": (0.9, 0.99)}, marks=pytest.mark.slow),
    ("lion", 0.5, {"lr": 1e-3, "weight_decay": 0.5}),
    pytest.param("lion", -0.3, {"lr": 1e-3, "weight_decay": 0.5}, marks=pytest.mark.slow),
    pytest.param("sgd", 0.5, {"lr": 0.1, "weight_decay": 2e-3}, marks=pytest.mark.slow),
    pytest.param("sgdw", 0.5, {"lr": 0.1, "weight_decay": 2e-2}, marks=pytest.mark.slow),
    ("momentum", 0.0, {"lr": 0.1, "weight_decay": 2e-3}),
]


@pytest.mark.parametrize(("name", "correlation", "settings"), CASES)
def test_memory_of_earlier_steps_predicts_the_angle_of_later_ones(name, correlation, settings):
    simulation = simulated(name, correlation, **settings)
    line = simulation.line()
    along, squared, _, _ = moments(simulation, 1500)
    memory = measured_memory(1.0, along, squared, line.decay_rate, line.coupled)
    _, _, angle, drift = moments(simulation, 1500)
    predicted = line.with_memory(memory)
    assert angle / predicted.drift_corrected(drift) == pytest.approx(1.0, abs=0.015)
    if correlation == 0:
        assert memory == pytest.approx(line.expected_memory, rel=0.04)
    white = angle / line.drift_corrected(drift)
    assert math.sqrt(memory / line.expected_memory) == pytest.approx(1 / white, rel=0.06)


def test_the_two_forces_are_equal_at_equilibrium_and_differ_by_the_drift_elsewhere():
    settings = {"lr": 1e-3, "weight_decay": 1.0, "betas": (0.9, 0.99)}
    simulation = simulated("adamw", 0.0, **settings)
    decay = decay_force(1e-3, coupled=False)
    along, squared, _, _ = moments(simulation, 2000)
    assert growth_force(1.0, along, squared, 1e-3, coupled=False) == pytest.approx(decay, rel=0.05)
    simulation.rescale(3.0)
    along, squared, _, drift = moments(simulation, 100)
    growth = growth_force(1.0, along, squared, 1e-3, coupled=False)
    assert growth < 0.25 * decay
    assert growth - decay == pytest.approx(math.expm1(drift), rel=0.02)


def test_a_single_update_is_taken_apart_exactly():
    """By hand: w and an update u with a known overlap."""
    weight = torch.randn(50, dtype=torch.float64)
    update = 0.1 * torch.randn(50, dtype=torch.float64) - 0.01 * weight
    decay = 0.02
    change = -decay * weight - update
    products = [float(x) for x in (weight @ weight, weight @ change, change @ change)]
    expected = 1 - 2 * float(weight @ update) / float(update @ update)
    assert measured_memory(*products, decay, coupled=False) == pytest.approx(expected, rel=1e-12)
    after = weight + change
    growth = float(after @ after) / products[0] - 1
    assert growth_force(*products, decay, coupled=False) - decay_force(decay, coupled=False) == pytest.approx(growth)
    assert growth_force(*products, decay, coupled=True) - 2 * decay == pytest.approx(growth)


def test_arrays_are_taken_elementwise():
    columns = [np.array([1.0, 2.0]), np.array([-1e-4, 1e-4]), np.array([1e-3, 2e-3])]
    for coupled in (False, True):
        found = measured_memory(*columns, np.array([1e-3, 2e-3]), coupled)
        each = [measured_memory(*(float(c[i]) for c in columns), (i + 1) * 1e-3, coupled) for i in range(2)]
        np.testing.assert_allclose(found, each)
