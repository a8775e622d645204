"""The one thread that writes: the local record first, then each sink, none of them able to harm another."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from smdtrack.notices import notify, one_line
from smdtrack.record.reader import read_run
from smdtrack.record.run import Point, RunInfo, Sample, points, samples_between
from smdtrack.record.store import LocalStore
from smdtrack.record.summary import Summary, summarize
from smdtrack.sinks.protocol import Sink
from smdtrack.sinks.thinning import ReferenceThinner

#: Samples that may wait for the writer; the probe never blocks, so what does not fit is dropped, counted and said.
CAPACITY = 1000
#: A flush at the latest after so many samples or seconds: what kill -9 can take.
FLUSH_SAMPLES = 50
FLUSH_SECONDS = 2.0
_RETRY_SECONDS = 10.0
_OWED_POINTS = 500_000
#: What a tracker gets in one call, and how long it may take at a time while training goes on.
_POINTS_PER_WRITE = 5000
_DELIVERY_SECONDS = 5.0


@dataclass
class _Feed:
    """What one sink has got and is still owed."""

    sink: Sink
    thinner: ReferenceThinner = field(default_factory=ReferenceThinner)
    owed: list[Point] = field(default_factory=list)
    lost: int = 0
    started: bool = False
    failing: bool = False
    retry_at: float = 0.0


class Writer:
    """Turns measurements into samples and writes them, on a thread of its own.

    Args:
        info: The run.
        sinks: Where points go besides the local record.
        assemble: Makes a `Sample` of a submitted item, on the writer thread; None for an item that was no step.
    """

    def __init__(self, info: RunInfo, sinks: Sequence[Sink], assemble: Callable[[Any], Sample | None]) -> None:
        self.info = info
        self.summary: Summary | None = None
        self.dropped = 0
        self._assemble = assemble
        self._store: LocalStore | None = LocalStore(info)
        self._feeds = [_Feed(sink) for sink in sinks if _bound(sink)]
        self._queue: queue.Queue[Any] = queue.Queue(CAPACITY)
        self._stop = threading.Event()
        self._status = "finished"
        self._unwritten: list[Sample] = []
        self._assembly_failed = False
        self._thread = threading.Thread(target=self._work, name="smdtrack-writer", daemon=True)
        self._thread.start()

    def submit(self, item: Any) -> None:
        """Hands over an item without ever waiting; what does not fit into the queue is dropped and counted."""
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self.dropped += 1

    def close(self, status: str, timeout: float = 120.0) -> None:
        """Writes what is left, the summary and the status; gives up on the sinks after `timeout` seconds."""
        self._status = status
        self._stop.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            notify(f"a tracker did not answer for {timeout:.0f} s; all samples are in {self.info.folder}")
        for feed in self._feeds:
            missing = len(feed.owed) + feed.lost
            if missing:
                notify(f"{feed.sink.name} did not get {missing} points; all samples are in {self.info.folder}")
        if self.dropped:
            notify(f"{self.dropped} samples were dropped, writing could not keep up: sample less often (--every)")

    def hints(self) -> list[str]:
        """Returns the sinks' lines for people, of those that took the run."""
        return [line for feed in self._feeds if feed.started for line in feed.sink.hints()]

    def _work(self) -> None:
        flushed = time.monotonic()
        while not (self._stop.is_set() and self._queue.empty()):
            self._take_one()
            now = time.monotonic()
            if len(self._unwritten) >= FLUSH_SAMPLES or now - flushed >= FLUSH_SECONDS:
                self._flush()
                flushed = now
        self._flush()
        self._finish()

    def _take_one(self) -> None:
        try:
            item = self._queue.get(timeout=0.1)
        except queue.Empty:
            return
        try:
            sample = self._assemble(item)
        except Exception as error:
            if not self._assembly_failed:
                self._assembly_failed = True
                notify(f"a sample could not be put together ({one_line(error)}); such samples are left out")
            return
        if sample is not None:
            self._unwritten.append(sample)

    def _flush(self) -> None:
        samples, self._unwritten = self._unwritten, []
        if samples and self._store is not None:
            try:
                self._store.append(samples)
            except Exception as error:
                self._give_up_the_record(error)
        for feed in self._feeds:
            for sample in samples:
                self._owe(feed, feed.thinner.thin(points(sample, self.info.weights)))
            self._deliver(feed)

    def _note(self, sink: Sink) -> None:
        where = sink.where()
        if self._store is None:
            return
        try:
            self._store.note_sink(sink.name, where)
        except Exception as error:
            self._give_up_the_record(error)

    def _give_up_the_record(self, error: Exception) -> None:
        self._store = None
        notify(f"the local record in {self.info.folder} stopped ({one_line(error)}); trackers go on")

    def _owe(self, feed: _Feed, new: Any) -> None:
        feed.owed.extend(new)
        if len(feed.owed) > _OWED_POINTS:
            feed.lost += len(feed.owed) - _OWED_POINTS
            del feed.owed[:-_OWED_POINTS]

    def _deliver(self, feed: _Feed, last_try: bool = False) -> None:
        if time.monotonic() < feed.retry_at and not last_try:
            return
        try:
            if not feed.started:
                feed.sink.start(self.info)
                feed.owed[:0] = self._owed_of_the_past(feed.sink)
                feed.started = True
                self._note(feed.sink)
            self._send(feed, np.inf if last_try else _DELIVERY_SECONDS)
            feed.failing = False
        except Exception as error:
            self._failed(feed, error)

    def _send(self, feed: _Feed, seconds: float) -> None:
        """Sends what is owed, steps whole; after so many seconds the rest waits, for the local record must go on."""
        until = time.monotonic() + seconds
        while feed.owed and time.monotonic() < until:
            end = min(_POINTS_PER_WRITE, len(feed.owed))
            while end < len(feed.owed) and feed.owed[end].step == feed.owed[end - 1].step:
                end += 1
            feed.sink.write(feed.owed[:end])
            del feed.owed[:end]

    def _owed_of_the_past(self, sink: Sink) -> list[Point]:
        """What the record of a run that goes on has, and the sink has not: killed in mid-run, it owes the last ones."""
        reached = getattr(sink, "reached", lambda: None)() if self.info.earlier is not None else None
        if reached is None or self.info.earlier is None:
            return []
        thinner = ReferenceThinner()
        past = samples_between(read_run(self.info.folder), reached, self.info.earlier.last_step)
        owed = [point for sample in past for point in thinner.thin(points(sample, self.info.weights))]
        return sorted([*owed, *thinner.last_points()], key=lambda point: point.step)[-_OWED_POINTS:]

    def _failed(self, feed: _Feed, error: Exception) -> None:
        feed.retry_at = time.monotonic() + _RETRY_SECONDS
        if not feed.failing:
            feed.failing = True
            notify(f"{feed.sink.name}: {one_line(error)}; training and the local record go on, it is tried again")

    def _finish(self) -> None:
        stored = self._store is not None
        try:
            self.summary = summarize(read_run(self.info.folder)) if stored else None
        except Exception as error:
            notify(f"the summary could not be made ({one_line(error)}); the samples are in {self.info.folder}")
        if self._store is not None:
            try:
                self._store.close(self._status, self.summary.to_json() if self.summary else None)
            except Exception as error:
                self._give_up_the_record(error)
        for feed in self._feeds:
            self._owe(feed, feed.thinner.last_points())
            self._deliver(feed, last_try=True)
            if feed.started:
                try:
                    feed.sink.finish(self.info, self.summary, self._status)
                    self._note(feed.sink)  # a script's run may have appeared only since the sink was started
                except Exception as error:
                    if not feed.failing:  # that it fails has been said
                        notify(f"{feed.sink.name} could not end its run: {one_line(error)}")


def _bound(sink: Sink) -> bool:
    """Lets a sink look at the training thread, on which the writer is made."""
    try:
        sink.bind()
    except Exception as error:
        notify(f"{sink.name} is left out: {one_line(error)}; training and the local record go on")
        return False
    return True
