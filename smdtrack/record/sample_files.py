"""The sample files of a record: how samples become Arrow record batches, and how these are read back.

A file is an Arrow IPC stream, one record batch per flush. A column holds one float64 per sample, or per sample a list
of one float64 per weight. Arrays are passed to Arrow and taken from it as buffers: `pyarrow.array` and `to_numpy` would
import pandas, which takes a third of a second and must not happen on a thread beside a running training.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from smdtrack.notices import first_line
from smdtrack.record.run import Floats, Sample

#: How Arrow's errors begin if a file ends in the middle of a batch.
_INCOMPLETE = ("Corrupted message, only", "Corrupted metadata length, only", "Expected to ", "Tried reading schema")
_FILE_NAME = re.compile(r"samples-(\d+)\.arrows")


@dataclass(frozen=True)
class Columns:
    """The samples of one record batch.

    Attributes:
        steps: (T,) optimizer steps, in the order in which they were written.
        times: (T,) seconds since the epoch.
        values: By column name, (T,) or (T, W) float64.
    """

    steps: npt.NDArray[np.int64]
    times: Floats
    values: Mapping[str, Floats]


def sample_files(folder: Path) -> list[Path]:
    """Returns the sample files of a run's folder in the order of their numbers."""
    numbered = [(int(match[1]), path) for path in folder.iterdir() if (match := _FILE_NAME.fullmatch(path.name))]
    return [path for _, path in sorted(numbered)]


def next_sample_file(folder: Path) -> Path:
    """Returns the name of the next sample file of a run's folder."""
    last = sample_files(folder)[-1:]
    number = int(_FILE_NAME.fullmatch(last[0].name)[1]) + 1 if last else 0  # type: ignore[index]
    return folder / f"samples-{number:03d}.arrows"


def column_widths(samples: Sequence[Sample]) -> dict[str, int | None]:
    """Returns the columns that these samples need: the number of weights per column, None for one value a sample."""
    widths: dict[str, int | None] = {}
    for sample in samples:
        widths |= dict.fromkeys(sample.overview)
        widths |= {family: len(row) for family, row in sample.values.items()}
    return widths


def schema_of(widths: Mapping[str, int | None]) -> Any:
    """Returns the Arrow schema of a file with these columns."""
    fields = [pa.field("step", pa.int64()), pa.field("time", pa.float64())]
    for name, width in widths.items():
        fields.append(pa.field(name, pa.float64() if width is None else pa.list_(pa.float64(), width)))
    return pa.schema(fields)


def batch_of(samples: Sequence[Sample], widths: Mapping[str, int | None]) -> Any:
    """Returns the samples as a record batch with these columns; a column that a sample lacks is NaN there."""
    columns = [_array(np.array([sample.step for sample in samples], dtype=np.int64))]
    columns.append(_array(np.array([sample.time for sample in samples], dtype=np.float64)))
    for name, width in widths.items():
        if width is None:
            columns.append(
                _array(np.array([sample.overview.get(name, np.nan) for sample in samples], dtype=np.float64))
            )
            continue
        absent = np.full(width, np.nan)
        table = np.stack([np.asarray(sample.values.get(name, absent), dtype=np.float64) for sample in samples])
        kind = pa.list_(pa.float64(), width)
        columns.append(pa.Array.from_buffers(kind, len(samples), [None], children=[_array(table.reshape(-1))]))
    return pa.record_batch(columns, schema=schema_of(widths))


def read_sample_file(path: Path, damage: list[str], being_written: bool = False) -> list[Columns]:
    """Reads a sample file up to its end or to the first batch that cannot be read. Returns one entry per batch.

    Args:
        path: The file.
        damage: A sentence for each thing that is left out is added here.
        being_written: Whether the training may be writing this file, or was killed while it did. An incomplete last
            batch is then expected and not counted as damage.
    """
    read: list[Columns] = []
    unusable: dict[str, str] = {}
    for batch in _batches(path, damage, being_written):
        try:
            steps, times = _flat(batch.column("step"), np.int64), _flat(batch.column("time"), np.float64)
        except (ValueError, KeyError) as error:
            damage.append(f"{path.name} is read as far as it goes: {first_line(error)}")
            break
        values = {}
        for name in batch.schema.names:
            if name in ("step", "time"):
                continue
            try:
                values[name] = _values(batch.column(name))
            except (ValueError, KeyError) as error:
                unusable[name] = first_line(error)
        read.append(Columns(steps, times, values))
    damage += [f"the column {name!r} of {path.name} is left out: {reason}" for name, reason in unusable.items()]
    return read


def _batches(path: Path, damage: list[str], being_written: bool) -> Iterator[Any]:
    try:
        if not path.is_file():
            raise OSError("it is not a regular file")
        content = path.read_bytes()
        if not content:
            return  # the process died before it wrote the first batch
        stream = pa.ipc.open_stream(pa.py_buffer(content))
        stream.schema.names  # noqa: B018 - raises if a name is not UTF-8, which open_stream does not check
        while True:
            batch = stream.read_next_batch()
            batch.validate()
            yield batch
    except StopIteration:
        return
    except Exception as error:  # a damaged file can make Arrow raise nearly any error
        if being_written and str(error).startswith(_INCOMPLETE):
            return
        damage.append(f"{path.name} is damaged and read as far as it goes: {first_line(error)}")


def _array(values: npt.NDArray[Any]) -> Any:
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), values.size, [None, pa.py_buffer(values)])


def _flat(column: Any, kind: Any) -> npt.NDArray[Any]:
    """Returns a column without nulls as an array.

    Raises:
        ValueError: If the column is of another type or has nulls.
    """
    wanted = pa.from_numpy_dtype(np.dtype(kind))
    if column.type != wanted:
        raise ValueError(f"it holds {column.type} where {wanted} is expected")
    if column.null_count:
        raise ValueError("it has empty entries")
    return np.frombuffer(column.buffers()[1] or b"", dtype=kind)[column.offset : column.offset + len(column)]


def _values(column: Any) -> Floats:
    if not pa.types.is_fixed_size_list(column.type):
        return _flat(column, np.float64)
    if column.null_count:
        raise ValueError("it has empty entries")
    width = column.type.list_size
    start = column.offset * width
    return _flat(column.values, np.float64)[start : start + len(column) * width].reshape(len(column), width)
