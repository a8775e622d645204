"""Where a resumed training goes on: steps are counted from the checkpoint's, also where nothing in it says which.

Adam and its kin carry their step count in the checkpoint. SGD does not, and nothing of ours may be put into somebody's
checkpoint. So the record keeps, for each moment at which the optimizer's state was asked for (to save it), the step and
the weights' norms; weights that come back with the same norms are at that step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from smdtrack.optimizers import state_of, steps_taken
from smdtrack.record.checkpoints import append_checkpoint
from smdtrack.record.run import Floats
from smdtrack.tracking.interpret.step_values import step_values
from smdtrack.tracking.measure.precision import tensor_to_measure
from smdtrack.tracking.measure.probe import read_squared_norms
from smdtrack.tracking.measure.table import Reading


@dataclass(frozen=True)
class SavedState:
    """A moment at which the training's state was saved: the reading's one row is the weights' squared norms."""

    step: int
    names: Sequence[str]
    reading: Reading

    def write(self, folder: Path) -> None:
        """Appends to the run's list of checkpoints; call it on the writer thread."""
        norms = step_values(self.reading).weight_squared.tolist()
        append_checkpoint(folder, self.step, dict(zip(self.names, norms, strict=True)))


@dataclass(frozen=True)
class Before:
    """A training's state before a step, as far as it tells where the training stands.

    Attributes:
        taken: The optimizer's own count of its steps; None where it keeps none.
        squares: Squared norms by `id` of the parameter; empty where nothing says that the training was resumed.
    """

    taken: int | None
    squares: Mapping[int, float]

    def squares_of(self, parameters: Sequence[Tensor]) -> Floats:
        """Returns the parameters' squared norms, (W,), NaN for those that were not weighed; (0,) if none was."""
        if not self.squares:
            return np.empty(0)
        return np.array([self.squares.get(id(parameter), np.nan) for parameter in parameters])


def state_before(
    optimizer: Optimizer,
    parameters: Sequence[Tensor],
    weigh: bool = True,
    always: bool = False,
) -> Before:
    """Takes the state before a training's first step; waits for the device where the training was resumed.

    Args:
        weigh: Whether to take the norms if the optimizer has a state already, as after a resume.
        always: Whether to take them also if it has none.
    """
    taken, state = steps_taken(optimizer), state_of(optimizer)
    if not weigh or not (always or (state and taken != 0)):
        return Before(taken, {})
    weights = {c: tensor_to_measure(parameter, state.get(parameter, {})) for c, parameter in enumerate(parameters)}
    norms = step_values(read_squared_norms(weights, len(parameters))).weight_squared.tolist() if weights else []
    return Before(taken, dict(zip(map(id, parameters), norms, strict=True)))
