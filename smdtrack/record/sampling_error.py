"""The error of a mean over sampled steps as an estimate of the mean over all steps."""

import numpy as np

from smdtrack.record.run import Floats

#: With fewer samples the estimated error is itself too uncertain to be shown.
MIN_SAMPLES = 16


def sampling_error_of_rms(values: Floats, share: float) -> float | None:
    """Returns the relative standard error of an RMS over sampled steps as an estimate of the RMS over all steps.

    For `n` squares `x` of the values, which may follow a trend,

        error(mean x)^2 = (1 - share) sum (x_{i+1} - x_i)^2 / (2 (n - 1) n)

    and the RMS has half the relative error of the mean. The error is 0 if every step was sampled. If samples are so
    close that neighbours are alike, as momentum makes them, the error is too large rather than too small.
    Source: Wolter, Introduction to Variance Estimation, ch. 8: systematic samples by successive differences.

    Args:
        values: (n,); those that are not finite are left out.
        share: Share of the steps that were sampled, in (0, 1].

    Returns:
        The error as a share of the RMS; None for fewer than 16 values.
    """
    squares = values[np.isfinite(values)] ** 2
    count = len(squares)
    if count < MIN_SAMPLES or not squares.mean() > 0:
        return None
    squared = max(1 - share, 0.0) * (np.diff(squares) ** 2).sum() / (2 * (count - 1) * count)
    return float(np.sqrt(squared) / squares.mean() / 2)
