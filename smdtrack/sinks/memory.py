"""A sink that keeps everything in memory: for tests, and to look at a run from Python."""

from collections.abc import Mapping, Sequence
from typing import Any

from smdtrack.record.run import Point, RunInfo
from smdtrack.record.summary import Summary


class MemorySink:
    """Keeps points, summary and status.

    Attributes:
        points: All points in the order of their arrival.
    """

    name = "memory"

    def __init__(self) -> None:
        self.info: RunInfo | None = None
        self.points: list[Point] = []
        self.summary: Summary | None = None
        self.status: str | None = None

    def note_script_run(self) -> None:
        """Nothing to remember."""

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
        """Nowhere but here."""
        return {}

    def complete_up_to(self) -> int | None:
        """Knows nothing of the past."""
        return None

    def how_to_open(self) -> Sequence[str]:
        """Nothing to open."""
        return ()

    def series(self, key: str) -> list[tuple[int, float]]:
        """Returns (step, value) of one key."""
        return [(point.step, point.value) for point in self.points if point.key == key]
