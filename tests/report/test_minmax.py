import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from smdtrack.report.minmax import columns, thin


@given(st.integers(1, 400), st.integers(2, 120), st.integers(0, 10**6))
def test_every_column_keeps_its_extremes(samples, points, seed):
    values = np.random.default_rng(seed).standard_normal(samples)
    by = columns(samples, points)
    drawn = thin(values, by)
    assert len(drawn) == len(by.places) <= max(points, 2)
    assert drawn.min() == values.min()
    assert drawn.max() == values.max()
    assert (np.diff(by.places) >= 0).all()
    assert by.places[0] == 0
    assert by.places[-1] == samples - 1
    if by.thinned:
        edges = np.append(by.starts, samples)
        for column, (start, end) in enumerate(itertools.pairwise(edges)):
            pair = sorted(drawn[2 * column : 2 * column + 2])
            assert pair == [values[start:end].min(), values[start:end].max()]


def test_gaps_are_skipped_and_columns_without_values_stay_gaps():
    values = np.full(100, np.nan)
    values[10], values[90] = 3.0, -2.0
    drawn = thin(values, columns(100, 20))
    assert np.nanmin(drawn) == -2
    assert np.nanmax(drawn) == 3
    assert np.isfinite(drawn).sum() == 4


def test_tables_are_thinned_column_by_column():
    table = np.random.default_rng(0).standard_normal((1000, 3))
    by = columns(1000, 50)
    np.testing.assert_array_equal(thin(table, by), np.stack([thin(table[:, i], by) for i in range(3)], axis=1))
