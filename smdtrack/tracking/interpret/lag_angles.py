"""The angle over several steps, beside what single steps of the same size would lead to."""

import math
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from smdtrack.record.run import Floats
from smdtrack.theory import Line
from smdtrack.tracking.interpret.arrays import array_of, rms
from smdtrack.tracking.interpret.step_values import step_values
from smdtrack.tracking.measure.measurement import LagReading

#: Largest number of samples that are remembered to find the mean angle inside a window.
_SAMPLES = 4096


class LagAngles:
    """Computes the values of windows of K steps.

    The squared distance between the weights before and after a window is `-2 ln cos theta` for the angle theta between
    them. Under uncorrelated gradients it is `f K R_K D^2` for K steps of the angle D each, with
    `R_K = 1 + 2 sum_{j<K} (1 - j/K) rho_j`, the autocorrelation rho of the updates, and a factor f that is 1 for a
    small decay rate (both from `Line.lag_angle`).
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[int, Floats, Floats]] = deque(maxlen=_SAMPLES)

    def add(self, step: int, angle: Floats, angle_pred: Floats) -> None:
        """Adds the measured and the drift-corrected angle of a sampled step, (W,) each, radian."""
        self._samples.append((step, angle, angle_pred))

    def values(self, lags: Mapping[int, LagReading], lines: Sequence[Line | None]) -> dict[str, Floats]:
        """Returns the values of windows that have ended, per family (W,).

        Args:
            lags: The window of each number of steps K.
            lines: The line of each weight.

        Returns:
            `angle_k<K>`, the measured angle in radian. `angle_k<K>_pred`, the angle that uncorrelated gradients would
            make of the drift-corrected angles in the window. `efficiency_k<K>`, the turning efficiency: the root of
            the measured squared distance over that which uncorrelated gradients would make of the *measured* angles in
            the window. It is below 1 if the gradients of successive steps undo one another.
        """
        found: dict[str, Floats] = {}
        for steps, window in lags.items():
            inside = [sample for sample in self._samples if window.first_step <= sample[0] <= window.last_step]
            measured = step_values(window.reading).angles()
            found[f"angle_k{steps}"] = measured
            if not inside:
                continue
            spread = array_of(None if line is None else _spread(line, steps) for line in lines)
            angle, angle_pred = rms([angle for _, angle, _ in inside]), rms([pred for _, _, pred in inside])
            found[f"angle_k{steps}_pred"] = np.arccos(np.exp(-spread * angle_pred**2 / 2))
            cosine = np.cos(measured)
            distance = np.where(cosine > 0, -2 * np.log(cosine), np.nan)
            found[f"efficiency_k{steps}"] = np.sqrt(distance / (spread * angle**2))
        return found


def _spread(line: Line, steps: int) -> float | None:
    """Returns the squared distance over K steps, over the squared angle of one step, under uncorrelated gradients."""
    if line.updates is None:
        return None
    spread = steps * line.updates.memory_over(steps)
    if not line.angular_update or line.trust is not None:
        return spread
    exact = math.cos(line.lag_angle(steps) or 0.0)
    first_order = math.exp(-spread * line.angular_update**2 / 2)
    return spread * math.log(exact) / math.log(first_order) if 0 < exact < 1 and 0 < first_order < 1 else spread
