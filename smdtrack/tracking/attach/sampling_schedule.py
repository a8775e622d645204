"""Which optimizer steps are sampled.

A schedule is any callable that takes the step, counted from 1, and returns whether it is sampled.
"""

from collections.abc import Callable
from dataclasses import dataclass

from smdtrack.notices import SmdtrackError

Schedule = Callable[[int], bool]


@dataclass(frozen=True)
class EverySteps:
    """Samples every n-th step, and each of the first few, while the norms change fastest.

    Attributes:
        every: Optimizer steps from one sample to the next.
        first_steps: Number of steps at the start that are all sampled.

    Raises:
        SmdtrackError: If `every` is below 1 or `first_steps` below 0.
    """

    every: int = 5
    first_steps: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.every, int) or self.every < 1:
            raise SmdtrackError(f"every={self.every!r}: a whole number of optimizer steps is needed, 1 or more")
        if not isinstance(self.first_steps, int) or self.first_steps < 0:
            raise SmdtrackError(f"first_steps={self.first_steps!r}: a whole number is needed, 0 or more")

    def __call__(self, step: int) -> bool:
        """Returns whether a step is sampled; steps count from 1."""
        return step <= self.first_steps or step % self.every == 0
