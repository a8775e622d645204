"""How far a run's weights turned altogether."""

from dataclasses import dataclass

import numpy as np

from smdtrack.report.facts import RunFacts


@dataclass(frozen=True)
class OverallTravel:
    """Of the median weight; in radian, None where the run does not say it.

    Attributes:
        turned: Sum of the angles of all steps.
        per_step: Mean angle of a step.
        per_epoch: Sum over an epoch.
        per_time_constant: Sum over a time constant.
        time_constants: Number of time constants that the run lasted.
    """

    turned: float | None
    per_step: float | None
    per_epoch: float | None
    per_time_constant: float | None
    time_constants: float | None


def overall_travel(run: RunFacts) -> OverallTravel:
    """Returns how far the median weight turned: in all, per step, per epoch, per time constant."""
    travels = list(run.travel.values())
    if not travels:
        return OverallTravel(None, None, None, None, None)
    per_step = float(np.median([travel.per_step for travel in travels]))
    passed = [(travel.turned, travel.time_constants) for travel in travels if travel.time_constants]
    return OverallTravel(
        turned=float(np.median([travel.turned for travel in travels])),
        per_step=per_step,
        per_epoch=per_step * run.steps_per_epoch if run.steps_per_epoch else None,
        per_time_constant=float(np.median([turned / count for turned, count in passed])) if passed else None,
        time_constants=float(np.median([count for _, count in passed])) if passed else None,
    )
