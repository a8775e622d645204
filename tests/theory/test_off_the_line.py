"""What puts a weight off its line: the causes that the README names for Lion and Muon, each by itself."""

import pytest
import torch

from tests.theory.cases import CASES
from tests.theory.compare import build
from tests.theory.simulator import Simulation, at_equilibrium


def measured_over_corrected(simulation, settle=500, steps=2000):
    at_equilibrium(simulation)
    simulation.run(settle, sample=0)
    trace = simulation.run(steps)
    return trace.angle / simulation.line().drift_corrected(trace.drift)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "correlation", "low", "high"),
    [
        ("momentum", -0.2, 0.99, 1.01),
        ("momentum", 0.5, 0.99, 1.01),
        ("adamw", -0.2, 0.99, 1.01),
        ("adamw", 0.5, 0.99, 1.01),
        ("nadamw", -0.2, 1.02, 1.06),
        ("nadamw", 0.5, 0.92, 0.97),
        ("lion", -0.2, 1.08, 1.20),
        ("lion", 0.5, 0.72, 0.83),
        ("muon", -0.2, 0.98, 1.02),
        ("muon", 0.5, 0.95, 1.0),
    ],
)
def test_correlated_gradients_move_lion_most(name, correlation, low, high):
    """AR(1): successive gradients that oppose each other, or resemble each other."""
    case = CASES[name]
    simulation = Simulation(build(case), case.shape, correlation=correlation)
    assert low < measured_over_corrected(simulation, case.settle) < high


class OnePixel(Simulation):
    """A 3 x 3 convolution over maps of one pixel: only the middle tap ever gets a gradient."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.taps = torch.zeros_like(self.weight)
        self.taps[..., 1, 1] = 1
        with torch.no_grad():
            self.weight.mul_(self.taps)

    def _gradient(self):
        super()._gradient()
        self.weight.grad.mul_(self.taps)
        weight = self.weight.detach()
        self.weight.grad.sub_(weight * ((self.weight.grad * weight).sum() / weight.square().sum()))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "low", "high"), [(Simulation, 0.98, 1.02), (OnePixel, 1.08, 1.16)])
def test_muon_orthogonalises_what_gets_gradients_not_what_has_the_shape(kind, low, high):
    simulation = kind(build(CASES["muon"]), (16, 16, 3, 3))
    assert low < measured_over_corrected(simulation, 300, 1000) < high
