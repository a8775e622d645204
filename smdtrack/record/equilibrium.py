"""When a weight reached its equilibrium line, judged by a running RMS."""

import numpy as np
import numpy.typing as npt

from smdtrack.record.run import Floats

#: A weight is in equilibrium if its RMS angle differs from the equilibrium line by at most this share of the line.
EQUILIBRIUM_BAND = 0.1
#: Samples of the running RMS. The angle of one step varies by some tens of percent; ten reduce that to a third.
ROLLING_SAMPLES = 10
#: In a long run the running RMS spans this share of the samples: over many short spans one leaves the band by chance.
_SPAN_SHARE = 1 / 10


def span_of(count: int) -> int:
    """Returns the number of consecutive samples in the running RMS of a run with this many samples."""
    return max(ROLLING_SAMPLES, int(count * _SPAN_SHARE))


def equilibrium_step(steps: npt.NDArray[np.int64], angle: Floats, line: Floats) -> int | None:
    """Returns the step from which on a weight stays in equilibrium.

    The ratio RMS(angle) / RMS(line) is formed over every span of `span_of(n)` consecutive samples. The result is the
    first step of the first span from which on all spans, up to the last samples, have a ratio within 10 % of 1.

    Args:
        steps: (n,) optimizer steps, increasing.
        angle: (n,) measured angles. Samples without a finite angle and a positive line are left out.
        line: (n,) equilibrium line.

    Returns:
        None if the last span is outside the band, or if there are fewer samples than in one span.
    """
    usable = np.flatnonzero(np.isfinite(angle) & (line > 0) & np.isfinite(line))
    span = span_of(len(usable))
    if len(usable) < span:
        return None
    ratio = np.sqrt(span_sums(angle[usable] ** 2, span) / span_sums(line[usable] ** 2, span))
    outside = np.flatnonzero(np.abs(ratio - 1) > EQUILIBRIUM_BAND)
    first = int(outside[-1]) + 1 if len(outside) else 0
    return int(steps[usable[first]]) if first < len(ratio) else None


def span_sums(values: Floats, span: int) -> Floats:
    """Returns the sums over each span of consecutive values, (n - span + 1,).

    The running total restarts in each block of `span` values, so that its rounding error does not grow with n: a span
    is the end of one block and the beginning of the next.
    """
    count = len(values) - span + 1
    blocks = np.append(values, np.zeros(-len(values) % span)).reshape(-1, span)
    before = np.cumsum(blocks, axis=1).reshape(-1)
    after = np.cumsum(blocks[:, ::-1], axis=1)[:, ::-1].reshape(-1)
    starts = np.arange(count)
    whole_block = starts % span == 0
    ends: Floats = np.where(whole_block, 0.0, before[starts + span - 1])
    return after[:count] + ends
