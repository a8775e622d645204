"""The local record: one folder a run, readable at any moment, also after kill -9."""

import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from smdtrack.notices import SmdtrackError
from smdtrack.record.run import RunInfo, Sample

SCHEMA_VERSION = 1
RUN_FILE = "run.json"
DEFAULT_FOLDER = "smdtrack-runs"


def new_run_folder(parent: Path, name: str) -> tuple[str, Path]:
    """Makes the folder of a new run and returns the run's id and the folder.

    Raises:
        SmdtrackError: If the folder cannot be made or written to.
    """
    run_id = uuid.uuid4().hex[:8]
    folder = parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}-{run_id}"
    try:
        folder.mkdir(parents=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SmdtrackError(
            f"cannot write the local record in {parent} ({error.strerror}): choose another folder"
        ) from error
    return run_id, folder


class LocalStore:
    """Appends samples to a run's folder.

    `run.json` holds what is known of the run and, at the end, its summary. Each `samples-NNN.arrows` is an Arrow IPC
    stream: a batch a flush, so that all but a torn last batch can be read whenever the process ends. A new part begins
    where a run is resumed and where the set of keys changes.
    """

    def __init__(self, info: RunInfo) -> None:
        self.folder = info.folder
        self._file: Any = None
        self._writer: Any = None
        self._schema: Any = None
        self._head: dict[str, Any] = {"schema": SCHEMA_VERSION, **_as_json(info), "status": "running", "sinks": {}}
        if (self.folder / RUN_FILE).exists():  # a run that goes on
            self._head["sinks"] = json.loads((self.folder / RUN_FILE).read_text()).get("sinks", {})
        self._save_head()

    def append(self, samples: Sequence[Sample]) -> None:
        """Writes the samples as record batches and flushes them to the operating system."""
        for batch in _batches(samples):
            if self._schema is None or batch.schema != self._schema:
                self._open_part(batch.schema)
            self._writer.write_batch(batch)
        if self._file is not None:
            self._file.flush()

    def note_sink(self, name: str, where: Mapping[str, Any]) -> None:
        """Keeps where a sink's run is found, so that later commands need not be told."""
        self._head["sinks"][name] = dict(where)
        self._save_head()

    def close(self, status: str, summary: Mapping[str, Any] | None) -> None:
        """Ends the part and stores how the run ended."""
        self._close_part()
        self._head |= {"status": status, "ended": time.time(), "summary": summary}
        self._save_head()

    def _open_part(self, schema: Any) -> None:
        import pyarrow as pa

        self._close_part()
        number = len(list(self.folder.glob("samples-*.arrows")))
        self._file = (self.folder / f"samples-{number:03d}.arrows").open("xb")
        self._writer = pa.ipc.new_stream(self._file, schema)
        self._schema = schema

    def _close_part(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._writer = self._file = self._schema = None

    def _save_head(self) -> None:
        partial = self.folder / (RUN_FILE + ".partial")
        partial.write_text(json.dumps(self._head, indent=1) + "\n")
        partial.replace(self.folder / RUN_FILE)


def _as_json(info: RunInfo) -> dict[str, Any]:
    head = asdict(info)
    del head["folder"], head["earlier"], head["steps_before"]
    return head


def _batches(samples: Sequence[Sample]) -> list[Any]:
    """One record batch per run of samples that share their keys: (T,) columns, and (T, W) as fixed-size lists."""
    groups: list[list[Sample]] = []
    for sample in samples:
        if groups and _keys(groups[-1][-1]) == _keys(sample):
            groups[-1].append(sample)
        else:
            groups.append([sample])
    return [_batch(group) for group in groups]


def _keys(sample: Sample) -> tuple[Any, ...]:
    return (tuple(sample.overview), tuple((family, len(row)) for family, row in sample.values.items()))


def _batch(samples: Sequence[Sample]) -> Any:
    import pyarrow as pa

    columns: dict[str, Any] = {
        "step": pa.array([sample.step for sample in samples], pa.int64()),
        "time": pa.array([sample.time for sample in samples], pa.float64()),
    }
    for key in samples[0].overview:
        columns[key] = pa.array([sample.overview[key] for sample in samples], pa.float64())
    for family in samples[0].values:
        table = np.stack([sample.values[family] for sample in samples])
        columns[family] = pa.FixedSizeListArray.from_arrays(pa.array(table.reshape(-1)), table.shape[1])
    return pa.record_batch(columns)
