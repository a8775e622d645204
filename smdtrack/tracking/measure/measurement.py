"""What the training's thread hands to the writer's thread for one sampled step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.optim import Optimizer

from smdtrack.theory import Family
from smdtrack.tracking.measure.table import Reading


@dataclass(frozen=True)
class LagReading:
    """What was measured over a window of several steps.

    Attributes:
        first_step: The first step of the window.
        last_step: The last step of the window.
        reading: Sums over each weight and its change over the whole window.
    """

    first_step: int
    last_step: int
    reading: Reading


@dataclass(frozen=True)
class Measurement:
    """What was measured at one sampled step, and what is needed to interpret it.

    Attributes:
        step: The optimizer step, counted from 1.
        time: Seconds since the epoch.
        reading: Sums over each weight, its gradient and its change; NaN for weights that the step did not move.
        groups: The hyper-parameters of each parameter group during the step.
        group_of: Per weight the index of its group; None for a weight that the optimizer does not hold.
        families: Per parameter group the family of its optimizer, which knows the lines.
        optimizers: Kept alive until the lines have been computed: the families refer to them weakly.
        smallest_angles: Per weight the smallest angle (radian) that its storage lets one read.
        sharded: Whether the sums were added up over several processes.
        has_gradients_of_the_step: False where a closure computed the gradients inside the step, possibly at other
            weights than those before the step.
        norm_in_eval_mode: Per weight, whether the batch norm that makes it invariant was in eval mode.
        skipped: On the device, 1 where a fused step was skipped because of an overflow; empty where that cannot happen.
        lags: Per number of steps K, the reading of a window of K steps that ended since the last sample.
    """

    step: int
    time: float
    reading: Reading
    groups: Sequence[Mapping[str, Any]]
    group_of: Sequence[int | None]
    families: Sequence[Family]
    optimizers: Sequence[Optimizer] = ()
    smallest_angles: Sequence[float] = ()
    sharded: bool = False
    has_gradients_of_the_step: bool = True
    norm_in_eval_mode: Sequence[bool] = ()
    skipped: Sequence[torch.Tensor] = ()
    lags: Mapping[int, LagReading] = field(default_factory=dict)


def merged(measurements: Sequence[Measurement]) -> Measurement:
    """Returns the measurements of several optimizers of one model, at the same step, as one.

    Args:
        measurements: At least one. No weight is measured by more than one of them.
    """
    first, *others = measurements
    if not others:
        return first
    groups: list[Mapping[str, Any]] = []
    group_of: list[int | None] = [None] * first.reading.width
    in_eval_mode = [False] * first.reading.width
    for measurement in measurements:
        columns = {column for part in measurement.reading.parts for column in part.columns}
        for column, group in enumerate(measurement.group_of):
            if group is not None and column in columns:
                group_of[column] = len(groups) + group
        for column, in_eval in enumerate(measurement.norm_in_eval_mode):
            in_eval_mode[column] |= in_eval
        groups.extend(measurement.groups)
    return replace(
        first,
        reading=_merged_readings([measurement.reading for measurement in measurements]),
        groups=groups,
        group_of=group_of,
        families=[family for measurement in measurements for family in measurement.families],
        optimizers=[optimizer for measurement in measurements for optimizer in measurement.optimizers],
        has_gradients_of_the_step=all(measurement.has_gradients_of_the_step for measurement in measurements),
        norm_in_eval_mode=in_eval_mode,
        skipped=[skipped for measurement in measurements for skipped in measurement.skipped],
        lags={
            lag: _merged_windows([measurement.lags[lag] for measurement in measurements if lag in measurement.lags])
            for lag in dict.fromkeys(lag for measurement in measurements for lag in measurement.lags)
        },
    )


def _merged_readings(readings: Sequence[Reading]) -> Reading:
    return Reading([part for reading in readings for part in reading.parts], readings[0].width)


def _merged_windows(windows: Sequence[LagReading]) -> LagReading:
    return replace(windows[0], reading=_merged_readings([window.reading for window in windows]))
