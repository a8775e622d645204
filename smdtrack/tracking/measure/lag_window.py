"""The angle over several steps."""

import weakref
from collections.abc import Mapping

from torch import Tensor

from smdtrack.notices import SmdtrackError
from smdtrack.tracking.measure.measurement import LagReading
from smdtrack.tracking.measure.probe import Probe, Reduce
from smdtrack.tracking.measure.sharding import local


class LagWindow:
    """Measures the change of weights over a window of K steps, again and again.

    A window begins with a sampled step. The next one begins with the first sampled step after its end, so that one
    copy of the weights is enough.

    Args:
        steps: K.
        width: Number of tracked weights.
    """

    def __init__(self, steps: int, width: int) -> None:
        self.steps = steps
        self._probe = Probe(width)
        self._weights: dict[int, weakref.ref[Tensor]] = {}
        self._began_at: int | None = None
        self._ends_at: int | None = None
        self._reading: LagReading | None = None

    def open(self, step: int) -> None:
        """Opens a window before a sampled step, unless one is open. This reads no weights, so that it cannot fail."""
        if self._ends_at is None:
            self._began_at, self._ends_at = step, step + self.steps - 1

    def begin(self, step: int, weights: Mapping[int, Tensor]) -> None:
        """Copies the weights if a window was opened at this step.

        Args:
            step: The sampled step that is about to be taken.
            weights: By column, whole or sharded. The same tensors are read again at the window's end.
        """
        if step == self._began_at:
            self._weights = {column: weakref.ref(weight) for column, weight in weights.items()}
            self._probe.begin({column: local(weight) for column, weight in weights.items()})

    def ends(self, step: int) -> bool:
        """Returns whether the open window ends with this step."""
        return step == self._ends_at

    def end(self, step: int, reduce: Reduce | None) -> None:
        """Measures the change over the window, if it ends with this step."""
        if self.ends(step):
            self._ends_at = None
            alive = ((column, reference()) for column, reference in self._weights.items())
            now = {column: local(weight) for column, weight in alive if weight is not None}
            if len(now) < len(self._weights):
                raise SmdtrackError("the model has been freed")
            self._reading = LagReading(step - self.steps + 1, step, self._probe.end(now, reduce=reduce))

    def skip(self, step: int) -> None:
        """Closes the window without measuring, if it ends with this step."""
        if self.ends(step):
            self._ends_at = None

    def take(self) -> LagReading | None:
        """Returns the reading of a window that has ended since the last call."""
        reading, self._reading = self._reading, None
        return reading

    def release(self) -> None:
        """Frees the copy of the weights."""
        self._probe.release()
        self._weights = {}
