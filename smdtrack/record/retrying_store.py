"""A local store that tries again after a failure, for example when the disk was full for a while."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from smdtrack.notices import notify, one_line
from smdtrack.record.run import RunInfo, Sample
from smdtrack.record.store import LocalStore

#: Seconds between two attempts to write.
RETRY_SECONDS = 10.0
#: Samples that are kept in memory while the record cannot be written; with 60 weights and 9 families some 90 MB.
MAX_WAITING = 20_000


class RetryingStore:
    """Writes samples to the local record. What cannot be written waits in memory and is tried again.

    Only the first failure of a series is reported; `close` reports what could not be written at all.

    Args:
        info: The run.

    Raises:
        OSError: If the record cannot be begun.
    """

    def __init__(self, info: RunInfo) -> None:
        self._folder = info.folder
        self._store = LocalStore(info)
        self._waiting: list[Sample] = []
        self._dropped = 0
        self._failure: str | None = None
        self._retry_at = 0.0

    @property
    def complete(self) -> bool:
        """Whether every sample so far is in the record."""
        return not self._waiting and not self._dropped

    def append(self, samples: Sequence[Sample]) -> None:
        """Writes the samples, and before them those that wait. Raises nothing."""
        self._waiting.extend(samples)
        if len(self._waiting) > MAX_WAITING:
            self._dropped += len(self._waiting) - MAX_WAITING
            del self._waiting[:-MAX_WAITING]
        if time.monotonic() >= self._retry_at:
            self._write()

    def note_sink(self, name: str, destination: Mapping[str, Any]) -> None:
        """Stores what a sink needs to find its run again. Raises nothing."""
        try:
            self._store.note_sink(name, destination)
        except Exception as error:
            self._failed(error)

    def close(self, status: str, summary: Mapping[str, Any] | None) -> None:
        """Writes what waits, the status and the summary. Raises nothing."""
        self._write()
        missing = len(self._waiting) + self._dropped
        if missing:
            notify(f"{missing} samples could not be written to {self._folder}: {self._failure}")
        try:
            self._store.close(status, summary)
        except Exception as error:
            notify(f"the end of the run could not be written to {self._folder}: {one_line(error)}")

    def _write(self) -> None:
        if not self._waiting:
            return
        try:
            self._store.append(self._waiting)
        except Exception as error:
            self._failed(error)
        else:
            self._waiting.clear()
            self._failure = None

    def _failed(self, error: Exception) -> None:
        self._retry_at = time.monotonic() + RETRY_SECONDS
        if self._failure is None:
            notify(
                f"the local record in {self._folder} cannot be written ({one_line(error)}); it is tried again every"
                f" {RETRY_SECONDS:.0f} s, and trackers go on"
            )
        self._failure = one_line(error)
