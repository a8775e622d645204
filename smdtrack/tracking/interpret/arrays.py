"""Small operations on arrays with one value per weight, in which NaN stands for a value that is missing."""

from collections.abc import Iterable, Sequence

import numpy as np

from smdtrack.record.run import Floats


def array_of(values: Iterable[float | None]) -> Floats:
    """Returns values as an array, with NaN for None."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def number_or_none(value: float) -> float | None:
    """Returns a number, or None for NaN and infinity."""
    return float(value) if np.isfinite(value) else None


def finite(values: Floats) -> Floats:
    """Returns the finite values."""
    return values[np.isfinite(values)]


def rms(rows: Sequence[Floats]) -> Floats:
    """Returns the root mean square over the rows that have a value, per weight; NaN for weights without any."""
    squared = np.square(rows)
    there = np.isfinite(squared)
    result: Floats = np.sqrt(np.where(there, squared, 0).sum(axis=0) / there.sum(axis=0))
    return result
