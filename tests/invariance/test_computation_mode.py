"""The mode in which the copy computes: one precision, no eps, nothing of the original."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smdtrack.invariance.computation_mode import ComputationMode, ComputationSettings, UsesOriginalError

#: Of the inputs, so that every eps below would dominate.
TINY = 1e-5


@pytest.fixture
def x():
    torch.manual_seed(0)
    return TINY * torch.randn(4, 6, dtype=torch.float64)


def test_casts_to_lower_precision_lead_to_float64(x):
    with ComputationMode():
        results = [
            x.float(),
            x.half(),
            x.to(torch.bfloat16),
            x.type_as(torch.zeros(1)),
            torch.zeros(2, dtype=torch.float32),
        ]
    assert {result.dtype for result in results} == {torch.float64}
    with ComputationMode(ComputationSettings(torch.float32)):
        assert torch.ones(2).half().dtype == torch.float32


@pytest.mark.parametrize(
    "normalise",
    [
        lambda x: F.layer_norm(x, (6,)),
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda x: F.batch_norm(x, None, None, None, None, True, 0.1, 1),
        lambda x: F.group_norm(x, 2, eps=0.1),
        lambda x: F.normalize(x, dim=1, eps=1e-3),
        lambda x: x / (x.std(1, keepdim=True) + 1e-5),
        lambda x: x / (x.std(1) + 1e-5).view(-1, 1).expand_as(x),
        lambda x: x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6),
        lambda x: x * (1e-6 + x.square().mean(1, keepdim=True)) ** -0.5,
        lambda x: x / (x.square().mean(1, keepdim=True) + torch.tensor(1e-6)).sqrt(),
        lambda x: x * (1.0 / (x.norm(dim=1, keepdim=True) + 1e-8)),
        lambda x: x / x.norm(dim=1, keepdim=True).clamp(min=1e-6),
    ],
)
def test_eps_is_removed_whatever_its_form(x, normalise):
    with ComputationMode():
        one, other = normalise(x), normalise(1000 * x)
    torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)
    assert one.abs().max() > 0.5, "the eps would have hidden it"


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + 1e-5,
        lambda x: torch.log(x.abs() + 1e-3),
        lambda x: 1 / (1 + x.square()),
        lambda x: x / (0.5 + x.abs()),
        lambda x: (x + 1e-5) * 3,
        lambda x: F.batch_norm(x, torch.zeros(6).double(), torch.full((6,), 1e-5).double(), eps=1e-5),
    ],
)
def test_constants_that_are_no_eps_stay(x, function):
    with ComputationMode():
        inside = function(x)
    assert torch.equal(inside, function(x))


def test_derivatives_through_detach_and_no_grad_are_those_of_the_function():
    w = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)

    def function():
        with torch.no_grad():
            norm = w.norm()
        return (w / norm + w / w.norm().detach() + w / w.data.norm()).sum()

    plain = ComputationMode()
    with plain:
        (gradient,) = torch.autograd.grad(function(), w)
    assert plain.saw_detach
    assert abs(gradient @ w) > 1
    with ComputationMode(through_detach=True):
        (gradient,) = torch.autograd.grad(function(), w)
    assert abs(gradient @ w) < 1e-12


def test_tensors_of_the_original_are_refused_before_they_change():
    bn = nn.BatchNorm1d(6).double()
    before = {name: value.clone() for name, value in bn.state_dict().items()}
    originals = frozenset(id(tensor) for tensor in (*bn.parameters(), *bn.buffers()))
    with ComputationMode(ComputationSettings(originals=originals)):
        assert bn.weight.shape == (6,)
        with pytest.raises(UsesOriginalError, match="through self"):
            bn(torch.randn(4, 6))
        with pytest.raises(UsesOriginalError):
            torch.stack([bn.weight, bn.bias])
    assert all(torch.equal(value, before[name]) for name, value in bn.state_dict().items())
