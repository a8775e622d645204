"""Adam-like settings that the usual formula does not cover, against simulation."""

import pytest
import timm.optim
import torch

from tests.theory.simulator import Simulation, at_equilibrium

DECOUPLED = {"lr": 1e-3, "weight_decay": 1.0, "betas": (0.9, 0.99)}


def ratio(build, settle=800, steps=2000):
    """Returns the simulation and measured / equilibrium line."""
    simulation = Simulation(build)
    at_equilibrium(simulation)
    simulation.run(settle, sample=0)
    trace = simulation.run(steps)
    return simulation, trace.angle / trace.line


def test_nadam_with_decoupled_decay_knows_its_step():
    """Its momentum at step 3000 is far from its limit: the line of the limit would be 60 % off."""
    simulation, found = ratio(lambda weights: torch.optim.NAdam(weights, decoupled_weight_decay=True, **DECOUPLED))
    assert found == pytest.approx(1, abs=0.01)
    assert simulation.line().memory < 7


@pytest.mark.parametrize("eps", [1e-10, pytest.param(1e-4, marks=pytest.mark.slow), 1e-2])
def test_an_eps_under_the_root_weakens_the_gradients_own_share(eps):
    _, found = ratio(lambda weights: timm.optim.RMSpropTF(weights, lr=1e-4, weight_decay=0.04, eps=eps), steps=1500)
    assert found == pytest.approx(1, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_an_eps_beside_the_root_weakens_it_too(eps):
    _, found = ratio(lambda weights: torch.optim.RMSprop(weights, lr=1e-4, weight_decay=0.04, eps=eps, alpha=0.9))
    assert found == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("betas", [(0.9, 0.9), pytest.param((0.95, 0.95), marks=pytest.mark.slow)])
def test_a_second_moment_as_fast_as_the_first_is_calibrated(betas):
    simulation, found = ratio(lambda weights: torch.optim.AdamW(weights, **{**DECOUPLED, "betas": betas}))
    assert simulation.line().kind == "calibrated"
    assert found == pytest.approx(1, abs=0.005)
