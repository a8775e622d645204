"""A line in words agrees with the line that training computes."""

import pytest
import torch
from timm.optim import create_optimizer_v2

from smdtrack.theory import LineDescription, equilibrium_lines, identify
from smdtrack.theory import family as family_module
from smdtrack.theory.calibration import CannotRunError
from tests.theory.test_family import weight


def words(line):
    return LineDescription(line.optimizer, line.kind, line.formula, line.source, line.assumptions, line.reason)


@pytest.mark.parametrize("name", ["momentum", "sgd", "sgdw", "adamw", "adamc", "lamb", "lars", "madgrad", "adahessian"])
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("decay", [0.01, 0.0])
def test_it_says_what_the_line_says(name, decay):
    optimizer = create_optimizer_v2([weight()], name, lr=0.01, weight_decay=decay)
    family, group = identify(optimizer), optimizer.param_groups[0]
    line = family.line(group, (16, 16), alignment=0.8 if family.momentum_entry(group) else None)
    assert family.describe(group, (16, 16)) == words(line)


def test_of_coupled_adam_it_says_that_the_state_is_needed():
    parameter = weight()
    optimizer = torch.optim.Adam([parameter], lr=1e-3, weight_decay=0.1)
    said = identify(optimizer).describe(optimizer.param_groups[0], (16, 16))
    assert said.reason == (
        "its decay rate depends on how large the gradients are: "
        "it is known only in training, from the optimizer's state"
    )
    parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    line = equilibrium_lines(optimizer)[0]
    assert (said.kind, said.formula, said.source, said.assumptions) == (
        line.kind,
        line.formula,
        line.source,
        line.assumptions,
    )
    assert line.reason is None


def test_nesterov_is_read_from_the_buffer_in_training_and_from_the_formula_before():
    optimizer = create_optimizer_v2([weight()], "sgd", lr=0.1, weight_decay=1e-3)
    family, group = identify(optimizer), optimizer.param_groups[0]
    assert family.describe(group, (16, 16)).kind == "from state"
    assert family.describe(group, (16, 16), in_training=False).kind == "closed form"


def test_before_training_nothing_is_run(monkeypatch):
    def refuse(*_):
        raise CannotRunError("not to be run")

    monkeypatch.setattr(family_module, "calibrated", refuse)
    optimizer = create_optimizer_v2([weight()], "cadamw", lr=1e-3, weight_decay=0.1)
    family, group = identify(optimizer), optimizer.param_groups[0]
    said = family.describe(group, (16, 16), in_training=False)
    assert (said.optimizer, said.kind, said.reason) == ("cautious AdamW", "calibrated", None)
    assert family.describe(group, (16, 16)).reason == "not to be run"
