"""What the training's thread hands to the writer's thread for one sampled step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

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
        family: The optimizer's family, which knows the lines.
        smallest_angles: Per weight the smallest angle (radian) that its storage lets one read.
        has_gradients_of_the_step: False where a closure computed the gradients inside the step, possibly at other
            weights than those before the step.
        norm_in_eval_mode: Per weight, whether the batch norm that makes it invariant was in eval mode.
        skipped: On the device, 1 where a fused step was skipped because of an overflow; None where that cannot happen.
        lags: Per number of steps K, the reading of a window of K steps that ended since the last sample.
    """

    step: int
    time: float
    reading: Reading
    groups: Sequence[Mapping[str, Any]]
    group_of: Sequence[int | None]
    family: Family
    smallest_angles: Sequence[float] = ()
    has_gradients_of_the_step: bool = True
    norm_in_eval_mode: Sequence[bool] = ()
    skipped: torch.Tensor | None = None
    lags: Mapping[int, LagReading] = field(default_factory=dict)
