"""The private copy: closures, hooks, locks and states are its own."""

import threading

import numpy
import pytest
import torch
from torch import nn

from smdtrack.invariance.closures import changes_what_a_module_computes
from smdtrack.invariance.module_state import ModuleState
from smdtrack.invariance.private_copy import private_copy

CPU = torch.device("cpu")


class Closed(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(3)
        self.norm = lambda x: self.bn(x)
        self.lock, self.kept = threading.Lock(), [torch.ones(2, requires_grad=True) * 2]

    def forward(self, x):
        with self.lock:
            self.kept.append(x)
        return self.norm(x)


def test_closures_run_the_copied_modules():
    model = Closed()
    duplicate = private_copy(model, CPU).model
    duplicate(torch.randn(4, 3, dtype=torch.float64))
    assert (int(duplicate.bn.num_batches_tracked), int(model.bn.num_batches_tracked)) == (1, 0)
    assert (len(duplicate.kept), len(model.kept)) == (2, 1)
    assert duplicate.kept[0].dtype == torch.float64
    assert duplicate.lock is not model.lock


def test_tied_parameters_stay_tied_and_every_parameter_is_found():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    copied = private_copy(model, CPU, torch.float32)
    assert copied.model[1].weight is copied.model[0].weight
    assert {id(p) for p in copied.model.parameters()} == {id(p) for p in copied.parameters.values()}
    assert not {id(p) for p in copied.model.parameters()} & copied.originals


def returns_nothing(module, args, output):
    pass


@pytest.mark.parametrize(
    ("hook", "kept"),
    [
        (lambda module, args, output: output * 2, True),
        (lambda module, args: (args[0] + 1,), True),
        (lambda module, args, output: [].append(output), False),
        (returns_nothing, False),
        (lambda module, args, output: None, False),
    ],
)
def test_hooks_are_told_apart_by_what_they_return(hook, kept):
    assert changes_what_a_module_computes(hook) is kept


def test_hooks_that_observe_are_left_out_and_others_work_on_the_copy():
    model, seen = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), []
    model[0].register_forward_hook(lambda module, args, output: seen.append(output))
    model[0].register_forward_hook(lambda module, args, output: model[1](output), with_kwargs=False)
    duplicate = private_copy(model, CPU).model
    x = torch.randn(3, 2, dtype=torch.float64)
    expected = duplicate[1](nn.functional.linear(x, duplicate[0].weight, duplicate[0].bias))
    torch.testing.assert_close(duplicate[0](x), expected)
    assert seen == []


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls, self.kept, self.numbers = 0, {}, numpy.random.default_rng(0)
        self.generator = torch.Generator()
        self.register_buffer("queue", torch.zeros(3))
        self.plain = torch.zeros(2)

    def forward(self, x):
        self.calls += 1
        self.kept["x"] = x
        self.queue += 1
        self.plain.add_(1)
        self.fresh = self.queue
        self.register_buffer("late", x)
        return self.numbers.random(), float(torch.rand((), generator=self.generator))


def test_a_restored_state_repeats():
    model = Stateful()
    state = ModuleState(model)
    state.restore(5)
    first = model(torch.ones(1))
    state.restore(5)
    assert (model.calls, model.kept, float(model.queue.sum()), float(model.plain.sum())) == (0, {}, 0.0, 0.0)
    assert not hasattr(model, "fresh")
    assert model(torch.ones(1)) == first
