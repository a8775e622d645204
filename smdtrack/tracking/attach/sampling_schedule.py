"""Which optimizer steps are sampled.

A schedule is any callable that takes the step, counted from 1, and returns whether it is sampled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

from smdtrack.notices import SmdtrackError

Schedule = Callable[[int], bool]


@dataclass(frozen=True)
class EverySteps:
    """Samples every n-th step, and each of the first few, while the norms change fastest.

    Some optimizers repeat a cycle of unlike steps, as Lookahead does. If `every` and the cycle have a common divisor,
    every n-th step would always meet the same steps of the cycle. The sampled steps are then shifted by one after each
    round, so that `cycle` samples in a row contain each step of the cycle once.

    Attributes:
        every: Optimizer steps from one sample to the next.
        first_steps: Number of steps at the start that are all sampled.
        cycle: Number of steps after which the optimizer repeats itself.

    Raises:
        SmdtrackError: If `every` is below 1 or `first_steps` below 0.
    """

    every: int = 5
    first_steps: int = 0
    cycle: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.every, int) or self.every < 1:
            raise SmdtrackError(f"every={self.every!r}: a whole number of optimizer steps is needed, 1 or more")
        if not isinstance(self.first_steps, int) or self.first_steps < 0:
            raise SmdtrackError(f"first_steps={self.first_steps!r}: a whole number is needed, 0 or more")

    def __call__(self, step: int) -> bool:
        """Returns whether a step is sampled; steps count from 1."""
        if step <= self.first_steps:
            return True
        shifts = gcd(self.every, self.cycle)
        samples_in_a_round = self.cycle // shifts
        return step % self.every == step // self.every // samples_in_a_round % shifts
