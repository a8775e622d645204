"""Rescaling norms at a drop of the learning rate."""

import math

import pytest
import torch

from smdtrack.notices import SmdtrackError
from smdtrack.theory.rescaling import declare_invariant, rescale_factor, rescale_weight_norms
from tests.said import collected_notices
from tests.theory.cases import Case
from tests.theory.compare import build
from tests.theory.simulator import Simulation, at_equilibrium

CASES = [Case("momentum", 0.1, 1e-3), Case("adamw", 1e-3, 1.0, {"betas": (0.9, 0.99)})]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("rescaled", [True, False])
def test_a_tenfold_drop_is_on_its_new_line_within_five_steps(case, rescaled):
    simulation = Simulation(build(case))
    at_equilibrium(simulation)
    simulation.run(800, sample=0)
    old = simulation.line()
    simulation.group["lr"] = case.lr / 10
    new = simulation.line()
    if rescaled:
        factor = rescale_factor(old, 10)
        assert factor == pytest.approx(10 ** (-1 / 4 if case.name == "momentum" else -1 / 2))
        assert rescale_weight_norms(simulation.optimizer, factor, [simulation.weight]) == 1
    trace = simulation.run(25, sample=0)
    soon = math.sqrt(sum(trace.angle2[5:]) / 20)
    if rescaled:
        assert soon == pytest.approx(new.angular_update, rel=0.03)
    else:
        assert soon < 0.5 * new.angular_update
        later = simulation.run(2000, sample=0)
        assert math.sqrt(sum(later.angle2[-100:]) / 100) < 0.9 * new.angular_update, "thousands of steps"


def test_the_state_follows_the_norm():
    parameter = torch.nn.Parameter(torch.randn(8, 8))
    optimizer = torch.optim.AdamW([parameter], lr=1e-3)
    parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    weight, first, second = (
        tensor.detach().clone()
        for tensor in (parameter, optimizer.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg_sq"])
    )
    rescale_weight_norms(optimizer, 0.5, [parameter])
    torch.testing.assert_close(parameter.detach(), weight / 2)
    torch.testing.assert_close(optimizer.state[parameter]["exp_avg"], first * 2)
    torch.testing.assert_close(optimizer.state[parameter]["exp_avg_sq"], second * 4)
    assert float(optimizer.state[parameter]["step"]) == 1.0


def test_declared_weights_are_taken_and_others_left():
    invariant, other = (torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    optimizer = torch.optim.SGD([invariant, other], lr=0.1)
    declare_invariant(optimizer, [invariant])
    assert rescale_weight_norms(optimizer, 2.0) == 1
    assert invariant[0, 0].item() == 2.0
    assert other[0, 0].item() == 1.0


def test_without_a_watch_it_says_what_it_does():
    matrix, bias = torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([matrix, bias], lr=0.1)
    with collected_notices(match="weights="):
        assert rescale_weight_norms(optimizer, 2.0) == 1
    assert bias[0].item() == 1.0


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_a_factor_that_is_not_positive_is_refused(factor):
    with pytest.raises(SmdtrackError, match="positive"):
        rescale_weight_norms(torch.optim.SGD([torch.nn.Parameter(torch.ones(2, 2))], lr=0.1), factor)


def test_an_optimizer_whose_state_does_not_scale_is_refused():
    from timm.optim import create_optimizer_v2

    optimizer = create_optimizer_v2([torch.nn.Parameter(torch.ones(2, 2))], "madgrad", lr=0.1)
    with pytest.raises(SmdtrackError, match="MADGRAD"):
        rescale_weight_norms(optimizer, 0.5)


class Clipped(Simulation):
    """Gradients that are clipped to the same norm at every step."""

    def _gradient(self):
        super()._gradient()
        self.weight.grad.mul_(self.scale / self.weight.grad.norm())


def clipped_at_equilibrium():
    """Returns the simulation, settled, with the line for clipped gradients."""
    simulation = Clipped(lambda weights: torch.optim.SGD(weights, lr=0.5, momentum=0.9, weight_decay=1e-3))
    line = simulation.line().with_constant_gradient_norm()
    # |u| = lr S^(1/2) |g| is fixed, and ||w||^2 = |u|^2 R/(2 gamma).
    updates = line.updates
    length = line.step_size * math.sqrt(updates.energy) * simulation.scale
    simulation.rescale(length * math.sqrt(line.memory / (2 * line.decay_rate)))
    simulation.run(400, sample=0)
    return simulation, line


def test_clipped_gradients_keep_the_angle_and_change_the_norms_exponent():
    simulation, line = clipped_at_equilibrium()
    trace = simulation.run(1500, sample=0)
    assert trace.angle == pytest.approx(line.angular_update, rel=0.01)
    assert line.time_constant == pytest.approx(2 * simulation.line().time_constant)
    norm = math.sqrt(sum(trace.norm2) / len(trace.norm2))
    simulation.rescale(1.3)
    off = simulation.run(150, sample=0)
    found = line.equilibrium_norm(math.sqrt(sum(off.norm2[50:]) / 100), math.sqrt(sum(off.angle2[50:]) / 100))
    assert found == pytest.approx(norm, rel=0.03)


@pytest.mark.slow
def test_the_norm_under_clipped_gradients_relaxes_with_the_longer_time_constant():
    simulation, line = clipped_at_equilibrium()
    trace = simulation.run(1000, sample=0)
    equilibrium = sum(trace.norm2) / len(trace.norm2)
    simulation.rescale(2.0)
    trace = simulation.run(round(line.time_constant) + 1, sample=0)
    assert (trace.norm2[-1] - equilibrium) / (trace.norm2[0] - equilibrium) == pytest.approx(math.exp(-1), rel=0.06)


def test_a_drop_under_clipped_gradients_is_rescaled_by_its_root():
    simulation, line = clipped_at_equilibrium()
    simulation.group["lr"] /= 10
    new = simulation.line()
    factor = rescale_factor(line, 10)
    assert factor == pytest.approx(10**-0.5)
    buffer = simulation.state["momentum_buffer"].clone()
    assert rescale_weight_norms(simulation.optimizer, factor, [simulation.weight], clipped=True) == 1
    assert torch.equal(simulation.state["momentum_buffer"], buffer)
    trace = simulation.run(60, sample=0)
    assert trace.angle == pytest.approx(new.angular_update, rel=0.02)
