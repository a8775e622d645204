"""What counts as an output, and how its changes are measured."""

from types import SimpleNamespace

import torch

from smdtrack.invariance.outputs import Baseline, tensors_of


class Slotted:
    __slots__ = ("labels", "logits")

    def __init__(self, logits):
        self.logits, self.labels = logits, torch.arange(2)


def test_floating_tensors_are_found_in_containers_and_objects():
    x = torch.ones(2)
    for output in (x, (x, None), {"a": [x, "b"]}, SimpleNamespace(y=x, n=3), Slotted(x), {x}):
        assert [tensor.sum().item() for tensor in tensors_of(output)] == [2.0]
    assert list(tensors_of(torch.arange(3))) == []
    assert next(iter(tensors_of(torch.ones(2, dtype=torch.complex64)))).shape == (2, 2)


def test_each_output_has_its_own_scale():
    base = Baseline.of([torch.tensor([1e3, -2e3]), torch.tensor([1e-3, 2e-3])])
    assert base.deviation([torch.tensor([1e3, -2e3]), torch.tensor([1e-3, 2.2e-3])]) > 0.09
    assert base.deviation([torch.tensor([1e3, -2e3 + 1]), torch.tensor([1e-3, 2e-3])]) < 1e-3


def test_masked_entries_hide_nothing():
    for masked in (-1e9, -torch.inf):
        base = Baseline.of([torch.tensor([1.0, -0.5, 0.7, masked], dtype=torch.float64)])
        assert base.is_finite()
        assert base.deviation(list(base.outputs)) == 0
        assert base.deviation([torch.tensor([1.1, -0.5, 0.7, masked], dtype=torch.float64)]) > 0.09
        assert base.typical(0).tolist() == [True, True, True, False]


def test_undefined_entries_and_other_shapes_are_seen():
    base = Baseline.of([torch.ones(3)])
    assert base.deviation([torch.tensor([1.0, 1.0, torch.nan])]) == float("inf")
    assert base.deviation([torch.ones(4)]) == float("inf")
    assert base.deviation([]) == float("inf")
    assert not Baseline.of([torch.tensor([1.0, torch.nan])]).is_finite()
    assert not Baseline.of([torch.full((2,), -torch.inf)]).is_finite()


def test_rounding_errors_of_an_output_that_is_zero_count_as_none():
    base = Baseline.of([torch.ones(3, dtype=torch.float64), torch.full((2,), 1e-17, dtype=torch.float64)])
    assert base.deviation([torch.ones(3, dtype=torch.float64), torch.full((2,), -3e-17, dtype=torch.float64)]) < 1e-7
