"""Angles over several steps, their line and the turning efficiency, on real optimizers and noise."""

import math

import numpy as np
import pytest
from torch.optim import SGD, AdamW

from smdtrack.record.run import Floats
from tests.tracking.simulated import Build, Simulated, rms


def values(simulated: Simulated, family: str, skip: int) -> Floats:
    """Returns the values of the windows that ended after `skip` steps, (windows, W)."""
    found = [sample.values[family] for sample in simulated.samples if sample.step > skip and family in sample.values]
    assert len(found) >= 20
    return np.stack(found)


@pytest.mark.parametrize("lag", [4, 16])
@pytest.mark.parametrize(
    "build",
    [
        lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
        lambda p: AdamW(p, lr=0.06, weight_decay=1.0, betas=(0.9, 0.99)),
    ],
    ids=["heavy-ball", "AdamW at .3 rad"],
)
def test_white_gradients_are_on_the_line_and_have_the_efficiency_1(build: Build, lag: int) -> None:
    simulated = Simulated(build, weights=3, norm=0.5, lags=[lag])
    simulated.run(900, sampled=lambda step: step % 2 == 0)
    angle, line = (rms(values(simulated, family, 300)) for family in (f"angle_k{lag}", f"angle_k{lag}_pred"))
    np.testing.assert_allclose(angle / line, 1, atol=0.02)
    np.testing.assert_allclose(rms(values(simulated, f"efficiency_k{lag}", 300)), 1, atol=0.02)


def test_the_efficiency_is_that_of_the_definition_for_correlated_gradients() -> None:
    """Without momentum R_k is 1: the reference is k times the mean squared angle of all steps in the window."""
    lag = 8
    build: Build = lambda p: SGD(p, lr=0.05, weight_decay=0.02)  # noqa: E731
    simulated = Simulated(build, weights=3, norm=0.3, correlation=-0.5, lags=[lag])
    simulated.run(320)
    angles = np.array(simulated.angles)
    for sample in simulated.samples:
        if f"efficiency_k{lag}" not in sample.values:
            continue
        first = sample.step - lag
        distance = -2 * np.log(np.cos(sample.values[f"angle_k{lag}"]))
        expected = np.sqrt(distance / np.square(angles[first : sample.step]).sum(axis=0))
        np.testing.assert_allclose(sample.values[f"efficiency_k{lag}"], expected, rtol=2e-3)
        assert sample.overview[f"smd/efficiency_k{lag}"] == np.median(sample.values[f"efficiency_k{lag}"])
    # AR(-.5): R_8 = 1 + 2 sum_j (1 - j/8) (-.5)^j.
    white_to_correlated = 1 + 2 * sum((1 - j / lag) * (-0.5) ** j for j in range(1, lag))
    efficiency = rms(values(simulated, f"efficiency_k{lag}", 100))
    np.testing.assert_allclose(efficiency, math.sqrt(white_to_correlated), rtol=0.03)
