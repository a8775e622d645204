"""Finds how many optimizer steps a resumed training took before tracking began.

Adam and similar optimizers keep their step count in the checkpoint. SGD keeps none, and smdtrack writes nothing into
the user's checkpoints. Instead the record lists, for each moment at which the optimizer's state was saved, the step and
the squared norms of the weights. A training whose weights have the norms of such an entry is at that entry's step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from smdtrack.notices import notify
from smdtrack.optimizers import state_of, steps_taken
from smdtrack.record.checkpoints import Checkpoint, find_checkpoint, step_of
from smdtrack.record.run import Floats, RunInfo
from smdtrack.tracking.interpret.step_values import step_values
from smdtrack.tracking.measure.precision import tensor_to_measure
from smdtrack.tracking.measure.probe import read_squared_norms


@dataclass(frozen=True)
class TrainingState:
    """The state of a training before one of its steps, as far as it tells which step that is.

    Attributes:
        steps_taken: The optimizer's own step count; None if it keeps none.
        squared_norms: Squared norm of each weight, by `id` of the parameter; empty if the training was not resumed.
        steps_since: Optimizer steps taken after this state and before the first step that is counted: 1 if the
            tracker could be made only after the step had run.
    """

    steps_taken: int | None
    squared_norms: Mapping[int, float]
    steps_since: int = 0

    def squared_norms_of(self, parameters: Sequence[Tensor]) -> Floats:
        """Returns the parameters' squared norms, (W,), NaN for those that were not measured; (0,) if none was."""
        if not self.squared_norms:
            return np.empty(0)
        return np.array([self.squared_norms.get(id(parameter), np.nan) for parameter in parameters])


@dataclass(frozen=True)
class StartingPoint:
    """Where a training begins to be tracked.

    Attributes:
        steps_before: Optimizer steps taken before; 0 unless the training was resumed.
        checkpoint: The recorded checkpoint that the training was resumed from, if one was found.
    """

    steps_before: int
    checkpoint: Checkpoint | None = None


def training_state(
    optimizer: Optimizer,
    parameters: Sequence[Tensor],
    with_norms: bool = True,
    always: bool = False,
    steps_since: int = 0,
) -> TrainingState:
    """Takes the state of a training before a step. Waits for the device if the training was resumed.

    Args:
        with_norms: Whether to measure the norms if the optimizer already has a state, as it does after a resume.
        always: Whether to measure them even if the optimizer has no state.
        steps_since: As in `TrainingState`.
    """
    taken, state = steps_taken(optimizer), state_of(optimizer)
    if not with_norms or not (always or (state and taken != 0)):
        return TrainingState(taken, {}, steps_since)
    weights = {c: tensor_to_measure(parameter, state.get(parameter, {})) for c, parameter in enumerate(parameters)}
    norms = step_values(read_squared_norms(weights, len(parameters))).weight_squared.tolist() if weights else []
    return TrainingState(taken, dict(zip(map(id, parameters), norms, strict=True)), steps_since)


def starting_point(state: TrainingState, parameters: Sequence[Tensor], info: RunInfo, runs: Path) -> StartingPoint:
    """Returns the step at which a training with this state is.

    Args:
        state: Before the training's first tracked step.
        parameters: The tracked weights, in the order of `info.weights`.
        info: The run; if it continues an earlier record, the step is looked up there.
        runs: Folder with the records among which a new run looks for its checkpoint.
    """
    names = [weight.name for weight in info.weights]
    norms = state.squared_norms_of(parameters)
    if info.earlier is None:
        found = find_checkpoint(names, norms, runs) if len(norms) else None
        if found is not None and state.steps_taken in (None, found.step):
            return StartingPoint(state.steps_since + found.step, found)
        return StartingPoint(state.steps_since + (state.steps_taken or 0))
    recorded = step_of(names, norms, info.folder) if len(norms) else None
    if recorded is not None:
        return StartingPoint(state.steps_since + recorded)
    if state.steps_taken is not None:
        return StartingPoint(state.steps_since + state.steps_taken)
    notify(
        f"{info.folder} has no checkpoint with these weights: steps are counted on from its last sample, step"
        f" {info.earlier.last_step}"
    )
    return StartingPoint(state.steps_since + info.earlier.last_step)
