"""The angle over several steps."""

from collections.abc import Mapping

from torch import Tensor

from smdtrack.tracking.measure.probe import Probe, Reading, Reduce
from smdtrack.tracking.measure.sharding import local


class LagWindow:
    """The angle over K steps, taken from a sampled step on; a window begins only when the last one has ended.

    Args:
        steps: K.
        width: Columns of the probe.
    """

    def __init__(self, steps: int, width: int) -> None:
        self.steps = steps
        self._probe = Probe(width)
        self._weights: Mapping[int, Tensor] = {}
        self._began_at: int | None = None
        self._ends_at: int | None = None
        self._reading: Reading | None = None

    def open(self, step: int) -> None:
        """Opens a window before a sampled step, if none is open: what follows from the schedule alone."""
        if self._ends_at is None:
            self._began_at, self._ends_at = step, step + self.steps - 1

    def begin(self, step: int, weights: Mapping[int, Tensor]) -> None:
        """Takes the weights from before the window that was opened at this step.

        Args:
            weights: By column, whole or sharded; the same tensors are read again at the window's end.
        """
        if step == self._began_at:
            self._weights = weights
            self._probe.begin({column: local(weight) for column, weight in weights.items()})

    def ends(self, step: int) -> bool:
        """Whether the open window ends with this step."""
        return step == self._ends_at

    def end(self, step: int, reduce: Reduce | None) -> None:
        """Ends the window after its last step."""
        if self.ends(step):
            self._ends_at = None
            now = {column: local(weight) for column, weight in self._weights.items()}
            self._reading = self._probe.end(now, reduce=reduce)

    def skip(self, step: int) -> None:
        """Ends the window after its last step without measuring."""
        if self.ends(step):
            self._ends_at = None

    def take(self) -> Reading | None:
        """Returns the window that has ended since the last call."""
        reading, self._reading = self._reading, None
        return reading

    def release(self) -> None:
        """Lets go of all memory."""
        self._probe.release()
        self._weights = {}
