"""Checks at every sample whether the tracked weights are still scale-invariant."""

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from smdtrack.record.run import Floats, TrackedWeight
from smdtrack.record.summary import ROLLING_SAMPLES
from smdtrack.tracking.interpret.step_values import StepValues

#: Smallest residual that is ever reported: rounding in low precision comes up to it (1.3e-3 under bf16 autocast).
MIN_RESIDUAL = 1e-3
#: A weight counts as no longer invariant when its residual is this many times the residual of the first samples.
MAX_GROWTH = 30.0
_MAX_NAMES = 3


def orthogonality_residual(values: StepValues, subtract_eps: bool = True) -> Floats:
    """Returns `|<w, g> - e| / (||w|| ||g||)` per weight, (W,): 0 for a weight that is exactly scale-invariant.

    Args:
        values: The values of one step.
        subtract_eps: Whether e is the part of `<w, g>` that is due to the eps of batch norm, where that is known;
            otherwise e is 0. It cannot be subtracted from gradients that are clipped by element or by filter, because
            the clipping treats the weight and the scale of its batch norm differently.
    """
    radial = values.weight_gradient
    if subtract_eps and values.eps_radial is not None:
        radial = radial - np.where(np.isfinite(values.eps_radial), values.eps_radial, 0.0)
    residual: Floats = np.abs(radial) / np.sqrt(values.weight_squared * values.gradient_squared)
    return residual


class LiveCheck:
    """Finds weights that have stopped being scale-invariant, and reports each kind of cause once per weight.

    * A batch norm in eval mode is seen at its module. Its weights have no line as long as it stays in eval mode.
    * Any other cause (a penalty on the weights in the loss, an eps that outgrows the batch variance) raises the
      residual. The residual is compared with that of the first samples, because its usual size depends on the
      precision of the training.

    Args:
        weights: The tracked weights.
        report: Shows one line to the user.
    """

    def __init__(self, weights: Sequence[TrackedWeight], report: Callable[[str], None]) -> None:
        self._weights = list(weights)
        self._report = report
        self._first: list[Floats] = []
        self._recent: deque[Floats] = deque(maxlen=ROLLING_SAMPLES)
        self._reported = np.zeros(len(weights), dtype=bool)

    def in_eval_mode(self, norm_in_eval_mode: Sequence[bool], eps_radial: Floats | None) -> np.ndarray:
        """Returns (W,) bool: the weights whose batch norm took no statistics from this step's batch.

        A validation between backward pass and step also leaves batch norms in eval mode, but then the running
        variance has moved during the training's forward pass.

        Args:
            norm_in_eval_mode: Per weight, whether its batch norm is in eval mode at the step.
            eps_radial: Per weight the part of `<w, g>` that is due to eps; NaN if the running variance did not move.
        """
        if not any(norm_in_eval_mode) or eps_radial is None:
            return np.zeros(len(self._weights), dtype=bool)
        found: np.ndarray = np.asarray(norm_in_eval_mode) & np.isnan(eps_radial)
        self._report_new(
            found, "their batch norm is in eval mode, so that their scale counts; no line is drawn meanwhile"
        )
        return found

    def no_longer_orthogonal(self, residual: Floats) -> np.ndarray:
        """Returns (W,) bool: the weights whose residual has lately been far above that of the first samples."""
        if len(self._first) < ROLLING_SAMPLES:
            self._first.append(residual)
            return np.zeros(len(self._weights), dtype=bool)
        self._recent.append(residual)
        if len(self._recent) < ROLLING_SAMPLES:
            return np.zeros(len(self._weights), dtype=bool)
        limit = np.maximum(MIN_RESIDUAL, MAX_GROWTH * np.nan_to_num(_median(self._first)))
        # The median, so that a few unusual steps report nothing.
        found: np.ndarray = _median(self._recent) > limit
        self._report_new(
            found, "their gradients are no longer orthogonal to them (smd/orthogonality_residual); the lines are off"
        )
        return found

    def _report_new(self, found: np.ndarray, reason: str) -> None:
        new = found & ~self._reported
        if not new.any():
            return
        self._reported |= new
        names = [weight.key for weight, is_new in zip(self._weights, new, strict=True) if is_new]
        listed = ", ".join(names[:_MAX_NAMES]) + (f" and {len(names) - _MAX_NAMES} more" if names[_MAX_NAMES:] else "")
        self._report(f"no longer scale-invariant: {listed}: {reason}")


def _median(rows: Sequence[Floats] | deque[Floats]) -> Floats:
    """Returns the lower median over the rows that have a value, per weight; NaN for weights without any."""
    values = np.stack(list(rows))
    there = np.isfinite(values)
    middle = (there.sum(axis=0) - 1) // 2
    ordered = np.sort(np.where(there, values, np.inf), axis=0)
    median: Floats = np.where(there.any(axis=0), ordered[np.maximum(middle, 0), np.arange(values.shape[1])], np.nan)
    return median
