"""The table of sums on its way from the device to numpy, and its sum over processes."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import distributed as dist

from smdtrack.tracking.interpret.step_values import StepValues, step_values
from smdtrack.tracking.measure.probe import Probe, read_squared_norms
from smdtrack.tracking.measure.sharding import ShardSum
from smdtrack.tracking.measure.table import MOMENTS, Part, Reading, Row


def test_each_row_has_a_field_of_its_name_in_the_same_order() -> None:
    assert [field.name for field in dataclasses.fields(StepValues)] == [row.name.lower() for row in Row]
    assert [int(row) for row in Row] == list(range(len(Row)))


def test_each_value_arrives_in_the_field_of_its_row_and_at_the_place_of_its_weight() -> None:
    rows = [*MOMENTS, Row.TIED_FILTERS]
    table = torch.arange(12, dtype=torch.float64).view(6, 2)
    other = torch.arange(100, 105, dtype=torch.float64).view(5, 1)
    values = step_values(Reading([Part([3, 0], rows, table), Part([1], MOMENTS, other)], width=4))
    np.testing.assert_array_equal(values.weight_squared, [1, 100, np.nan, 0])
    np.testing.assert_array_equal(values.change_squared, [9, 104, np.nan, 8])
    np.testing.assert_array_equal(values.tied_filters, [11, np.nan, np.nan, 10])
    assert values.decay_pull is None


def test_a_further_row_is_nan_for_a_weight_without_a_value_and_momentum_too() -> None:
    weights = {0: torch.randn(4, 5), 2: torch.randn(3)}
    changed = {column: weight + 0.1 for column, weight in weights.items()}
    buffer = torch.randn(4, 5)
    probe = Probe(3)
    probe.begin(weights)
    reading = probe.end(changed, {Row.DECAY_PULL: {2: torch.tensor(7.0)}}, momentum={0: buffer})
    values = step_values(reading)
    assert values.change_momentum is not None
    assert values.decay_pull is not None
    assert values.change_momentum[0] == pytest.approx(0.1 * float(buffer.sum()), rel=1e-5)
    np.testing.assert_array_equal(np.isnan(values.change_momentum), [False, True, True])
    np.testing.assert_array_equal(values.decay_pull, [np.nan, np.nan, 7.0])


def test_squared_norms() -> None:
    weights = {1: torch.randn(30, 40), 2: torch.randn(5).double()}
    norms = step_values(read_squared_norms(weights, 3)).weight_squared
    expected = [np.nan, *(float(weights[column].double().square().sum()) for column in (1, 2))]
    np.testing.assert_allclose(norms, expected, rtol=1e-6)


def test_processes_with_different_rows_add_up_each_row_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[torch.Tensor] = []

    def all_reduce(table: torch.Tensor, group: object) -> None:
        """Adds what the other process has sent: a decay pull of 5 and a squared norm of 2 for weight 1."""
        sent.append(table.clone())
        table[Row.DECAY_PULL, 1] += 5
        table[Row.WEIGHT_SQUARED, 1] += 2

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    reduce = ShardSum("group", width=3)
    rows = [*MOMENTS, Row.TIED_FILTERS]
    table = torch.arange(1, 13, dtype=torch.float64).view(6, 2)
    summed = reduce([1, 2], rows, table)
    expected = table.clone()
    expected[0, 0] += 2
    assert torch.equal(summed, expected)
    reduce.contribute_nan(torch.device("cpu"))
    assert [one.shape for one in sent] == [(len(Row), 3)] * 2
    assert sent[1].isnan().all()
    assert reduce.calls == 1
