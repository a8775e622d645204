"""A tracker's record: its folder, the thread that writes it, and the summary made from it."""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from smdtrack.record.reader import read_run
from smdtrack.record.run import Run, RunInfo, Sample
from smdtrack.record.summary import Summary, summarize
from smdtrack.sinks.protocol import Sink
from smdtrack.sinks.writer import FLUSH_SAMPLES, Writer
from smdtrack.tracking.attach.resume import StartingPoint
from smdtrack.tracking.interpret.sample_builder import SampleBuilder
from smdtrack.tracking.interpret.step_values import step_values
from smdtrack.tracking.measure.measurement import Measurement
from smdtrack.tracking.measure.table import Reading

#: Seconds that a summary in mid-run waits for the writer's thread to build the samples that were submitted before.
_WAIT_FOR_SAMPLES = 10.0
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
        self._builder = SampleBuilder(info.weights)
        # The samples that the writer may not yet have written to the record.
        self._latest: deque[Sample] = deque(maxlen=FLUSH_SAMPLES + 1)

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
            self._writer = Writer(self._info, self._sinks, self._build)

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
        if self._writer.summary is None:
            built = threading.Event()
            self._writer.submit(built)
            built.wait(_WAIT_FOR_SAMPLES)
        return self._writer.summary or summarize(self._run_so_far()) or Summary.empty(_NOTHING_SAMPLED)

    def hints(self) -> list[str]:
        """Returns the commands and addresses that show the run in its trackers."""
        return self._writer.how_to_open() if self._writer is not None else []

    def close(self, status: str) -> None:
        """Writes what is left, the summary and the status, and ends the writer's thread."""
        if self._writer is not None:
            self._writer.close(status)

    def _build(self, item: Any) -> Sample | None:
        """Makes a sample of a measurement, on the writer's thread; None for an item that is not one."""
        if isinstance(item, threading.Event):
            item.set()
            return None
        sample = self._builder(item)
        if sample is not None:
            self._latest.append(sample)
        return sample

    def _run_so_far(self) -> Run:
        """Returns the record with the samples that are not in it yet."""
        run = read_run(self.folder)
        last = int(run.steps[-1]) if len(run.steps) else 0
        new = [sample for sample in tuple(self._latest) if sample.step > last]
        if not new:
            return run
        width = len(self._info.weights)
        families = {*run.values, *(family for sample in new for family in sample.values)}
        overview = {*run.overview, *(key for sample in new for key in sample.overview)}
        absent = np.full(width, np.nan)
        return replace(
            run,
            steps=np.append(run.steps, [sample.step for sample in new]),
            times=np.append(run.times, [sample.time for sample in new]),
            values={
                family: np.vstack(
                    [
                        run.values.get(family, np.full((len(run.steps), width), np.nan)),
                        *(sample.values.get(family, absent) for sample in new),
                    ]
                )
                for family in families
            },
            overview={
                key: np.append(
                    run.overview.get(key, np.full(len(run.steps), np.nan)),
                    [sample.overview.get(key, np.nan) for sample in new],
                )
                for key in overview
            },
        )
