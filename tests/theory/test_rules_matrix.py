"""torch.optim.Muon against a simulation of itself."""

import pytest
import torch

from tests.theory.simulator import Simulation, at_equilibrium


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize(
    "settings",
    [
        {"momentum": 0.95, "nesterov": True},
        pytest.param({"momentum": 0.9, "nesterov": False, "adjust_lr_fn": "match_rms_adamw"}, marks=pytest.mark.slow),
    ],
)
def test_torchs_muon_turns_by_its_calibrated_line(settings):
    simulation = Simulation(lambda weights: torch.optim.Muon(weights, lr=1e-3, weight_decay=0.5, **settings))
    at_equilibrium(simulation)
    simulation.run(300, sample=0)
    trace = simulation.run(1200)
    line = simulation.line()
    assert simulation.family.known
    assert (line.optimizer, line.kind) == ("Muon", "calibrated")
    assert line.decay_rate == pytest.approx(5e-4)
    assert trace.angle / trace.line == pytest.approx(1, abs=0.02)
