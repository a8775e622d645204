"""Whether the tracked weights are still scale-invariant, told on the host from what each sample brings."""

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from smdtrack.record.run import Floats, TrackedWeight
from smdtrack.record.summary import ROLLING_SAMPLES
from smdtrack.tracking.measure.probe import Moments

#: Residual below which nothing is said: rounding of low precision reaches it (bf16 autocast: 1.3e-3).
LEAST = 1e-3
#: A weight has left its invariance when its residual is so many times what it was at the start.
GROWTH = 30.0
_SHOWN = 3


def orthogonality_residual(moments: Moments, eps_radial: Floats | None) -> Floats:
    """Returns `|<w, g> - e| / (||w|| ||g||)` per weight, (W,).

    Args:
        moments: Of one step.
        eps_radial: The part e of `<w, g>` for which batch norm's eps accounts; nan where it is not known.
    """
    radial = moments.weight_gradient
    if eps_radial is not None:
        radial = radial - np.where(np.isfinite(eps_radial), eps_radial, 0.0)
    residual: Floats = np.abs(radial) / np.sqrt(moments.weight_squared * moments.gradient_squared)
    return residual


class LiveCheck:
    """Follows the residuals, and tells once of each way in which weights stop being invariant.

    A batch norm in eval mode is known from its module, and its weights have no line while it lasts. Any other cause (a
    penalty on the weights in the loss, eps that outgrows the batch variance) shows in the residual, held
    against what it was in the first samples: an absolute limit would have to know the precision of the training.
    """

    def __init__(self, weights: Sequence[TrackedWeight], tell: Callable[[str], None]) -> None:
        self._weights = list(weights)
        self._tell = tell
        self._first: list[Floats] = []
        self._recent: deque[Floats] = deque(maxlen=ROLLING_SAMPLES)
        self._told = np.zeros(len(weights), dtype=bool)

    def frozen(self, in_eval_mode: Sequence[bool], eps_radial: Floats | None) -> np.ndarray:
        """Returns (W,) bool: weights whose batch norm took no batch's statistics in this step; tells of new ones.

        Args:
            in_eval_mode: Per weight, whether its batch norm is in eval mode at the step.
            eps_radial: nan where no forward pass has moved the running variance.
        """
        if not any(in_eval_mode) or eps_radial is None:
            return np.zeros(len(self._weights), dtype=bool)
        found: np.ndarray = np.asarray(in_eval_mode) & np.isnan(eps_radial)
        self._report(found, "their batch norm is in eval mode, so that their scale counts; no line is drawn meanwhile")
        return found

    def broken(self, residual: Floats) -> np.ndarray:
        """Returns (W,) bool: weights that have lately not been orthogonal to their gradients; tells of new ones."""
        if len(self._first) < ROLLING_SAMPLES:
            self._first.append(residual)
            return np.zeros(len(self._weights), dtype=bool)
        self._recent.append(residual)
        if len(self._recent) < ROLLING_SAMPLES:
            return np.zeros(len(self._weights), dtype=bool)
        limit = np.maximum(LEAST, GROWTH * np.nan_to_num(_median(self._first)))
        # The median: a few odd steps are no new state.
        found: np.ndarray = _median(self._recent) > limit
        self._report(
            found, "their gradients are no longer orthogonal to them (smd/orthogonality_residual); the lines are off"
        )
        return found

    def _report(self, found: np.ndarray, why: str) -> None:
        new = found & ~self._told
        if not new.any():
            return
        self._told |= new
        names = [weight.key for weight, is_new in zip(self._weights, new, strict=True) if is_new]
        shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        self._tell(f"no longer scale-invariant: {shown}: {why}")


def _median(rows: Sequence[Floats] | deque[Floats]) -> Floats:
    """The lower median of the rows that have a value, per weight; nan where none has."""
    values = np.stack(list(rows))
    there = np.isfinite(values)
    middle = (there.sum(axis=0) - 1) // 2
    ordered = np.sort(np.where(there, values, np.inf), axis=0)
    median: Floats = np.where(there.any(axis=0), ordered[np.maximum(middle, 0), np.arange(values.shape[1])], np.nan)
    return median
