"""Memory factors of filters against closed forms."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smdtrack.theory import filters


@given(momentum=st.floats(0.0, 0.99), dampening=st.floats(0.0, 0.9))
@settings(max_examples=50, deadline=None)
def test_heavy_ball_has_its_closed_form(momentum, dampening):
    found = filters.heavy_ball(momentum, dampening)
    assert found.memory == pytest.approx((1 + momentum) / (1 - momentum), rel=1e-6)
    assert found.gain == pytest.approx((1 - dampening) / (1 - momentum), rel=1e-6)
    assert found.delay == pytest.approx(momentum / (1 - momentum), rel=1e-6, abs=1e-9)


@given(a=st.floats(0.01, 0.99))
@settings(max_examples=50, deadline=None)
def test_nesterov_has_its_closed_form(a):
    shape = ((1 - a) * (1 + a) ** 3 + a**4) / (1 + a)
    assert filters.nesterov(a).memory == pytest.approx(1 / ((1 - a) * shape), rel=1e-6)


@given(beta=st.floats(0.0, 0.99))
@settings(max_examples=30, deadline=None)
def test_an_average_remembers_as_much_as_heavy_ball_with_gain_one(beta):
    assert filters.moving_average(beta).gain == pytest.approx(1.0, rel=1e-9)
    assert filters.moving_average(beta).memory == pytest.approx(filters.heavy_ball(beta).memory, rel=1e-9)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (filters.nesterov(0.9), 14.16),
        (filters.nesterov_average(0.9), 14.16),
        (filters.adan(0.98, 0.92), 61.19),
        (filters.mars(0.9, 0.025), 18.007),
        (filters.lion(0.9, 0.99), 45.93),
        (filters.lion(0.95, 0.98), 58.08),
        (filters.identity(), 1.0),
    ],
)
def test_known_memories(found, expected):
    assert found.memory == pytest.approx(expected, rel=1e-3)


def test_memory_is_one_plus_twice_the_autocorrelation():
    found = filters.nesterov(0.8)
    assert float(1 + 2 * found.autocorrelation[1:].sum()) == pytest.approx(found.memory, rel=1e-9)


def test_linear_scaling_ratios_for_momentum():
    found = filters.heavy_ball(0.9)
    assert [round(math.sqrt(found.memory_over(k)), 2) for k in (4, 16, 64)] == [1.88, 3.14, 4.02]
    assert math.sqrt(found.memory_over(10**6)) == pytest.approx(math.sqrt(19), rel=1e-3)
    assert filters.identity().memory_over(64) == 1.0


@pytest.mark.parametrize("k", [1, 2, 7, 1000])
def test_heavy_ball_lag_has_its_closed_form(k):
    a = 0.9
    assert k * filters.heavy_ball(a).memory_over(k) == pytest.approx(
        k * (1 + a) / (1 - a) - 2 * a * (1 - a**k) / (1 - a) ** 2, rel=1e-9
    )


@pytest.mark.parametrize("momentum", [-0.1, 1.0, 1.5])
def test_a_momentum_out_of_range_is_refused(momentum):
    with pytest.raises(ValueError, match="momentum"):
        filters.heavy_ball(momentum)
