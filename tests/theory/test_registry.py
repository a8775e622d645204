"""Which line an optimizer gets."""

import math

import pytest
import timm.optim
import torch
from timm.optim import create_optimizer_v2

from smdtrack.theory import equilibrium_lines, identify
from smdtrack.theory.catalogue import absent
from tests.theory.comparison import uncompile


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
    assert decoupled.angular_update == pytest.approx(math.sqrt(2e-4 / 19))
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
    assert line.drift_corrected(1e-3) == pytest.approx(math.sqrt(1e-3 / 19))
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
    assert second.angular_update == pytest.approx(first.angular_update / 2, rel=1e-6)


def test_lines_are_kept_while_the_hyper_parameters_stand_still():
    optimizer = torch.optim.SGD([weight()], lr=0.1, momentum=0.9, weight_decay=1e-3)
    family = identify(optimizer)
    assert family.line(optimizer.param_groups[0], (4, 4)) is family.line(optimizer.param_groups[0], (4, 4))


def corrected(moment, state, beta2=0.99):
    return (moment / (1 - beta2 ** float(state["step"]))).sqrt() + 1e-8


def rectified(state):
    step, longest = float(state["step"]), 2 / (1 - 0.99) - 1
    length = longest - 2 * step * 0.99**step / (1 - 0.99**step)
    if length <= 5:
        return torch.ones_like(state["exp_avg_sq"])
    share = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    return corrected(state["exp_avg_sq"], state) / share**0.5


ADAM = {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.99)}
STATEFUL = [
    (torch.optim.Adam, ADAM, lambda s: corrected(s["exp_avg_sq"], s)),
    (torch.optim.Adam, {**ADAM, "amsgrad": True}, lambda s: corrected(s["max_exp_avg_sq"], s)),
    (torch.optim.RAdam, ADAM, rectified),
    (torch.optim.Adamax, ADAM, lambda s: s["exp_inf"]),
    (
        torch.optim.Adagrad,
        {"lr": 1e-3, "weight_decay": 0.1, "lr_decay": 0.2},
        lambda s: (s["sum"].sqrt() + 1e-10) * (1 + 0.2 * (float(s["step"]) - 1)),
    ),
    (
        torch.optim.RMSprop,
        {"lr": 1e-3, "weight_decay": 0.1, "centered": True},
        lambda s: (s["square_avg"] - s["grad_avg"] ** 2).sqrt() + 1e-8,
    ),
    (timm.optim.RMSpropTF, {"lr": 1e-3, "weight_decay": 0.1}, lambda s: (s["square_avg"] + 1e-10).sqrt()),
    (timm.optim.Adopt, {"lr": 1e-3, "weight_decay": 0.1}, lambda s: s["exp_avg_sq"].sqrt().clamp(min=1e-6)),
]


@pytest.mark.parametrize(("optimizer_class", "options", "denominator"), STATEFUL)
@pytest.mark.parametrize("steps", [2, 9])
def test_state_factors_are_the_weighted_denominators(optimizer_class, options, denominator, steps, monkeypatch):
    monkeypatch.setattr("smdtrack.theory.state_factor.BATCH", 20)
    parameters = [torch.nn.Parameter(torch.randn(4, size)) for size in (3, 1, 2, 9, 4)]
    optimizer = optimizer_class(parameters, **options)
    family, group = identify(optimizer), optimizer.param_groups[0]
    assert family.state_factors([], [], group) is None
    for step in range(steps):
        for parameter in parameters:
            # One that has been frozen in between has taken fewer steps than the others.
            parameter.grad = None if step == 1 and parameter is parameters[2] else torch.randn_like(parameter)
        optimizer.step()
    states = [optimizer.state[parameter] for parameter in parameters]
    before = [{key: torch.as_tensor(value).clone() for key, value in state.items()} for state in states]
    factors = family.state_factors(parameters, states, group)
    assert factors is not None
    for parameter, state, factor in zip(parameters, states, factors, strict=True):
        squared = parameter.detach().double() ** 2
        wide = {key: torch.as_tensor(value).double() for key, value in state.items()}
        assert (factor.ndim, factor.dtype) == (0, torch.float64)
        assert float(factor) == pytest.approx(float((squared / denominator(wide)).sum() / squared.sum()), rel=1e-5)
    for old, state in zip(before, states, strict=True):
        assert all(torch.equal(value, torch.as_tensor(state[key])) for key, value in old.items())


def test_the_line_of_coupled_decay_reads_the_state():
    parameter = weight()
    optimizer = torch.optim.Adam([parameter], **ADAM)
    for _ in range(5):
        parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    state = optimizer.state[parameter]
    squared = parameter.detach() ** 2
    factor = float((squared / corrected(state["exp_avg_sq"], state)).sum() / squared.sum())
    share_of_its_own = 0.1 * 0.01 / (1 - 0.9 * 0.99)
    assert equilibrium_lines(optimizer)[0].decay_rate == pytest.approx(1e-4 * factor * (1 - share_of_its_own), rel=1e-4)


def test_decoupled_optimizers_need_no_state():
    parameter = weight()
    optimizer = torch.optim.AdamW([parameter], lr=1e-3, weight_decay=0.1)
    parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    factors = identify(optimizer).state_factors([parameter], [optimizer.state[parameter]], optimizer.param_groups[0])
    assert factors is None


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
