"""Writes the local record: one folder per run, which can be read at any moment, also after kill -9."""

import os
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from smdtrack.notices import SmdtrackError
from smdtrack.record.head import RUN_FILE, SCHEMA_VERSION, Head, read_head, write_head
from smdtrack.record.process import process_identity
from smdtrack.record.reader import read_run
from smdtrack.record.run import RunInfo, Sample
from smdtrack.record.sample_files import batch_of, column_widths, next_sample_file, schema_of

__all__ = ["DEFAULT_FOLDER", "RUN_FILE", "SCHEMA_VERSION", "LocalStore", "new_run_folder"]

DEFAULT_FOLDER = "smdtrack-runs"
#: A sample file is new; an existing one is never overwritten.
FILE_MODE = "xb"


def new_run_folder(parent: Path, name: str) -> tuple[str, Path]:
    """Makes the folder of a new run and returns the run's id and the folder.

    Raises:
        SmdtrackError: If the folder cannot be made or written to.
    """
    run_id = uuid.uuid4().hex[:8]
    folder = parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}-{run_id}"
    try:
        folder.mkdir(parents=True)
        trial_file = folder / ".writable"
        trial_file.touch()
        trial_file.unlink()
    except OSError as error:
        raise SmdtrackError(
            f"cannot write the local record in {parent} ({error.strerror}): choose another folder"
        ) from error
    return run_id, folder


class LocalStore:
    """Appends samples to a run's folder.

    `run.json` holds what is known of the run and, at the end, its status and summary. Each `samples-NNN.arrows` is an
    Arrow IPC stream, one batch per `append`, so that whenever the process ends, at most the last batch is incomplete. A
    new file begins with each `LocalStore`, with a key that the present file has no column for, and after a failure.

    Args:
        info: The run. If its folder holds a record already, the record is continued.

    Raises:
        OSError: If the folder cannot be written.
    """

    def __init__(self, info: RunInfo) -> None:
        self.folder = info.folder
        self._file: Any = None
        self._stream: Any = None
        self._widths: dict[str, int | None] = {}
        continued = (self.folder / RUN_FILE).exists()
        sinks = read_head(self.folder).sinks if continued else {}
        self._samples = len(read_run(self.folder).steps) if continued else 0
        self._head = Head(info, "running", sinks=dict(sinks), process=process_identity())
        write_head(self._head)

    def append(self, samples: Sequence[Sample]) -> None:
        """Writes the samples as one record batch and hands it to the operating system.

        Raises:
            OSError: If they cannot be written. What was written of them is taken back, so that they can be appended
                again later.
        """
        if not samples:
            return
        widths = column_widths(samples)
        if self._stream is None or any(key not in self._widths or self._widths[key] != widths[key] for key in widths):
            self._close_file()
            self._widths = {**self._widths, **widths}
            self._open_file()
        whole = self._file.tell()
        try:
            self._stream.write_batch(batch_of(samples, self._widths))
        except Exception:
            self._take_back(whole)
            raise
        self._samples += len(samples)

    def note_sink(self, name: str, place: Mapping[str, Any]) -> None:
        """Stores what a sink needs to find its run again."""
        self._head = replace(self._head, sinks={**self._head.sinks, name: dict(place)})
        write_head(self._head)

    def close(self, status: str, summary: Mapping[str, Any] | None) -> None:
        """Ends the file and stores how the run ended."""
        self._close_file()
        self._head = replace(self._head, status=status, ended=time.time(), summary=summary, samples=self._samples)
        write_head(self._head)

    def _open_file(self) -> None:
        path = next_sample_file(self.folder)
        # Unbuffered: a buffer that could not be written would be written again when the file is closed.
        self._file = path.open(FILE_MODE, buffering=0)
        try:
            self._stream = pa.ipc.new_stream(self._file, schema_of(self._widths))
        except Exception:
            self._take_back(0)
            raise

    def _close_file(self) -> None:
        if self._stream is not None:
            self._stream.close()
            os.fsync(self._file.fileno())
            self._file.close()
            self._stream = self._file = None

    def _take_back(self, length: int) -> None:
        """Cuts the file to its whole batches and leaves it; the next `append` begins another one."""
        file, self._file, self._stream = self._file, None, None
        with suppress(OSError):  # the reader leaves out an incomplete batch, should it stay
            os.ftruncate(file.fileno(), length)
        file.close()


def close_killed(head: Head, ended: float | None, samples: int, summary: Mapping[str, Any] | None) -> Head:
    """Stores that a run's process was killed, with the summary that the process could not write. Returns the new head.

    Args:
        head: Of the record, whose status is `running`.
        ended: Time of the last sample in seconds since the epoch; None if there is no sample.
        samples: Number of samples.
        summary: The summary of the samples; None if there is no sample.
    """
    closed = replace(head, status="killed", ended=ended, samples=samples, summary=summary, schema=SCHEMA_VERSION)
    write_head(closed)
    return closed
