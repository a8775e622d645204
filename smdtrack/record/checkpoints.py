"""The list of a run's checkpoints, `checkpoints.jsonl`: for each the step and the squared norms of the weights.

A resumed training loads weights with the norms of one of these entries, which tells the step where it goes on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smdtrack.record.run import Floats
from smdtrack.record.store import RUN_FILE

CHECKPOINTS_FILE = "checkpoints.jsonl"
#: Relative tolerance for equal squared norms. Devices sum in different orders; weights one step apart differ by more.
_SAME = 1e-7
_MOST_RUNS = 200


def append_checkpoint(folder: Path, step: int, squares: Mapping[str, float]) -> None:
    """Appends a checkpoint to a run's list.

    Args:
        folder: Of the run.
        step: Optimizer steps taken when the checkpoint was made.
        squares: Squared norm of each tracked weight, by name.
    """
    with (folder / CHECKPOINTS_FILE).open("a") as file:
        file.write(json.dumps({"step": step, "squares": dict(squares)}) + "\n")


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
