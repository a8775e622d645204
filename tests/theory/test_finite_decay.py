"""Lines under decay that is not small: against an integral over frequencies, and against the real optimizers."""

import math

import pytest
import torch
from timm.optim import create_optimizer_v2

from smdtrack.theory import filters, finite_decay, identify
from smdtrack.theory.line import Line
from tests.theory.simulator import Simulation, angle_between, at_equilibrium

FILTERS = [
    filters.heavy_ball(0.9),
    filters.nesterov(0.9),
    filters.nesterov(0.5),
    filters.adan(0.98, 0.92),
    filters.identity(),
    filters.lion(0.9, 0.99),
]


def cosine_by_frequencies(autocorrelation, decay, lag):
    """Returns the cosine of w with itself after `lag` steps, `w' = (1 - g) w - u`, from the spectrum of the updates."""
    count = 1 << 18
    two_sided = torch.zeros(count, dtype=torch.float64)
    two_sided[: len(autocorrelation)] = autocorrelation
    if len(autocorrelation) > 1:
        two_sided[1 - len(autocorrelation) :] += autocorrelation[1:].flip(0)
    spectrum = torch.fft.fft(two_sided).real
    frequency = 2 * math.pi * torch.arange(count, dtype=torch.float64) / count
    weight = spectrum / (torch.exp(1j * frequency) - (1 - decay)).abs().square()
    return float((weight * torch.cos(lag * frequency)).sum() / weight.sum())


@pytest.mark.parametrize("updates", FILTERS)
@pytest.mark.parametrize("decay", [1e-3, 0.02, 0.1, 0.4])
def test_angles_agree_with_an_integral_over_frequencies(updates, decay):
    overlap = finite_decay.overlap(updates.autocorrelation, decay)
    expected = math.acos(cosine_by_frequencies(updates.autocorrelation, decay, 1))
    assert finite_decay.angle(decay, overlap) == pytest.approx(expected, rel=1e-6)
    relative = finite_decay.relative_update(decay, overlap)
    for lag in (1, 2, 17, 300):
        expected = cosine_by_frequencies(updates.autocorrelation, decay, lag)
        found = finite_decay.cosine_after(lag, updates.autocorrelation, decay, relative)
        assert found == pytest.approx(expected, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("updates", FILTERS)
def test_small_decay_gives_the_first_order(updates):
    decay = 1e-7
    overlap = finite_decay.overlap(updates.autocorrelation, decay)
    assert finite_decay.angle(decay, overlap) == pytest.approx(math.sqrt(2 * decay / updates.memory), rel=1e-4)
    found = finite_decay.angle(decay, overlap, growth=3e-7)
    assert found == pytest.approx(math.sqrt(5e-7 / updates.memory), rel=1e-4)


def test_far_above_equilibrium_only_decay_moves_the_weight():
    """Without updates ||w||^2 shrinks by the factor (1 - g)^2, and the direction stays."""
    assert finite_decay.angle(0.1, 4.7, 0.9**2 - 1) == pytest.approx(0.0, abs=1e-7)
    assert finite_decay.angle(0.1, 4.7, -0.5) == 0.0


def test_a_chord_longer_than_a_diameter_is_half_a_turn():
    assert finite_decay.angle_of_chord(5.0) == pytest.approx(math.pi)
    assert finite_decay.angle_of_chord(-1.0) == 0.0


def test_heavy_ball_turns_by_the_arc_cosine():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(4, 4))], lr=0.5, momentum=0.8, weight_decay=0.3)
    line = identify(optimizer).line(optimizer.param_groups[0], (4, 4))
    assert line.angular_update == pytest.approx(math.acos(1 - 0.5 * 0.3 / 1.8), rel=1e-12)
    assert line.overlap is None


SLOW = pytest.mark.slow
LARGE_DECAY = [
    # name, lr, weight decay, arguments, line over its first order
    ("adamw", 1e-2, 10.0, {"betas": (0.9, 0.99)}, 1.0250),
    pytest.param("sgdw", 0.1, 0.6, {"momentum": 0.9}, 1.0802, marks=SLOW),
    pytest.param("lion", 1e-3, 1.0, {}, 1.0367, marks=SLOW),
    pytest.param("nadamw", 1e-2, 5.0, {"betas": (0.9, 0.99)}, 1.0670, marks=SLOW),
    ("momentum", 0.1, 0.05, {}, 1.0002),
    pytest.param("adam", 1e-2, 0.1, {"betas": (0.9, 0.99)}, 1.0004, marks=SLOW),
]


@pytest.mark.parametrize(("name", "lr", "decay", "arguments", "over_first_order"), LARGE_DECAY)
def test_the_line_holds_under_large_decay(name, lr, decay, arguments, over_first_order):
    simulation = Simulation(
        lambda weights: create_optimizer_v2(weights, name, lr=lr, weight_decay=decay, **arguments), (64, 64)
    )
    at_equilibrium(simulation)
    simulation.run(600, sample=0)
    trace = simulation.run(2500 if name == "lion" else 1000)
    line = simulation.line()
    first_order = math.sqrt(2 * line.decay_rate / line.memory)
    assert line.angular_update / first_order == pytest.approx(over_first_order, abs=3e-4)
    assert trace.angle / trace.line == pytest.approx(1.0, abs=0.003)


@pytest.mark.slow
def test_many_steps_under_large_decay():
    """At lr wd = .05 a weight forgets its direction within 20 steps."""
    simulation = Simulation(
        lambda weights: create_optimizer_v2(weights, "adamw", lr=1e-2, weight_decay=5.0, betas=(0.9, 0.99)), (64, 64)
    )
    at_equilibrium(simulation)
    simulation.run(600, sample=0)
    kept = []
    for _ in range(1500):
        simulation.run(1, sample=0)
        kept.append(simulation.weight.detach().clone())
    for lag in (2, 5, 15, 40):
        pairs = range(0, len(kept) - lag, 3)
        measured = math.sqrt(sum(angle_between(kept[i], kept[i + lag]) ** 2 for i in pairs) / len(pairs))
        assert measured == pytest.approx(simulation.line().lag_angle(lag), rel=0.005), lag


def test_drift_memory_is_the_slope_of_the_squared_angle():
    optimizer = create_optimizer_v2([torch.nn.Parameter(torch.ones(4, 4))], "lion", lr=1e-3, weight_decay=3.0)
    line: Line = identify(optimizer).line(optimizer.param_groups[0], (4, 4))
    rise = (line.drift_corrected(1e-6) ** 2 - line.drift_corrected(-1e-6) ** 2) / 2e-6
    assert line.drift_memory == pytest.approx(1 / rise, rel=0.02)
    assert line.drift_memory < 0.9 * line.memory
