"""Reads a run's folder back, complete or cut off anywhere."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from smdtrack.notices import SmdtrackError
from smdtrack.record.run import Run, RunInfo, TrackedWeight
from smdtrack.record.store import RUN_FILE, SCHEMA_VERSION


def read_run(folder: str | Path) -> Run:
    """Reads a local record.

    A process that died in mid-write leaves a torn last batch: it is passed over, all before it is returned. Where a
    resumed run repeats steps, the later part's samples replace the earlier ones.

    Raises:
        SmdtrackError: If the folder is no run, or one of a newer version.
    """
    folder = Path(folder)
    head = _read_head(folder)
    weights = tuple(TrackedWeight(**{**weight, "shape": tuple(weight["shape"])}) for weight in head["weights"])
    info = RunInfo(
        id=head["id"], name=head["name"], folder=folder, created=head["created"], weights=weights, params=head["params"]
    )
    rows: dict[int, dict[str, Any]] = {}
    for part in sorted(folder.glob("samples-*.arrows")):
        for batch in _whole_batches(part):
            for row in _rows(batch):
                rows[row["step"]] = row
    ordered = [rows[step] for step in sorted(rows)]
    keys = list(dict.fromkeys(key for row in ordered for key in row))
    columns = {key: np.array([_value(row, key, ordered, len(weights)) for row in ordered]) for key in keys}
    return Run(
        info=info,
        steps=columns.pop("step", np.empty(0)).astype(np.int64),
        times=columns.pop("time", np.empty(0)).astype(np.float64),
        values={key: column for key, column in columns.items() if column.ndim == 2},
        overview={key: column for key, column in columns.items() if column.ndim == 1},
        status=head["status"],
        summary=head.get("summary"),
    )


def read_sinks(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Returns, by a sink's name, where that sink's run of a local record is found.

    Raises:
        SmdtrackError: As `read_run`.
    """
    sinks: dict[str, dict[str, Any]] = _read_head(Path(folder)).get("sinks", {})
    return sinks


def _read_head(folder: Path) -> dict[str, Any]:
    path = folder / RUN_FILE
    try:
        head: dict[str, Any] = json.loads(path.read_text())
        version = head["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SmdtrackError(f"{folder} is not a run's folder: no readable {RUN_FILE} in it") from error
    if version > SCHEMA_VERSION:
        raise SmdtrackError(f"{folder} was written by a newer smdtrack (schema {version}): upgrade smdtrack to read it")
    return head


def _whole_batches(part: Path) -> Iterator[Any]:
    import pyarrow as pa

    with part.open("rb") as file:
        try:
            yield from pa.ipc.open_stream(file)
        except (pa.ArrowInvalid, OSError, EOFError):
            return  # the torn end of a part whose process died


def _rows(batch: Any) -> Iterator[dict[str, Any]]:
    import pyarrow as pa

    columns = {}
    for name in batch.schema.names:
        column = batch.column(name)
        if pa.types.is_fixed_size_list(column.type):
            columns[name] = column.values.to_numpy(zero_copy_only=False).reshape(len(batch), column.type.list_size)
        else:
            columns[name] = column.to_numpy(zero_copy_only=False)
    for index in range(len(batch)):
        row = {name: column[index] for name, column in columns.items()}
        row["step"] = int(row["step"])
        yield row


def _value(row: dict[str, Any], key: str, rows: list[dict[str, Any]], weights: int) -> Any:
    if key in row:
        return row[key]
    is_table = any(np.ndim(other[key]) == 1 for other in rows if key in other)
    return np.full(weights, np.nan) if is_table else np.nan
