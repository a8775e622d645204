"""Long series made short for drawing: every column of the drawing keeps its smallest and its largest value."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from smdtrack.record.run import Floats


@dataclass(frozen=True)
class Columns:
    """Which samples belong to which column of a drawing.

    Attributes:
        starts: (C,) index of each column's first sample.
        places: (P,) index of the sample whose position on the axis each drawn point takes.
        thinned: Whether a column holds more than one sample; then there are two points a column.
    """

    starts: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    thinned: bool


def columns(samples: int, points: int) -> Columns:
    """Returns the columns for a number of samples and the number of points that may be drawn."""
    if samples <= points:
        every = np.arange(samples, dtype=np.int64)
        return Columns(every, every, False)
    count = max(points // 2, 1)
    starts = np.linspace(0, samples, count, endpoint=False).astype(np.int64)
    ends = np.append(starts[1:], samples) - 1
    places = np.stack([starts, (starts + ends + 1) // 2], axis=1).reshape(-1)
    places[-1] = samples - 1
    return Columns(starts, np.minimum(places, samples - 1), True)


def thin(values: Floats, by: Columns) -> Floats:
    """Returns the points to draw: per column the smaller and the larger value in the order in which they came.

    Args:
        values: (T,) or (T, W).

    Returns:
        (P,) or (P, W); NaN where a column has no finite value.
    """
    if not by.thinned:
        return values
    finite = np.isfinite(values)
    low = np.minimum.reduceat(np.where(finite, values, np.inf), by.starts, axis=0)
    high = np.maximum.reduceat(np.where(finite, values, -np.inf), by.starts, axis=0)
    low[~np.isfinite(low)] = high[~np.isfinite(high)] = np.nan
    # Alternating the order keeps the drawn line from crossing a column twice.
    rising = _rises(values, by)
    first, second = np.where(rising, low, high), np.where(rising, high, low)
    drawn: Floats = np.stack([first, second], axis=1).reshape(-1, *values.shape[1:])
    return drawn


def _rises(values: Floats, by: Columns) -> npt.NDArray[np.bool_]:
    """Whether a column's last value is at least its first: a cheap stand-in for which extreme came first."""
    ends = np.append(by.starts[1:], len(values)) - 1
    rising: npt.NDArray[np.bool_] = ~(values[ends] < values[by.starts])
    return rising
