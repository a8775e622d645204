"""What the training thread hands to the writer's thread for one sampled step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from smdtrack.theory import Family
from smdtrack.tracking.measure.probe import Reading


@dataclass(frozen=True)
class Measurement:
    """What the training thread hands over for one sampled step.

    Attributes:
        reading: Rows as in `Moments`, below them those that `extra` names; NaN for weights that the step did not move.
        groups: The hyper-parameters of each parameter group during the step.
        group_of: Per weight the index of its group; None for one that the optimizer does not hold.
        family: Whose lines the weights have.
        floors: Per weight the angle under which its storage allows no reading.
        extra: `decay_pull`, `change_along_momentum`, `eps_radial`, `tied_elements`, `tied_filters`.
        sharded: Whether the table was added up over processes.
        has_gradients_of_the_step: False where a closure made them inside the step, at weights that are not known.
        frozen: Per weight, whether the batch norm that makes it invariant was in eval mode.
        skipped: 1 on the device where a fused step was skipped for an overflow.
        lags: Per lag K, the reading over the last K steps.
    """

    step: int
    time: float
    reading: Reading
    groups: Sequence[Mapping[str, Any]]
    group_of: Sequence[int | None]
    family: Family
    floors: Sequence[float] = ()
    extra: Sequence[str] = ()
    sharded: bool = False
    has_gradients_of_the_step: bool = True
    frozen: Sequence[bool] = ()
    skipped: torch.Tensor | None = None
    lags: Mapping[int, Reading] = field(default_factory=dict)
