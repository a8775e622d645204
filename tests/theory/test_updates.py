"""Memory factors against closed forms and brute force."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smdtrack.theory import updates as up


@given(momentum=st.floats(0.0, 0.99), dampening=st.floats(0.0, 0.9))
@settings(max_examples=50, deadline=None)
def test_heavy_ball_has_its_closed_form(momentum, dampening):
    found = up.heavy_ball(momentum, dampening)
    assert found.memory == pytest.approx((1 + momentum) / (1 - momentum), rel=1e-6)
    assert found.gain == pytest.approx((1 - dampening) / (1 - momentum), rel=1e-6)
    assert found.delay == pytest.approx(momentum / (1 - momentum), rel=1e-6, abs=1e-9)


@given(a=st.floats(0.01, 0.99))
@settings(max_examples=50, deadline=None)
def test_nesterov_has_its_closed_form(a):
    shape = ((1 - a) * (1 + a) ** 3 + a**4) / (1 + a)
    assert up.nesterov(a).memory == pytest.approx(1 / ((1 - a) * shape), rel=1e-6)


@given(beta=st.floats(0.0, 0.99))
@settings(max_examples=30, deadline=None)
def test_an_average_remembers_as_much_as_heavy_ball_with_gain_one(beta):
    assert up.average(beta).gain == pytest.approx(1.0, rel=1e-9)
    assert up.average(beta).memory == pytest.approx(up.heavy_ball(beta).memory, rel=1e-9)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (up.nesterov(0.9), 14.16),
        (up.nesterov_average(0.9), 14.16),
        (up.adan(0.98, 0.92), 61.19),
        (up.mars(0.9, 0.025), 18.007),
        (up.lion(0.9, 0.99), 45.93),
        (up.lion(0.95, 0.98), 58.08),
        (up.white(), 1.0),
    ],
)
def test_known_memories(found, expected):
    assert found.memory == pytest.approx(expected, rel=1e-3)


def test_memory_is_one_plus_twice_the_autocorrelation():
    found = up.nesterov(0.8)
    assert float(1 + 2 * found.autocorrelation[1:].sum()) == pytest.approx(found.memory, rel=1e-9)


def test_linear_scaling_ratios_for_momentum():
    found = up.heavy_ball(0.9)
    assert [round(math.sqrt(found.memory_over(k)), 2) for k in (4, 16, 64)] == [1.88, 3.14, 4.02]
    assert math.sqrt(found.memory_over(10**6)) == pytest.approx(math.sqrt(19), rel=1e-3)
    assert up.white().memory_over(64) == 1.0


@pytest.mark.parametrize("k", [1, 2, 7, 1000])
def test_heavy_ball_lag_has_its_closed_form(k):
    a = 0.9
    assert k * up.heavy_ball(a).memory_over(k) == pytest.approx(
        k * (1 + a) / (1 - a) - 2 * a * (1 - a**k) / (1 - a) ** 2, rel=1e-9
    )


def test_lookahead_agrees_with_a_filter_run_by_hand():
    alpha, period, steps, beta = 0.5, 6, 60_000, 0.9
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(steps, 16, generator=generator, dtype=torch.float64)
    buffer = fast = slow = torch.zeros(16, dtype=torch.float64)
    moves = torch.empty_like(noise)
    for step in range(steps):
        before = fast
        buffer = beta * buffer + noise[step]
        fast = fast - buffer
        if (step + 1) % period == 0:
            slow = fast = slow + alpha * (fast - slow)
        moves[step] = fast - before
    power = float(moves.square().mean())
    blocks = moves.reshape(-1, 600, 16).sum(1)
    found = up.lookahead(up.heavy_ball(beta), alpha, period)
    assert found.energy == pytest.approx(power, rel=0.03)
    assert found.memory == pytest.approx(float(blocks.square().mean()) / 600 / power, rel=0.1)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, 1.5])
def test_a_momentum_out_of_range_is_refused(momentum):
    with pytest.raises(ValueError, match="momentum"):
        up.heavy_ball(momentum)
