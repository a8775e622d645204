"""Where a resumed training goes on: steps are counted from the checkpoint's, also where nothing in it says which.

Adam and its kin carry their step count in the checkpoint. SGD does not, and nothing of ours may be put into somebody's
checkpoint. So the record keeps, for each moment at which the optimizer's state was asked for (to save it), the step and
the weights' norms; weights that come back with the same norms are at that step.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smdtrack.record.run import Floats
from smdtrack.record.store import RUN_FILE
from smdtrack.tracking.probe import Reading

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


def find_step(names: Sequence[str], squares: Floats, runs: Path) -> int | None:
    """Returns the step of a checkpoint with these weights, of any of the newest runs in a folder."""
    folders = sorted((file.parent for file in runs.glob(f"*/{RUN_FILE}")), key=lambda path: path.name, reverse=True)
    for folder in folders[:_MOST_RUNS]:
        step = step_of(names, squares, folder)
        if step is not None:
            return step
    return None
