"""Reads a run's folder back, whether the run ended, still goes on, was killed, or has damaged files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
    parts = [read_sample_file(path, damage, being_written=running and path == files[-1]) for path in files]
    new_names = _NAMES_SINCE_VERSION_1 if head.schema == 1 else {}
    whole = [_renamed(part, new_names) for part in parts if part is not None]
    run = _joined(whole, len(head.info.weights), damage)
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


def _renamed(part: Columns, new_names: Mapping[str, str]) -> Columns:
    values = {new_names.get(name, name): column for name, column in part.values.items()}
    return Columns(part.steps, part.times, values)


def _joined(parts: Sequence[Columns], width: int, damage: list[str]) -> dict[str, Any]:
    """Returns the fields `steps`, `times`, `values` and `overview` of a `Run`."""
    written = np.concatenate([np.empty(0, dtype=np.int64), *(part.steps for part in parts)])
    # np.unique returns the first of equal steps, so in reversed order the one that was written last.
    steps, index_from_end = np.unique(written[::-1], return_index=True)
    last_written = len(written) - 1 - index_from_end
    row_of = np.full(len(written), -1)
    row_of[last_written] = np.arange(len(steps))
    times = np.concatenate([np.empty(0), *(part.times for part in parts)])[last_written]
    values: dict[str, Floats] = {}
    overview: dict[str, Floats] = {}
    start = 0
    for part in parts:
        rows = row_of[start : start + len(part.steps)]
        kept = rows >= 0
        for name, column in part.values.items():
            if name in (overview if column.ndim == 2 else values) or (column.ndim == 2 and column.shape[1] != width):
                damage.append(f"the column {name!r} of some samples is left out: it is not one value per weight")
                continue
            if column.ndim == 2:
                values.setdefault(name, np.full((len(steps), width), np.nan))[rows[kept]] = column[kept]
            else:
                overview.setdefault(name, np.full(len(steps), np.nan))[rows[kept]] = column[kept]
        start += len(part.steps)
    return {"steps": steps, "times": times, "values": values, "overview": overview}
