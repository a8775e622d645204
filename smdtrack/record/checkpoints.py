"""The list of a run's checkpoints, `checkpoints.jsonl`: for each the step and the squared norms of the weights.

A resumed training loads weights whose norms are those of one of these entries. The entry tells the step at which the
training continues.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smdtrack.record.head import RUN_FILE
from smdtrack.record.run import Floats

CHECKPOINTS_FILE = "checkpoints.jsonl"
#: Relative tolerance for equal squared norms; devices sum in different orders. Weights one step apart differ by more.
_SAME = 1e-7
#: Newest runs that are searched for a checkpoint.
_MOST_RUNS = 200


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that a record lists: the record's folder, and the step after which it was made."""

    folder: Path
    step: int


def append_checkpoint(folder: Path, step: int, squares: Mapping[str, float]) -> None:
    """Appends a checkpoint to a run's list.

    Args:
        folder: The run's folder.
        step: Optimizer steps taken when the checkpoint was made.
        squares: Squared norm of each tracked weight, by name.
    """
    with (folder / CHECKPOINTS_FILE).open("a") as file:
        file.write(json.dumps({"step": step, "squares": dict(squares)}) + "\n")


def step_of(names: Sequence[str], squares: Floats, folder: Path) -> int | None:
    """Returns the step of the run's checkpoint whose weights have these squared norms; None if there is none.

    Args:
        names: The weights' names.
        squares: (W,) squared norms, in the order of the names.
        folder: The run's folder.
    """
    try:
        lines = (folder / CHECKPOINTS_FILE).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    best: tuple[float, int] | None = None
    for line in lines:
        try:
            entry = json.loads(line)
            saved = np.array([entry["squares"][name] for name in names], dtype=np.float64)
            step = int(entry["step"])
        except (ValueError, KeyError, TypeError):
            continue  # an incomplete line, or a checkpoint of other weights
        difference = float(np.max(np.abs(saved - squares) / np.maximum(saved, 1e-300))) if len(saved) else np.inf
        if difference <= _SAME and (best is None or difference <= best[0]):
            best = (difference, step)
    return best[1] if best is not None else None


def find_checkpoint(names: Sequence[str], squares: Floats, runs: Path) -> Checkpoint | None:
    """Returns the checkpoint with these weights from the newest run that lists one; None if no run does.

    Args:
        names: The weights' names.
        squares: (W,) squared norms, in the order of the names.
        runs: Folder of the runs.
    """
    folders = sorted((file.parent for file in runs.glob(f"*/{RUN_FILE}")), key=lambda path: path.name, reverse=True)
    for folder in folders[:_MOST_RUNS]:
        step = step_of(names, squares, folder)
        if step is not None:
            return Checkpoint(folder, step)
    return None
