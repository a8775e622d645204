"""The rate at which the norms of the weights change."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from smdtrack.record.run import Floats
from smdtrack.record.summary import ROLLING_SAMPLES


class NormHistory:
    """Keeps the norms of the last samples."""

    def __init__(self) -> None:
        self._norms: deque[tuple[int, Floats]] = deque(maxlen=ROLLING_SAMPLES)

    def add(self, step: int, norm: Floats) -> None:
        """Adds the norms after a sampled step."""
        self._norms.append((step, norm))

    def keep_last(self) -> None:
        """Forgets all norms but the last ones."""
        self._norms = deque(list(self._norms)[-1:], self._norms.maxlen)

    def drift(self, step: int, norm: Floats, time_constants: Sequence[float | None]) -> Floats:
        """Returns the rate of change of ln ||w||^2 per step, (W,); NaN at the first sample.

        It is taken over half a time constant of the weight, and over the last ten samples at most: over one step the
        rate scatters far more than it drifts, and over more than a time constant it would lag behind.

        Args:
            step: The present step.
            norm: The norms after it.
            time_constants: Per weight the time constant of its line, in steps; None where there is none.
        """
        drift = np.zeros(len(norm))
        if not self._norms:
            return np.full(len(norm), np.nan)
        for index, time_constant in enumerate(time_constants):
            longest = (time_constant or np.inf) / 2
            first_step, first_norm = self._norms[-1]
            for earlier, norms in reversed(self._norms):
                if step - earlier > longest:
                    break
                first_step, first_norm = earlier, norms
            drift[index] = 2 * np.log(norm[index] / first_norm[index]) / (step - first_step)
        return drift
