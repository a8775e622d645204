"""The options of a tracker: what is sampled and where the samples go."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smdtrack.notices import SmdtrackError
from smdtrack.record.store import DEFAULT_FOLDER
from smdtrack.sinks import check_sink_names
from smdtrack.sinks.protocol import Sink
from smdtrack.tracking.attach.sampling_schedule import EverySteps, Schedule


@dataclass(frozen=True)
class Options:
    """The options of `watch`, which describes each of them, and of `smdtrack run`.

    Raises:
        SmdtrackError: If a number is out of range or a sink is unknown.
    """

    every: int | Schedule = 5
    first_steps: int = 0
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    lags: Sequence[int] = ()
    sinks: Sequence[str | Sink] | None = None
    folder: str | Path = DEFAULT_FOLDER
    name: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    resume_run: str | Path | None = None

    def __post_init__(self) -> None:
        self.schedule()
        for option in ("include", "exclude", "lags", "sinks"):
            if isinstance(getattr(self, option), str):
                raise SmdtrackError(f"{option}={getattr(self, option)!r}: a list is needed, not one string")
        for lag in self.lags:
            if not isinstance(lag, int) or lag < 2:
                raise SmdtrackError(
                    f"lags: {lag!r} is not a lag; whole numbers of optimizer steps are needed, 2 or more"
                )
        check_sink_names(self.sinks or ())
        for sink in self.sinks or ():
            if not isinstance(sink, str) and not all(hasattr(sink, method) for method in ("start", "write", "finish")):
                raise SmdtrackError(f"sinks: <{type(sink).__name__}> is not a sink: it lacks methods of smdtrack.Sink")
        if self.name is not None and (not isinstance(self.name, str) or Path(self.name).name != self.name):
            raise SmdtrackError(f"name={self.name!r}: a name without {os.sep!r} is needed, for the record's folder")
        for key, value in self.params.items():
            if not isinstance(key, str) or not isinstance(value, (str, int, float, bool, Path)):
                raise SmdtrackError(
                    f"params: {key!r} is a <{type(value).__name__}>; texts, numbers and booleans can be logged"
                )

    def schedule(self, cycle: int = 1) -> Schedule:
        """Returns the sampling schedule.

        Args:
            cycle: Number of steps after which the optimizer repeats itself.
        """
        if isinstance(self.every, int):
            return EverySteps(self.every, self.first_steps, cycle)
        if not callable(self.every):
            raise SmdtrackError(f"every={self.every!r}: a whole number of steps or a callable step -> bool is needed")
        return self.every
