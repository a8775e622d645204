"""Reads a run's folder back, whether the run ended, still goes on, was killed, or has damaged files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smdtrack.notices import SmdtrackError, notify
from smdtrack.record.head import read_head
from smdtrack.record.run import Floats, Run
from smdtrack.record.sample_files import Columns, read_sample_file, sample_files

#: Column names of version 1, and what they are called now.
_NAMES_SINCE_VERSION_1 = {
    "grad": "effective_grad",
    "orthogonality": "orthogonality_residual",
    "smd/orthogonality": "smd/orthogonality_residual",
    "memory": "line_memory",
}


def read_run(folder: str | Path) -> Run:
    """Reads a local record.

    The incomplete last batch of a process that died is left out; all samples before it are returned. If a resumed
    training repeated steps, the samples that were written later replace the earlier ones. A damaged file is read as far
    as it goes; `Run.damage` lists what was left out, and a warning says it.

    Raises:
        SmdtrackError: If the folder is no run, its head is damaged, or a newer version wrote it.
    """
    if not isinstance(folder, (str, Path)):
        raise SmdtrackError(f"a run's folder is a path, not {folder!r}")
    folder = Path(folder)
    head = read_head(folder)
    damage: list[str] = []
    files = sample_files(folder)
    running = head.status == "running"
    batches = [
        batch for path in files for batch in read_sample_file(path, damage, being_written=running and path == files[-1])
    ]
    if head.schema == 1:
        batches = [_with_new_names(batch) for batch in batches]
    run = _joined(batches, len(head.info.weights), damage)
    if damage:
        more = f" ({len(damage) - 1} more)" if len(damage) > 1 else ""
        notify(f"{folder}: {damage[0]}{more}")
    return Run(info=head.info, status=head.status, summary=head.summary, damage=tuple(damage), **run)


def read_sinks(folder: str | Path) -> Mapping[str, Mapping[str, Any]]:
    """Returns, by a sink's name, what that sink needs to find its run of a local record again.

    Raises:
        SmdtrackError: As `read_run`.
    """
    return read_head(Path(folder)).sinks


def _with_new_names(batch: Columns) -> Columns:
    values = {_NAMES_SINCE_VERSION_1.get(name, name): column for name, column in batch.values.items()}
    return Columns(batch.steps, batch.times, values)


def _joined(batches: Sequence[Columns], width: int, damage: list[str]) -> dict[str, Any]:
    """Returns the fields `steps`, `times`, `values` and `overview` of a `Run`.

    Args:
        batches: In the order in which they were written.
        width: Number of tracked weights.
        damage: A sentence for each column that is left out is added here.
    """
    written = np.concatenate([np.empty(0, dtype=np.int64), *(batch.steps for batch in batches)])
    # np.unique returns the first of equal steps, so in reversed order the one that was written last.
    steps, index_from_end = np.unique(written[::-1], return_index=True)
    last_written = len(written) - 1 - index_from_end
    row_of = np.full(len(written), -1)
    row_of[last_written] = np.arange(len(steps))
    times = np.concatenate([np.empty(0), *(batch.times for batch in batches)])[last_written]
    columns: dict[str, Floats] = {}
    misshapen: set[str] = set()
    start = 0
    for batch in batches:
        source, target = _rows(row_of[start : start + len(batch.steps)])
        for name, values in batch.values.items():
            known = columns.get(name)
            if known is None:
                if values.ndim == 2 and values.shape[1] != width:
                    misshapen.add(name)
                    continue
                known = columns[name] = np.full((len(steps), *values.shape[1:]), np.nan)
            if known.shape[1:] != values.shape[1:]:
                misshapen.add(name)
            else:
                known[target] = values[source]
        start += len(batch.steps)
    damage += [f"some values of {name!r} are left out: they are not one per weight" for name in sorted(misshapen)]
    return {
        "steps": steps,
        "times": times,
        "values": {name: column for name, column in columns.items() if column.ndim == 2},
        "overview": {name: column for name, column in columns.items() if column.ndim == 1},
    }


def _rows(rows: npt.NDArray[np.int64]) -> tuple[Any, Any]:
    """Returns which samples of a batch are kept and the rows they go to: slices if they lie side by side.

    Args:
        rows: The row of each sample; -1 for a sample that was replaced by a later one.
    """
    if len(rows) and rows[0] >= 0 and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
        return slice(None), slice(int(rows[0]), int(rows[0]) + len(rows))
    kept = np.flatnonzero(rows >= 0)
    return kept, rows[kept]
