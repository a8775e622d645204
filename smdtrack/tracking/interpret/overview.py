"""Values of the whole network, computed from those of its weights."""

from collections.abc import Mapping, Sequence

import numpy as np

from smdtrack.record.run import Floats
from smdtrack.record.summary import EQUILIBRIUM_BAND
from smdtrack.tracking.interpret.arrays import finite
from smdtrack.tracking.interpret.clipping import Clipping

#: Smallest readable angle (radian per step) from which on it is reported. That of fp32, 1e-6, is far below any angle at
#: which a training makes progress; those of fp16 and bf16 are not.
_REPORTED_SMALLEST_ANGLE = 1e-4


def ratios_overview(values: Mapping[str, Floats], rolling_angle: Floats, rolling_eq: Floats) -> dict[str, float]:
    """Returns measured / predicted over the network, turning efficiency, and the largest residual of the live check.

    Args:
        values: The sample's values per family, (W,) each.
        rolling_angle: RMS of the angles over the last samples, (W,), radian per step.
        rolling_eq: RMS of the equilibrium angles over the same samples.
    """
    to_equilibrium = finite(values["angle"] / values["angle_eq"])
    to_drift_corrected = finite(values["angle"] / values["angle_pred"])
    rolling_ratio = finite(rolling_angle / rolling_eq)
    overview = {"smd/theory": 1.0}
    if len(to_equilibrium):
        p10, p50, p90 = np.percentile(to_equilibrium, [10, 50, 90]).tolist()
        overview |= {"smd/angle_ratio_p10": p10, "smd/angle_ratio_p50": p50, "smd/angle_ratio_p90": p90}
    if len(to_drift_corrected):
        overview["smd/pred_ratio_p50"] = float(np.median(to_drift_corrected))
    if len(rolling_ratio):
        overview["smd/in_equilibrium"] = float(np.mean(np.abs(rolling_ratio - 1) <= EQUILIBRIUM_BAND))
    for family in values:
        efficiency = finite(values[family]) if family.startswith("efficiency_k") else np.empty(0)
        if len(efficiency):
            overview[f"smd/{family}"] = float(np.median(efficiency))
    residual = finite(values["orthogonality_residual"])
    if len(residual):
        overview["smd/orthogonality_residual"] = float(residual.max())
    return overview


def clipping_overview(clipping: Clipping | None) -> dict[str, float]:
    """Returns `smd/clipped`: 1 for clipping by value, 2 for adaptive clipping; nothing if there is no clipping."""
    if clipping is None:
        return {}
    return {"smd/clipped": 1.0 if clipping == "value" else 2.0}


def precision_overview(angle: Floats, smallest_angles: Sequence[float]) -> dict[str, float]:
    """Returns `smd/below_floor`, the share of weights whose angle their storage does not let one read.

    Nothing is returned for weights in fp32 and float64.

    Args:
        angle: Angles of the sample, (W,), radian per step.
        smallest_angles: Per weight the smallest angle that its storage lets one read.
    """
    if not len(smallest_angles) or max(smallest_angles) < _REPORTED_SMALLEST_ANGLE:
        return {}
    below = np.less(angle, smallest_angles)[np.isfinite(angle)]
    return {"smd/below_floor": float(np.mean(below)) if len(below) else 0.0}
