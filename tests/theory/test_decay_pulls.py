"""The pulls of coupled weight decay against the optimizers' denominators, written out in float64."""

import pytest
import timm.optim
import torch

from smdtrack.theory import equilibrium_lines, identify
from tests.theory.test_family import weight


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
def test_pulls_are_sums_of_squares_over_denominators(optimizer_class, options, denominator, steps, monkeypatch):
    monkeypatch.setattr("smdtrack.theory.decay_pulls.BATCH", 20)
    parameters = [torch.nn.Parameter(torch.randn(4, size)) for size in (3, 1, 2, 9, 4)]
    optimizer = optimizer_class(parameters, **options)
    family, group = identify(optimizer), optimizer.param_groups[0]
    assert family.decay_pulls([], [], group) is None
    for step in range(steps):
        for parameter in parameters:
            # One that has been frozen in between has taken fewer steps than the others.
            parameter.grad = None if step == 1 and parameter is parameters[2] else torch.randn_like(parameter)
        optimizer.step()
    states = [optimizer.state[parameter] for parameter in parameters]
    before = [{key: torch.as_tensor(value).clone() for key, value in state.items()} for state in states]
    pulls = family.decay_pulls(parameters, states, group)
    assert pulls is not None
    for parameter, state, pull in zip(parameters, states, pulls, strict=True):
        squared = parameter.detach().double() ** 2
        wide = {key: torch.as_tensor(value).double() for key, value in state.items()}
        assert (pull.ndim, pull.dtype) == (0, torch.float64)
        assert float(pull) == pytest.approx(float((squared / denominator(wide)).sum()), rel=1e-5)
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
    pulls = identify(optimizer).decay_pulls([parameter], [optimizer.state[parameter]], optimizer.param_groups[0])
    assert pulls is None


def test_the_pulls_of_shards_add_up():
    whole = weight(6, 4)
    optimizer = torch.optim.Adam([whole], **ADAM)
    whole.grad = torch.randn_like(whole)
    optimizer.step()
    state = optimizer.state[whole]
    shards, states = [], []
    for rows in (slice(0, 4), slice(4, 6), slice(6, 6)):
        shards.append(whole.detach()[rows])
        states.append({**state, "exp_avg_sq": state["exp_avg_sq"][rows]})
    family, group = identify(optimizer), optimizer.param_groups[0]
    together = family.decay_pulls([whole], [state], group)
    apart = family.decay_pulls(shards, states, group)
    assert float(apart[2]) == 0.0
    assert float(sum(apart)) == pytest.approx(float(together[0]), rel=1e-6)
