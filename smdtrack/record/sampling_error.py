"""How far the mean over sampled steps may lie from that over all steps."""

import numpy as np

from smdtrack.record.run import Floats

#: Fewer samples than this give no error worth saying.
MIN_SAMPLES = 16


def sampling_error_of_rms(values: Floats, share: float) -> float | None:
    """Returns the standard error of an RMS over sampled steps as an estimate of that over all, as a share of it.

    With `n` squares `x`, which may follow a trend,

        error(mean x)^2 = (1 - share) sum (x_{i+1} - x_i)^2 / (2 (n - 1) n)

    and the RMS has half the relative error of the mean. Momentum carries one update into the next; where samples lie so
    close that neighbours are alike, a sample stands for the steps around it, and this error is on the safe side. 0
    where every step was sampled: what the RMS then differs from a line by is no chance of sampling.
    Source: Wolter, Introduction to Variance Estimation, ch. 8: systematic samples by successive differences.

    Args:
        values: (n,), those that are not finite are passed over.
        share: Of the steps that were sampled, in (0, 1].

    Returns:
        None for fewer than 16 values.
    """
    squares = values[np.isfinite(values)] ** 2
    count = len(squares)
    if count < MIN_SAMPLES or not squares.mean() > 0:
        return None
    squared = max(1 - share, 0.0) * (np.diff(squares) ** 2).sum() / (2 * (count - 1) * count)
    return float(np.sqrt(squared) / squares.mean() / 2)
