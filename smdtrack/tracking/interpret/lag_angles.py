"""The angle over several steps, beside what single steps of the same size would lead to."""

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

    If K steps of the angle D each are made of updates with the autocorrelation rho, they sum up to the squared length
    `K R_K D^2` with `R_K = 1 + 2 sum_{j<K} (1 - j/K) rho_j`, and a diffusion over that distance turns the weight by the
    angle theta with `cos theta = exp(-K R_K D^2 / 2)` (see `Line.lag_angle`).
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
            spread = steps * array_of(
                None if line is None or line.updates is None else line.updates.memory_over(steps) for line in lines
            )
            angle, angle_pred = rms([angle for _, angle, _ in inside]), rms([pred for _, _, pred in inside])
            found[f"angle_k{steps}_pred"] = np.arccos(np.exp(-spread * angle_pred**2 / 2))
            cosine = np.cos(measured)
            distance = np.where(cosine > 0, -2 * np.log(cosine), np.nan)
            found[f"efficiency_k{steps}"] = np.sqrt(distance / (spread * angle**2))
        return found
