"""Where a resumed training goes on: steps are counted from the checkpoint's, also where nothing in it says which.

Adam and its kin carry their step count in the checkpoint. SGD does not, and nothing of ours may be put into somebody's
checkpoint. So the record keeps, for each moment at which the optimizer's state was asked for (to save it), the step and
the weights' norms; weights that come back with the same norms are at that step.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from smdtrack.record.run import Floats
from smdtrack.record.store import RUN_FILE
from smdtrack.tracking.discovery import state_of, steps_taken
from smdtrack.tracking.precision import measured
from smdtrack.tracking.probe import Reading, squares

CHECKPOINTS_FILE = "checkpoints.jsonl"
#: Relative: devices add up in different orders; weights a step apart differ by more.
_SAME = 1e-7
_MOST_RUNS = 200


@dataclass(frozen=True)
class SavedState:
    """A moment at which the training's state was saved: the reading's one row is the weights' squared norms."""

    step: int
    names: Sequence[str]
    reading: Reading

    def write(self, folder: Path) -> None:
        """Appends to the run's list of checkpoints; call it on the writer thread."""
        squares = dict(zip(self.names, self.reading.numpy()[0].tolist(), strict=True))
        with (folder / CHECKPOINTS_FILE).open("a") as file:
            file.write(json.dumps({"step": self.step, "squares": squares}) + "\n")


def step_of(names: Sequence[str], squares: Floats, folder: Path) -> int | None:
    """Returns the step of the run's checkpoint whose weights have these squared norms; None if there is none."""
    try:
        lines = (folder / CHECKPOINTS_FILE).read_text().splitlines()
    except OSError:
        return None
    best: tuple[float, int] | None = None
    for line in lines:
        try:
            entry = json.loads(line)
            saved = np.array([entry["squares"][name] for name in names], dtype=np.float64)
        except (ValueError, KeyError, TypeError):
            continue  # a torn line, or a checkpoint of other weights
        apart = float(np.max(np.abs(saved - squares) / np.maximum(saved, 1e-300))) if len(saved) else np.inf
        if apart <= _SAME and (best is None or apart <= best[0]):
            best = (apart, int(entry["step"]))
    return best[1] if best is not None else None


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
        optimizer: Optimizer, parameters: Sequence[Tensor], weigh: bool = True, always: bool = False,
) -> Before:
    """Takes the state before a training's first step; waits for the device where the training was resumed.

    Args:
        weigh: Whether to take the norms if the optimizer has a state already, as after a resume.
        always: Whether to take them also if it has none.
    """
    taken, state = steps_taken(optimizer), state_of(optimizer)
    if not weigh or not (always or (state and taken != 0)):
        return Before(taken, {})
    weights = {column: measured(parameter, state.get(parameter, {})) for column, parameter in enumerate(parameters)}
    norms = squares(weights, len(parameters)).numpy()[0].tolist() if weights else []
    return Before(taken, dict(zip(map(id, parameters), norms, strict=True)))


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that a record knows: the record's folder, and the step after which it was made."""

    folder: Path
    step: int


def find_checkpoint(names: Sequence[str], squares: Floats, runs: Path) -> Checkpoint | None:
    """Returns the checkpoint with these weights, of the newest run in a folder that has one."""
    folders = sorted((file.parent for file in runs.glob(f"*/{RUN_FILE}")), key=lambda path: path.name, reverse=True)
    for folder in folders[:_MOST_RUNS]:
        step = step_of(names, squares, folder)
        if step is not None:
            return Checkpoint(folder, step)
    return None
