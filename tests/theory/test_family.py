"""Which line an optimizer gets."""

import math

import pytest
import timm.optim
import torch
from timm.optim import create_optimizer_v2

from smdtrack.theory import equilibrium_lines, identify
from smdtrack.theory.catalogue import absent
from tests.theory.compare import uncompile


def weight(*shape):
    return torch.nn.Parameter(torch.randn(shape or (16, 16)))


def only_line(optimizer, shape=(16, 16)):
    return identify(optimizer).line(optimizer.param_groups[0], shape)


def test_heavy_ball_has_the_papers_line():
    line = only_line(torch.optim.SGD([weight()], lr=0.1, momentum=0.9, weight_decay=1e-4))
    assert line.kind == "closed form"
    assert line.angular_update == pytest.approx(math.sqrt(2 * 0.1 * 1e-4 / 1.9))
    assert line.time_constant == pytest.approx(0.1 / (4 * 0.1 * 1e-4))
    assert "2006.08419" in line.source


def test_timm_sgd_is_nesterov_and_off_the_papers_line_by_16_percent():
    line = only_line(create_optimizer_v2([weight()], "sgd", lr=0.1, momentum=0.9, weight_decay=1e-4))
    assert line.angular_update == pytest.approx(math.sqrt(2 * 0.1 * 1e-4 * 0.7063), rel=1e-4)
    assert math.sqrt(2 * 0.1 * 1e-4 / 1.9) / line.angular_update == pytest.approx(0.863, abs=2e-3)


def test_adam_and_adamw_are_told_apart_by_flag_not_name():
    decoupled = only_line(torch.optim.Adam([weight()], weight_decay=0.1, decoupled_weight_decay=True))
    assert decoupled.optimizer == "AdamW"
    assert decoupled.angular_update == pytest.approx(math.sqrt(2e-4 / 19), rel=1e-4)
    coupled = only_line(torch.optim.Adam([weight()], weight_decay=0.1))
    assert coupled.kind == "from state"
    assert coupled.angular_update is None
    assert coupled.reason


def test_corrected_decay_goes_with_the_square_of_the_learning_rate():
    optimizer = create_optimizer_v2([weight()], "adamc", lr=1e-2, weight_decay=0.1)
    optimizer.param_groups[0]["lr"] = 1e-3
    line = only_line(optimizer)
    assert line.decay_rate == pytest.approx(1e-3**2 / 1e-2 * 0.1)
    assert line.formula == "2 (lr^2/lr_max) wd (1-b1)/(1+b1)"
    assert "2506.02285" in line.source


def test_without_decay_there_is_no_equilibrium_but_a_drift_corrected_line():
    line = only_line(torch.optim.SGD([weight()], lr=0.1, momentum=0.9))
    assert line.angular_update == 0.0
    assert line.time_constant is None
    assert line.equilibrium_norm(1.0, 0.1) is None
    assert line.drift_corrected(1e-3) == pytest.approx(math.sqrt(1e-3 / 19), rel=1e-5)
    assert "weight decay is 0" in line.reason


def test_a_subclass_is_known_by_its_step():
    class Same(torch.optim.SGD):
        pass

    class Other(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.mul_(1 - group["lr"] * group["weight_decay"]).sub_(
                        group["lr"] * parameter.grad.sign()
                    )

    assert identify(Same([weight()], lr=0.1)).known
    family = identify(Other([weight()], lr=0.01, weight_decay=0.1))
    assert not family.known


def test_an_unknown_optimizer_is_calibrated_and_says_so():
    class SignAverage(torch.optim.Optimizer):
        """Heavy-ball average, then 3 x its length-free update, decay multiplied in."""

        def __init__(self, params, lr=1e-3, beta=0.8, weight_decay=0.0):
            super().__init__(params, {"lr": lr, "beta": beta, "weight_decay": weight_decay})

        def step(self, closure=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    buffer = self.state[parameter].setdefault("buffer", torch.zeros_like(parameter))
                    buffer.mul_(group["beta"]).add_(parameter.grad, alpha=1 - group["beta"])
                    parameter.data.mul_(1 - group["lr"] * group["weight_decay"]).sub_(3 * group["lr"] * buffer)

    line = only_line(SignAverage([weight()], lr=1e-2, weight_decay=0.1))
    assert line.kind == "calibrated"
    assert line.memory == pytest.approx(9.0, rel=0.01)
    assert line.decay_rate == pytest.approx(1e-3, rel=0.02)
    assert line.norm_exponent == pytest.approx(1.0, abs=0.02)
    assert any("calibrated" in text for text in line.assumptions)


def test_an_optimizer_that_cannot_be_run_has_no_line_and_a_reason():
    class Closed(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 0.1})

        def step(self, closure):
            closure()

    line = only_line(Closed([weight()]))
    assert line.kind == "none"
    assert "does not run" in line.reason


def test_hyper_parameters_without_a_line_do_not_raise():
    line = only_line(torch.optim.SGD([weight()], lr=0.1, momentum=1.0, weight_decay=1e-3))
    assert line.kind == "none"
    assert "momentum" in line.reason


def test_lookahead_is_looked_through():
    base = only_line(create_optimizer_v2([weight()], "momentum", lr=0.1, weight_decay=1e-3))
    line = only_line(create_optimizer_v2([weight()], "lookahead_momentum", lr=0.1, weight_decay=1e-3))
    assert line.decay_rate == pytest.approx(base.decay_rate / 2)
    assert line.angular_update / base.angular_update == pytest.approx(1.706, abs=0.01)


def test_a_learning_rate_in_a_tensor_is_followed():
    rate = torch.tensor(0.1)
    optimizer = torch.optim.SGD([weight()], lr=rate, momentum=0.9, weight_decay=1e-3)
    family = identify(optimizer)
    first = family.line(optimizer.param_groups[0], (16, 16))
    rate.mul_(0.25)
    second = family.line(optimizer.param_groups[0], (16, 16))
    assert second.angular_update == pytest.approx(first.angular_update / 2, rel=1e-5)


def test_lines_are_kept_while_the_hyper_parameters_stand_still():
    optimizer = torch.optim.SGD([weight()], lr=0.1, momentum=0.9, weight_decay=1e-3)
    family = identify(optimizer)
    assert family.line(optimizer.param_groups[0], (4, 4)) is family.line(optimizer.param_groups[0], (4, 4))


def test_reference_gives_one_line_per_group():
    optimizer = torch.optim.SGD(
        [{"params": [weight()], "weight_decay": 1e-3}, {"params": [weight(8)], "weight_decay": 0.0}], lr=0.1
    )
    lines = equilibrium_lines(optimizer)
    assert [bool(line.angular_update) for line in lines] == [True, False]


@pytest.mark.parametrize("name", [str(name) for name in timm.optim.list_optimizers() if absent(str(name)) is None])
@pytest.mark.filterwarnings("ignore:It is highly recommended")
def test_every_optimizer_of_timm_has_a_line_or_a_reason(name):
    optimizer = create_optimizer_v2([weight(8, 8)], name, lr=1e-3, weight_decay=0.0 if name in CAUTIOUS else 0.01)
    if name.startswith("kron"):
        uncompile(optimizer)
    family = identify(optimizer)
    assert family.known
    if name in CAUTIOUS:
        return
    line = family.line(optimizer.param_groups[0], (8, 8))
    assert line.kind != "none" or line.reason
    assert line.angular_update or line.reason


CAUTIOUS = {str(name) for name in timm.optim.list_optimizers("c*")}
