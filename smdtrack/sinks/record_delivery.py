"""Delivers a stored record to its trackers: what they lack, once per key and step, in the order of the steps."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from smdtrack.notices import SmdtrackError, one_line
from smdtrack.record.delivery_lock import delivery_lock
from smdtrack.record.head import Head, read_head, write_head
from smdtrack.record.process import is_alive
from smdtrack.record.reader import read_run
from smdtrack.record.run import Point, Run, points, samples_between
from smdtrack.record.store import close_killed
from smdtrack.record.summary import summarize
from smdtrack.sinks.errors import PermanentSinkError
from smdtrack.sinks.restorable import RestorableSink
from smdtrack.sinks.sink_delivery import POINTS_PER_WRITE
from smdtrack.sinks.thinning import ReferenceThinner

#: Seconds between the attempts of one call, after a failure that may pass.
RETRY_PAUSES = (1.0, 2.0, 4.0)
#: A record without a known process counts as killed after so many seconds without a write.
SILENT_SECONDS = 600.0

Result = TypeVar("Result")
MakeSink = Callable[[str], RestorableSink | None]


@dataclass(frozen=True)
class Delivered:
    """What was done for one tracker.

    Attributes:
        sink: The tracker's name.
        sent: Number of points that were sent, or that would be sent in a dry run.
        problem: Why not everything was sent, in one line; None if all is there.
        how_to_open: Lines for people that show the run in the tracker.
    """

    sink: str
    sent: int = 0
    problem: str | None = None
    how_to_open: Sequence[str] = ()


def deliver_record(
    folder: Path,
    make_sink: MakeSink,
    sinks: Sequence[str] = (),
    dry_run: bool = False,
    report: Callable[[str, int], None] = lambda name, sent: None,
) -> list[Delivered]:
    """Sends each tracker of a record what it has not got: points, parameters, view, verdict, table and status.

    A run whose process was killed is closed first: its record gets a summary and the status `killed`. A second call
    finds nothing to send.

    Args:
        folder: The record's folder.
        make_sink: Returns a new sink of a name; None if sinks of this name cannot be delivered to afterwards.
        sinks: Names of the trackers; by default those that the record names.
        dry_run: Only counts, changes nothing.
        report: Called with the sink's name and the number of points sent so far.

    Raises:
        SmdtrackError: If the folder is no record, its training still runs, or another process delivers it.
    """
    with delivery_lock(folder):
        head = read_head(folder)
        run = read_run(folder)
        if head.status == "running":
            _check_that_it_ended(head, folder)
            head, run = _closed(head, run, dry_run)
        delivered = []
        for name in sinks or list(head.sinks):
            sink = make_sink(name)
            if sink is None:
                delivered.append(Delivered(name, problem="it cannot be delivered to after the training"))
                continue
            delivered.append(_deliver(sink, head, run, dry_run, report))
        return delivered


def _check_that_it_ended(head: Head, folder: Path) -> None:
    alive = is_alive(head.process)
    if alive is None:
        silent = time.time() - max(path.stat().st_mtime for path in folder.iterdir() if path.name != "delivery.lock")
        alive = silent < SILENT_SECONDS
    if alive:
        process = f" (process {head.process['pid']})" if "pid" in head.process else ""
        raise SmdtrackError(f"{folder}: its training still runs{process} and delivers by itself; sync it afterwards")


def _closed(head: Head, run: Run, dry_run: bool) -> tuple[Head, Run]:
    summary = summarize(run)
    stored = summary.to_json() if summary is not None else None
    ended = float(run.times[-1]) if len(run.times) else None
    if not dry_run:
        head = close_killed(head, ended, len(run.steps), stored)
    return head, replace(run, status="killed", summary=stored)


def _deliver(
    sink: RestorableSink, head: Head, run: Run, dry_run: bool, report: Callable[[str, int], None]
) -> Delivered:
    sent = 0
    try:
        sink.restore(head.sinks.get(sink.name, {}))
        _with_retries(lambda: sink.find(run.info))
        if not dry_run:
            _with_retries(lambda: sink.start(run.info))
            _note(sink, run)
        for chunk in _chunks(run):
            unsent = sink.unsent(chunk)
            if not unsent:
                continue
            if not dry_run:
                _write(sink, chunk, run)
            sent += len(unsent)
            report(sink.name, sent)
        if not dry_run:
            _with_retries(lambda: sink.finish(run.info, summarize(run), run.status))
            _note(sink, run)
    except Exception as error:
        return Delivered(sink.name, sent, one_line(error))
    return Delivered(sink.name, sent, how_to_open=() if dry_run else tuple(sink.how_to_open()))


def _write(sink: RestorableSink, chunk: Sequence[Point], run: Run) -> None:
    def write_again() -> None:
        sink.find(run.info)  # what arrived of the call that failed must not be sent again
        sink.write(chunk)

    try:
        sink.write(chunk)
    except PermanentSinkError:
        raise
    except Exception:
        time.sleep(RETRY_PAUSES[0])
        _with_retries(write_again)


def _note(sink: RestorableSink, run: Run) -> None:
    head = read_head(run.info.folder)
    destinations: dict[str, Mapping[str, Any]] = {**head.sinks, sink.name: dict(sink.destination())}
    write_head(replace(head, sinks=destinations))


def _with_retries(call: Callable[[], Result]) -> Result:
    for pause in RETRY_PAUSES:
        try:
            return call()
        except PermanentSinkError:
            raise
        except Exception:
            time.sleep(pause)
    return call()


def _chunks(run: Run) -> Iterator[list[Point]]:
    """Yields the points of a run in lists of whole samples; reference lines are thinned out as during training."""
    thinner = ReferenceThinner()
    chunk: list[Point] = []
    for sample in samples_between(run, after=-1):
        chunk.extend(thinner.thin(points(sample, run.info.weights)))
        if len(chunk) >= POINTS_PER_WRITE:
            yield chunk
            chunk = []
    yield [*chunk, *thinner.last_points()]
