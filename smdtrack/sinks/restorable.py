"""Sinks that can be used again in another process, to deliver what a stored record has and the tracker has not."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from smdtrack.record.run import Point, RunInfo
from smdtrack.sinks.protocol import Sink


@runtime_checkable
class RestorableSink(Sink, Protocol):
    """A sink that `smdtrack sync` can deliver to.

    In the process of `smdtrack sync`, `restore` is called instead of `note_script_run`, then `find`; then, if this is
    not a dry run, `start`, `write` and `finish`.
    """

    def restore(self, destination: Mapping[str, Any]) -> None:
        """Takes over what `Sink.destination` returned in the training's process; empty if nothing was stored."""

    def find(self, info: RunInfo) -> bool:
        """Looks for the tracker's run without changing anything; returns whether there is one."""

    def unsent(self, points: Sequence[Point]) -> list[Point]:
        """Returns those of the points that the tracker has not got, as far as `find` has seen."""
