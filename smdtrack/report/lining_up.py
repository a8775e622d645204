"""The stretch of a common axis over which runs are compared."""

from collections.abc import Sequence

import numpy as np

from smdtrack.notices import SmdtrackError
from smdtrack.record.opened_run import OpenedRun
from smdtrack.record.run import Floats, Run
from smdtrack.report.facts import step_weights, time_constants
from smdtrack.report.settings import steps_per_epoch

AXES = ("steps", "epochs", "time-constants")


def positions(opened: OpenedRun, axis: str) -> Floats:
    """Returns where on the axis each sample lies, (T,), increasing.

    Time constants are those of the median weight, added up over the steps, so that a schedule is taken into account.

    Raises:
        SmdtrackError: If the run does not say how long an epoch is, or theory has no time constant for its weights.
    """
    run = opened.run
    if axis == "steps":
        return run.steps.astype(np.float64)
    if axis == "epochs":
        length = steps_per_epoch(opened)
        if not length:
            raise SmdtrackError(f"run {run.info.name} does not say how many steps an epoch has: compare over steps")
        return run.steps / length
    passed = time_constants_passed(run)
    if passed is None:
        raise SmdtrackError(f"no weight of run {run.info.name} has a time constant: compare over steps")
    return passed


def time_constants_passed(run: Run) -> Floats | None:
    """Returns how many time constants of the median weight lie behind each sample, (T,); None if theory has none."""
    constants = time_constants(run)
    if constants is None or not len(run.steps):
        return None
    known = np.isfinite(constants) & (constants > 0)
    if not known.any():
        return None
    rates = np.full(len(run.steps), 0.0)
    rows = known.any(axis=1)
    rates[rows] = [1 / np.median(row[there]) for row, there in zip(constants[rows], known[rows], strict=True)]
    passed: Floats = np.cumsum(rates * step_weights(run))
    return passed


def last_common_steps(runs: Sequence[OpenedRun], axis: str) -> list[float]:
    """Returns, for each run, the step at which it has come as far on the axis as the shortest run came."""
    axes = [positions(opened, axis) for opened in runs]
    if any(not len(position) for position in axes):
        raise SmdtrackError("a run without samples cannot be lined up with others")
    end = min(position[-1] for position in axes)
    reached = []
    for opened, position in zip(runs, axes, strict=True):
        index = int(np.searchsorted(position, end * (1 + 1e-9), side="right")) - 1
        reached.append(float(opened.run.steps[max(index, 0)]))
    return reached
