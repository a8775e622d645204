"""A sink that keeps everything in memory, for tests and for use from Python."""

from collections.abc import Mapping, Sequence
from typing import Any

from smdtrack.record.run import Point, RunInfo
from smdtrack.record.summary import Summary


class MemorySink:
    """Keeps the points, the summary and the status of a run.

    Attributes:
        info: What was known of the run when it started; None before that.
        points: All points, in the order in which they were written.
        summary: The summary; None until the run has ended.
        status: As in `Run`; None until the run has ended.
    """

    name = "memory"

    def __init__(self) -> None:
        self.info: RunInfo | None = None
        self.points: list[Point] = []
        self.summary: Summary | None = None
        self.status: str | None = None

    def note_script_run(self) -> None:
        """Does nothing: there is no run of the script to remember."""

    def start(self, info: RunInfo) -> None:
        """Keeps what is known of the run."""
        self.info = info

    def write(self, points: Sequence[Point]) -> None:
        """Keeps the points."""
        self.points.extend(points)

    def finish(self, info: RunInfo, summary: Summary | None, status: str) -> None:
        """Keeps the summary and the status."""
        self.summary, self.status = summary, status

    def destination(self) -> Mapping[str, Any]:
        """Returns nothing: the points are only in this object."""
        return {}

    def complete_up_to(self) -> int | None:
        """Returns None: it has no points of an earlier part of a run."""
        return None

    def how_to_open(self) -> Sequence[str]:
        """Returns nothing: there is nothing to open."""
        return ()

    def series(self, key: str) -> list[tuple[int, float]]:
        """Returns (step, value) of one key."""
        return [(point.step, point.value) for point in self.points if point.key == key]
