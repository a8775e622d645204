"""What a sink is: a place that takes a run's points."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from smdtrack.record.run import Point, RunInfo
from smdtrack.record.summary import Summary


class Sink(Protocol):
    """Takes a run's points; every method but `bind` runs on the writer thread and may raise.

    A call that raises is reported once and tried again later with all points that are still owed, so `start` and
    `finish` must bear to be called again after a failure, and `write` must send nothing twice by its own doing.
    """

    name: str

    def bind(self) -> None:
        """Called on the training thread when tracking begins: remember a tracker run that the script has open."""

    def start(self, info: RunInfo) -> None:
        """Opens or attaches to a run; logs its parameters."""

    def write(self, points: Sequence[Point]) -> None:
        """Sends points, in order of their steps."""

    def finish(self, info: RunInfo, summary: Summary | None, status: str) -> None:
        """Logs the summary table and, if the sink opened its run itself, ends it; `status` as in `Run`."""

    def where(self) -> Mapping[str, Any]:
        """Returns what later commands need to find the run again (ids, addresses), for the local record."""

    def reached(self) -> int | None:
        """Returns, once started, the step up to which the tracker has all points of a run that goes on.

        What the local record has beyond it is sent. None, or no such method: nothing of the past is sent.
        """

    def hints(self) -> Sequence[str]:
        """Returns lines for people: the exact command and address that show the run."""
