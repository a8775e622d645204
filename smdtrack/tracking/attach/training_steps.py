"""Counts the steps of a training that may have several optimizers, and collects what is measured of each step."""

from smdtrack.tracking.attach.recording import Recording
from smdtrack.tracking.attach.sampling_schedule import Schedule
from smdtrack.tracking.measure.measurement import Measurement, merged


class TrainingSteps:
    """The step count of a training, the same for all of its optimizers.

    A step of the training ends when every optimizer has made a step, or when one makes its next. Optimizers for the
    same weights, which take turns, share a member: each of their steps is one of the training.

    Args:
        schedule: Which steps are sampled.
        recording: Where the measurements go; None in a process that does not record.
    """

    def __init__(self, schedule: Schedule, recording: Recording | None) -> None:
        self.step: int | None = None
        self.members = 0
        self._schedule = schedule
        self._recording = recording
        self._stepped: set[int] = set()
        self._measured: list[Measurement] = []
        self._asked: tuple[int, bool] | None = None

    def join(self) -> int:
        """Adds an optimizer and returns its number."""
        self.members += 1
        return self.members - 1

    def begin(self, member: int) -> int:
        """Counts a step of an optimizer; call it before the step, once `step` is set. Returns the training's step."""
        if self.step is None:
            self.step = 0
        if not self._stepped or member in self._stepped:
            self.submit_rest()
            self.step += 1
            self._stepped = set()
        self._stepped.add(member)
        return self.step

    def end(self, measurement: Measurement | None) -> None:
        """Takes what was measured of an optimizer's step; hands the training's step to the record when it is complete.

        Raises:
            Exception: If the record cannot take it.
        """
        if measurement is not None:
            self._measured.append(measurement)
        if len(self._stepped) >= self.members:
            self.submit_rest()
            self._stepped = set()

    def submit_rest(self) -> None:
        """Hands what was measured of the present step to the record."""
        measured, self._measured = self._measured, []
        if measured and self._recording is not None:
            self._recording.submit(merged(measured))

    def is_sampled(self, step: int) -> bool:
        """Returns whether a step is sampled. Asks the schedule, which may be the user's own, once per step.

        Raises:
            Exception: If the user's schedule raises.
        """
        if self._asked is None or self._asked[0] != step:
            self._asked = (step, bool(self._schedule(step)))
        return self._asked[1]
