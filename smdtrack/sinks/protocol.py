"""What a sink is: a place besides the local record that takes a run's points."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from smdtrack.record.run import Point, RunInfo
from smdtrack.record.summary import Summary


class Sink(Protocol):
    """Takes a run's points.

    `note_script_run` runs on the training's thread. All other methods run on the writer's thread, or in the process of
    `smdtrack sync`, and may raise: the failure is reported once, and the call is repeated later with all points that
    are still missing. `start` and `finish` must therefore allow repetition, and `write` must send no point twice.
    """

    name: str

    def note_script_run(self) -> None:
        """Remembers the tracker run that the script has open. Called when tracking begins; must not wait."""

    def start(self, info: RunInfo) -> None:
        """Opens a run in the tracker, or joins the one that was remembered, and logs the parameters."""

    def write(self, points: Sequence[Point]) -> None:
        """Sends points, in the order of their steps. Points that the tracker has already are left out."""

    def finish(self, info: RunInfo, summary: Summary | None, status: str) -> None:
        """Logs the summary table. Ends the run if the sink opened it; `status` as in `Run`."""

    def destination(self) -> Mapping[str, Any]:
        """Returns what is needed to find the tracker's run again: ids and addresses, no secrets.

        The local record stores it. It is called before `start` too, and must not wait.
        """

    def complete_up_to(self) -> int | None:
        """Returns the step up to which the tracker has all points of a resumed run. Called after `start`.

        Later samples in the record are sent. None: no sample of the earlier part is sent.
        """

    def how_to_open(self) -> Sequence[str]:
        """Returns lines for people: the exact command or address that shows the run."""


@runtime_checkable
class RecordReadingSink(Sink, Protocol):
    """A sink that reads the local record itself, at a time of its own."""

    def use_flush(self, flush: Callable[[float], bool]) -> None:
        """Takes a function that waits, at most for some seconds, until all that was measured is in the local record."""
