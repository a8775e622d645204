"""Growth, decay, memory and the drift-corrected line, against float64 brute force and real optimizers on noise."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import timm.optim
import torch
from timm.optim import Lookahead
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from smdtrack.record.run import Floats
from smdtrack.tracking.attach.sampling_schedule import EverySteps
from tests.tracking.simulated import Build, Simulated, rms

HEAVY_BALL: Build = lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01)  # noqa: E731
NESTEROV: Build = lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True)  # noqa: E731
ADAMW: Build = lambda p: AdamW(p, lr=0.01, weight_decay=0.2, betas=(0.9, 0.99))  # noqa: E731
LION: Build = lambda p: timm.optim.Lion(p, lr=1e-3, weight_decay=1.0)  # noqa: E731
WINDOW = 100


def every(steps: int) -> Callable[[int], bool]:
    return lambda step: step % steps == 0


def ratios(simulated: Simulated, samples: int) -> Floats:
    """Returns measured over drift-corrected RMS angle in windows of so many samples, the median over the weights."""
    angle, line = simulated.values("angle"), simulated.values("angle_pred")
    starts = range(0, len(angle) - samples + 1, samples)
    found = [rms(angle[start : start + samples]) / rms(line[start : start + samples]) for start in starts]
    return np.median(found, axis=1)


def test_growth_decay_and_memory_equal_float64_under_decoupled_decay() -> None:
    decay_rate, memory = 0.01 * 0.2, 1.9 / 0.1
    simulated = Simulated(ADAMW, weights=3, shape=(20, 30))
    before: list[list[Tensor]] = [[w.detach().clone() for w in simulated.parameters]]
    simulated.run(45, between=lambda weights: before.append([w.detach().clone() for w in weights]))
    for weight in range(3):
        w = [step[weight] for step in before]
        updates = [(1 - decay_rate) * old - new for old, new in pairwise(w)]
        squared = np.array([float(old.square().sum()) for old in w])
        growth = squared[1:] / squared[:-1] - (1 - decay_rate) ** 2
        relative = np.array([float(u.square().sum()) for u in updates]) / squared[:-1]
        overlap = np.array([-float((old * u).sum()) for old, u in zip(w[:-1], updates, strict=True)]) / squared[:-1]
        # The line's A in closed form: sum_{j>=1} .9^j (1 - g)^(j-1).
        expected_memory = 1 + 2 * 0.9 / (1 - 0.9 * (1 - decay_rate))
        sample = simulated.samples[-1]
        # AdamW's updates do not depend on the norm, so that the model is x ~ 1/r.
        model = 1 / squared[:-1]
        near = np.abs(np.log(squared[-1] / squared[:-1])) <= max(0.05, 2 / math.sqrt(600))
        first = len(near) - int(np.argmin(near[::-1])) if not near.all() else 0
        expected = growth[first:].sum() / model[first:].sum() * model[-1]
        assert sample.values["growth"][weight] == pytest.approx(expected, rel=1e-9)
        assert sample.values["decay"][weight] == pytest.approx(1 - (1 - decay_rate) ** 2, rel=1e-12)
        measured_memory = 1 + 2 * overlap.sum() / relative.sum()
        assert sample.values["memory"][weight] == pytest.approx(measured_memory / expected_memory, rel=1e-3)
        assert sample.values["line_memory"][weight] == pytest.approx(memory, rel=0.05)


def test_the_first_sample_has_no_growth_yet() -> None:
    simulated = Simulated(HEAVY_BALL, weights=2)
    simulated.run(2)
    first, second = simulated.samples
    for family in ("growth", "memory", "angle_pred"):
        assert np.isnan(first.values[family]).all()
        assert np.isfinite(second.values[family]).all()
    np.testing.assert_allclose(first.values["decay"], 2 * 0.05 * 0.01 / 0.1)


@pytest.mark.parametrize(
    ("build", "rate", "tolerance"),
    [(HEAVY_BALL, 0.05, 0.02), (NESTEROV, 0.05, 0.02), (ADAMW, 0.01, 0.045)],
    ids=["heavy-ball", "Nesterov", "AdamW"],
)
@pytest.mark.parametrize("schedule", ["cosine to 0", "a tenth"])
@pytest.mark.parametrize("sampled", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_the_line_stays_with_the_angle_under_a_schedule(
    build: Build, rate: float, tolerance: float, schedule: str, sampled: int
) -> None:
    steps = 1000
    cosine = [rate * 0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]
    rates = cosine if schedule == "cosine to 0" else [rate] * (steps // 2) + [rate / 10] * (steps // 2)
    simulated = Simulated(build, weights=3, norm=0.5)
    simulated.run(400, [rate] * 400, every(sampled))
    simulated.samples.clear()
    simulated.run(steps, rates, every(sampled))
    found = ratios(simulated, WINDOW // sampled)
    assert len(found) == steps // WINDOW
    np.testing.assert_allclose(found, 1, atol=tolerance)


@pytest.mark.parametrize("sampled", [1, 5])
def test_weights_that_are_scaled_between_steps_leave_the_line(sampled: int) -> None:
    def scale(weights: list[nn.Parameter]) -> None:
        if len(simulated.angles) == 302:
            with torch.no_grad():
                for weight in weights:
                    weight.mul_(1.5)

    simulated = Simulated(HEAVY_BALL, weights=3, norm=0.4)
    simulated.run(400, sampled=every(sampled), between=scale)
    # The momentum takes 30 steps to adapt. The growth that the change would pass for is ln 1.5^2 = .8, where that of
    # the updates is .01 per step: the line would be off by 1.5.
    after = slice(340 // sampled, 400 // sampled)
    ratio = rms(simulated.values("angle")[after]) / rms(simulated.values("angle_pred")[after])
    np.testing.assert_allclose(ratio, 1, atol=0.08)


@pytest.mark.parametrize("sampled", [1, 5])
def test_a_norm_that_is_fixed_between_steps_is_no_equilibrium_of_growth_and_decay(sampled: int) -> None:
    def fix(weights: list[nn.Parameter]) -> None:
        with torch.no_grad():
            for weight in weights:
                weight.mul_(1.5 / weight.norm())

    simulated = Simulated(lambda p: SGD(p, lr=0.05, momentum=0.9), weights=3, shape=(64, 64), norm=1.5)
    simulated.run(400, sampled=every(sampled), between=fix)
    growth = simulated.values("growth")[-1]
    inside = rms(simulated.values("angle")[-50:]) ** 2 * 19
    # Without weight decay the updates make the norm grow by x R at each step, which is undone after it.
    np.testing.assert_allclose(growth / inside, 1, atol=0.15)


@pytest.mark.parametrize(("sampled", "period"), [(5, 5), (6, 6)])
def test_lookahead_is_on_its_line_when_whole_cycles_are_sampled(sampled: int, period: int) -> None:
    simulated = Simulated(lambda p: Lookahead(HEAVY_BALL(p), k=period), weights=2, norm=0.42)
    for weight in simulated.parameters:
        weight.grad = torch.zeros_like(weight)
    simulated.run(1200, sampled=EverySteps(sampled, cycle=period))
    last = 600 // sampled
    for line in ("angle_eq", "angle_pred"):
        ratio = rms(simulated.values("angle")[-last:]) / rms(simulated.values(line)[-last:])
        np.testing.assert_allclose(ratio, 1, atol=0.03)


@pytest.mark.parametrize("correlation", [-0.3, 0.5])
def test_the_line_with_the_memory_from_before_holds_for_correlated_gradients(correlation: float) -> None:
    simulated = Simulated(LION, weights=4, shape=(40, 40), norm=0.5, correlation=correlation)
    simulated.run(1800, sampled=every(2))
    third = len(simulated.samples) // 3
    angle, line = (rms(simulated.values(family)[-third:]) for family in ("angle", "angle_pred"))
    memory = simulated.values("memory")[third + 50 : 2 * third : 25].mean(axis=0)
    assert np.abs(np.log(angle / line)).min() > 0.15, "the line of white gradients is off"
    # The memory of one weight over 600 steps scatters by 3 %: the median of four.
    assert np.median(angle / line * np.sqrt(memory)) == pytest.approx(1, abs=0.03)
    # The reference for the last third: growth by the norms of all steps, over the squared angles of all steps.
    log_norms = np.array(simulated.log_norms)[-2 * third :]
    growth = (log_norms[-1] - log_norms[0]) / (len(log_norms) - 1) + 2e-3
    measured = growth / np.mean(np.square(simulated.angles[-2 * third :]), axis=0)
    last = simulated.values("memory")[-third + 50 :: 25].mean(axis=0) * simulated.values("line_memory")[-1]
    assert np.median(last / measured) == pytest.approx(1, abs=0.05)


def test_trust_ratios_have_no_forces() -> None:
    simulated = Simulated(lambda p: timm.optim.Lamb(p, lr=0.01, weight_decay=0.1), weights=2)
    simulated.run(4)
    for family in ("growth", "decay", "memory"):
        assert np.isnan(simulated.values(family)).all()
    assert np.isfinite(simulated.values("angle_pred")[1:]).all()
