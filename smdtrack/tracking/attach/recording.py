"""A tracker's record: its folder, the thread that writes it, and the summary made from it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from smdtrack.record.reader import read_run
from smdtrack.record.run import RunInfo
from smdtrack.record.summary import Summary, summarize
from smdtrack.sinks.protocol import Sink
from smdtrack.sinks.writer import Writer
from smdtrack.tracking.attach.resume import StartingPoint
from smdtrack.tracking.interpret.sample_builder import SampleBuilder
from smdtrack.tracking.interpret.step_values import step_values
from smdtrack.tracking.measure.measurement import Measurement
from smdtrack.tracking.measure.table import Reading

#: Seconds that a summary in mid-run waits for the writer's thread to write the samples that were submitted before.
_WAIT_FOR_SAMPLES = 10.0
#: Seconds that the end of a training waits for the trackers.
LONGEST_CLOSE = 120.0
_NOTHING_SAMPLED = "no step was sampled: the training took fewer optimizer steps than lie between two samples"


class Recording:
    """Writes what a tracker measures. The writer's thread starts with the first thing that is written.

    Args:
        info: The run.
        sinks: Where the samples go besides the local record.
    """

    def __init__(self, info: RunInfo, sinks: Sequence[Sink]) -> None:
        self._info = info
        self._sinks = sinks
        self._writer: Writer | None = None

    @property
    def info(self) -> RunInfo:
        """What is known of the run."""
        return self._info

    @property
    def folder(self) -> Path:
        """Folder of the local record."""
        return self._info.folder

    @property
    def last_step(self) -> int:
        """The last step that an earlier part of this record holds; 0 for a new record."""
        return self._info.earlier.last_step if self._info.earlier is not None else 0

    def begin_at(self, start: StartingPoint) -> None:
        """Notes how many steps were taken before tracking began; call it before anything is written."""
        params = dict(self._info.params)
        if start.checkpoint is not None:
            params["resumed_from"] = f"{start.checkpoint.folder.name}, step {start.checkpoint.step}"
        self._info = replace(self._info, params=params, steps_before=start.steps_before)

    def open(self) -> None:
        """Starts the writer's thread if it does not run yet."""
        if self._writer is None:
            self._writer = Writer(self._info, self._sinks, SampleBuilder(self._info.weights))

    def submit(self, measurement: Measurement) -> None:
        """Hands one sampled step to the writer's thread."""
        if self._writer is not None:
            self._writer.submit(measurement)

    def submit_checkpoint(self, step: int, reading: Reading) -> None:
        """Hands the weights' squared norms at a checkpoint to the writer's thread.

        Args:
            step: Optimizer steps taken when the checkpoint was made.
            reading: One row, the squared norm of each tracked weight.
        """
        self.open()
        if self._writer is not None:
            names = [weight.name for weight in self._info.weights]
            self._writer.submit_checkpoint(step, names, lambda: step_values(reading).weight_squared.tolist())

    def summary(self) -> Summary:
        """Returns measured against predicted per weight so far; of an ended run its final summary."""
        if self._writer is None:
            return Summary.empty(_NOTHING_SAMPLED)
        self._writer.flush(_WAIT_FOR_SAMPLES)
        return self._writer.summary or summarize(read_run(self.folder)) or Summary.empty(_NOTHING_SAMPLED)

    def hints(self) -> list[str]:
        """Returns the commands and addresses that show the run in its trackers."""
        return self._writer.how_to_open() if self._writer is not None else []

    @property
    def closing(self) -> bool:
        """Whether the writer's thread writes what is left, or has ended."""
        return self._writer is not None and self._writer.closing

    def close_after(self, seconds: float | None) -> None:
        """Lets the writer's thread end by itself after some seconds; None cancels that. Takes no lock."""
        if self._writer is not None:
            self._writer.close_after(seconds)

    def close(self, status: str, timeout: float = LONGEST_CLOSE) -> None:
        """Writes what is left, the summary and the status, and ends the writer's thread."""
        if self._writer is not None:
            self._writer.close(status, timeout)
