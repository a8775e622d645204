"""The writer's thread: takes measurements from the training, writes the local record, then delivers to each sink."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from smdtrack.notices import notify, one_line
from smdtrack.record.checkpoints import append_checkpoint
from smdtrack.record.reader import read_run
from smdtrack.record.retrying_store import RetryingStore
from smdtrack.record.run import RunInfo, Sample
from smdtrack.record.summary import Summary, summarize
from smdtrack.sinks.protocol import RecordReadingSink, Sink
from smdtrack.sinks.sink_delivery import SinkDelivery

#: Items that may wait for the thread. The training never waits: what does not fit is dropped, counted and reported.
CAPACITY = 1000
#: The record is written after this many samples or seconds, whichever comes first: kill -9 costs at most so much.
FLUSH_SAMPLES = 50
FLUSH_SECONDS = 2.0
#: Seconds that the thread waits for an item before it looks whether it is time to write or to end.
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class _Checkpoint:
    step: int
    names: Sequence[str]
    squared_norms: Callable[[], Sequence[float]]


class Writer:
    """Makes samples of measurements and writes them, on a thread of its own.

    Args:
        info: The run.
        sinks: Where points go besides the local record.
        build_sample: Makes a `Sample` of a measurement, on the writer's thread; None for a step that is not recorded.

    Raises:
        OSError: If the local record cannot be begun.
    """

    def __init__(self, info: RunInfo, sinks: Sequence[Sink], build_sample: Callable[[Any], Sample | None]) -> None:
        self.info = info
        self.summary: Summary | None = None
        self.dropped = 0
        self._build_sample = build_sample
        self._record = RetryingStore(info)
        self._deliveries = [
            SinkDelivery(sink, info, self._record.note_sink) for sink in sinks if _notes_script_run(sink)
        ]
        self._queue: queue.Queue[Any] = queue.Queue(CAPACITY)
        self._closing = threading.Event()
        self._status = "finished"
        self._close_at: tuple[float, str] | None = None
        self._unwritten: list[Sample] = []
        self._reported_fault = False
        self._thread = threading.Thread(target=self._run, name="smdtrack-writer", daemon=True)
        for delivery in self._deliveries:
            if isinstance(delivery.sink, RecordReadingSink):
                delivery.sink.use_flush(self.flush)
        self._thread.start()

    @property
    def closing(self) -> bool:
        """Whether the thread writes what is left, or has ended."""
        return self._closing.is_set()

    def submit(self, measurement: Any) -> None:
        """Hands over a measurement without waiting. If the queue is full, it is dropped and counted."""
        self._put(measurement)

    def submit_checkpoint(self, step: int, names: Sequence[str], squared_norms: Callable[[], Sequence[float]]) -> None:
        """Hands over a checkpoint without waiting.

        Args:
            step: Optimizer steps taken when the checkpoint was made.
            names: The tracked weights' names.
            squared_norms: Returns the weights' squared norms. Called on the writer's thread; it may wait for a device.
        """
        self._put(_Checkpoint(step, names, squared_norms))

    def flush(self, timeout: float) -> bool:
        """Waits until everything that was submitted is in the local record; returns whether that was in time."""
        written = threading.Event()
        if self._closing.is_set():
            self._thread.join(timeout)
            return not self._thread.is_alive()
        self._put(written)
        return written.wait(timeout)

    def close_after(self, seconds: float | None, status: str = "finished") -> None:
        """Lets the thread end by itself after some seconds; None cancels that. Takes no lock and does not wait.

        It may be called from a garbage collection, at any point of any thread.
        """
        self._close_at = None if seconds is None else (time.monotonic() + seconds, status)

    def close(self, status: str, timeout: float = 120.0) -> None:
        """Writes what is left, the summary and the status; gives up on the sinks after `timeout` seconds."""
        if not self._closing.is_set():
            self._status = status
            self._closing.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            notify(f"a tracker did not answer for {timeout:.0f} s; all samples are in {self.info.folder}")
        for delivery in self._deliveries:
            if delivery.missing:
                notify(
                    f"{delivery.sink.name} did not get {delivery.missing} points; all samples are in"
                    f" {self.info.folder}: `smdtrack sync {self.info.folder}` sends the rest"
                )
        if self.dropped:
            notify(f"{self.dropped} samples were dropped because writing could not keep up: sample less often")

    def how_to_open(self) -> list[str]:
        """Returns the lines for people of those sinks that took the run."""
        return [line for delivery in self._deliveries if delivery.started for line in delivery.sink.how_to_open()]

    def _put(self, item: Any) -> None:
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self.dropped += 1

    def _run(self) -> None:
        written_at = time.monotonic()
        while not (self._closing.is_set() and self._queue.empty()):
            self._take_one()
            self._close_if_due()
            if len(self._unwritten) >= FLUSH_SAMPLES or time.monotonic() - written_at >= FLUSH_SECONDS:
                self._write()
                for delivery in self._deliveries:
                    delivery.deliver()
                written_at = time.monotonic()
        self._write()
        self._end()

    def _close_if_due(self) -> None:
        close_at = self._close_at
        if close_at is not None and time.monotonic() >= close_at[0] and not self._closing.is_set():
            self._status = close_at[1]
            self._closing.set()

    def _take_one(self) -> None:
        try:
            item = self._queue.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            return
        if isinstance(item, threading.Event):
            self._write()
            item.set()
        elif isinstance(item, _Checkpoint):
            self._note_checkpoint(item)
        else:
            self._add_sample(item)

    def _add_sample(self, measurement: Any) -> None:
        try:
            sample = self._build_sample(measurement)
        except Exception as error:
            if not self._reported_fault:
                self._reported_fault = True
                notify(f"a sample could not be computed ({one_line(error)}); such samples are left out")
            return
        if sample is not None:
            self._unwritten.append(sample)

    def _note_checkpoint(self, checkpoint: _Checkpoint) -> None:
        try:
            norms = dict(zip(checkpoint.names, checkpoint.squared_norms(), strict=True))
            append_checkpoint(self.info.folder, checkpoint.step, norms)
        except Exception as error:
            notify(
                f"the checkpoint at step {checkpoint.step} could not be noted ({one_line(error)}): a training that"
                " resumes from it will not be recognised"
            )

    def _write(self) -> None:
        samples, self._unwritten = self._unwritten, []
        self._record.append(samples)
        for delivery in self._deliveries:
            delivery.add(samples)

    def _end(self) -> None:
        try:
            self.summary = summarize(read_run(self.info.folder))
        except Exception as error:
            notify(f"the summary could not be computed ({one_line(error)}); the samples are in {self.info.folder}")
        self._record.close(self._status, self.summary.to_json() if self.summary else None)
        for delivery in self._deliveries:
            delivery.finish(self.summary, self._status)


def _notes_script_run(sink: Sink) -> bool:
    """Lets a sink look at the script's tracker run; returns False if it cannot. Runs on the training's thread."""
    try:
        sink.note_script_run()
    except Exception as error:
        notify(f"{sink.name} is left out: {one_line(error)}; training and the local record go on")
        return False
    return True
