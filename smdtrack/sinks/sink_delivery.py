"""The delivery of a run's points to one sink: what it has got, what is missing, and when it is tried again."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from smdtrack.notices import notify, one_line
from smdtrack.record.reader import read_run
from smdtrack.record.run import Point, RunInfo, Sample, points, samples_between
from smdtrack.record.summary import Summary
from smdtrack.sinks.protocol import Sink
from smdtrack.sinks.thinning import ReferenceThinner

#: Seconds after a failure before the sink is tried again.
RETRY_SECONDS = 10.0
#: Points that wait in memory for a sink, some 100 MB. The local record has them all.
MAX_WAITING = 500_000
#: Points per call of `Sink.write`, so that a call takes about a second.
POINTS_PER_WRITE = 5000
#: Longest time in seconds that one delivery may take during training: the local record is written after it.
DELIVERY_SECONDS = 5.0

NoteDestination = Callable[[str, Mapping[str, Any]], None]


class SinkDelivery:
    """Delivers a run's points to one sink. No method raises; a failure is reported once and tried again later.

    Args:
        sink: Where the points go.
        info: The run.
        note_destination: Stores the sink's name and destination in the local record.
    """

    def __init__(self, sink: Sink, info: RunInfo, note_destination: NoteDestination) -> None:
        self.sink = sink
        self.started = False
        self._info = info
        self._note_destination = note_destination
        self._thinner = ReferenceThinner()
        self._waiting: list[Point] = []
        self._dropped = 0
        self._failed_before = False
        self._retry_at = 0.0
        try:
            self._store_destination()  # for `smdtrack sync`, should the tracker never be reached
        except Exception as error:
            self._report(error)

    @property
    def missing(self) -> int:
        """Number of points that the sink has not got."""
        return len(self._waiting) + self._dropped

    def add(self, samples: Sequence[Sample]) -> None:
        """Adds the samples' points to those that the sink is to get."""
        for sample in samples:
            self._add(self._thinner.thin(points(sample, self._info.weights)))

    def deliver(self, seconds: float = DELIVERY_SECONDS) -> None:
        """Sends the points that wait, for at most about this many seconds; after a failure, only when it is time."""
        if time.monotonic() >= self._retry_at:
            self._try(seconds)

    def finish(self, summary: Summary | None, status: str) -> None:
        """Sends the rest and ends the sink's run."""
        self._add(self._thinner.last_points())
        self._try(math.inf)
        if not self.started:
            return
        try:
            self.sink.finish(self._info, summary, status)
            self._store_destination()  # again: the script may have opened its tracker's run only after `start`
        except Exception as error:
            if not self._failed_before:
                notify(f"{self.sink.name} could not end its run: {one_line(error)}")

    def _add(self, new: Iterable[Point]) -> None:
        self._waiting.extend(new)
        if len(self._waiting) > MAX_WAITING:
            self._dropped += len(self._waiting) - MAX_WAITING
            del self._waiting[:-MAX_WAITING]

    def _try(self, seconds: float) -> None:
        try:
            if not self.started:
                self.sink.start(self._info)
                self._waiting[:0] = self._points_of_the_earlier_part()
                self.started = True
                self._store_destination()
            self._send(seconds)
            self._failed_before = False
        except Exception as error:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self._report(error)

    def _store_destination(self) -> None:
        destination = self.sink.destination()
        if destination:
            self._note_destination(self.sink.name, destination)

    def _report(self, error: Exception) -> None:
        if not self._failed_before:
            self._failed_before = True
            notify(
                f"{self.sink.name}: {one_line(error)}; training and the local record go on, it is tried again"
                f" every {RETRY_SECONDS:.0f} s"
            )

    def _send(self, seconds: float) -> None:
        """Sends points in calls that hold whole steps."""
        until = time.monotonic() + seconds
        while self._waiting and time.monotonic() < until:
            end = end_of_write(self._waiting)
            self.sink.write(self._waiting[:end])
            del self._waiting[:end]

    def _points_of_the_earlier_part(self) -> list[Point]:
        """Returns what the record of a resumed run has and the sink has not, as after a training that was killed."""
        earlier = self._info.earlier
        complete_up_to = self.sink.complete_up_to() if earlier is not None else None
        if complete_up_to is None or earlier is None:
            return []
        samples = samples_between(read_run(self._info.folder), complete_up_to, earlier.last_step)
        return points_to_send(samples, self._info)[-MAX_WAITING:]


def points_to_send(samples: Iterable[Sample], info: RunInfo) -> list[Point]:
    """Returns the points of an ended part of a run in the order of their steps; reference lines are thinned out."""
    thinner = ReferenceThinner()
    sent = [point for sample in samples for point in thinner.thin(points(sample, info.weights))]
    return sorted([*sent, *thinner.last_points()], key=lambda point: point.step)


def end_of_write(waiting: Sequence[Point]) -> int:
    """Returns how many of the first points go into one call: about `POINTS_PER_WRITE`, up to the end of a step."""
    end = min(POINTS_PER_WRITE, len(waiting))
    while end < len(waiting) and waiting[end].step == waiting[end - 1].step:
        end += 1
    return end
