"""How the norm of a weight, and with it the angle of each step, approaches equilibrium over a schedule.

Derived here: while the effective gradient `||g|| ||w||` stays the same, a power of the squared norm obeys a linear
differential equation. It is solved exactly for each stretch of constant learning rate; see `relax`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from smdtrack.theory.line import Line


@dataclass(frozen=True)
class LineSegment:
    """Consecutive optimizer steps under one equilibrium line.

    Attributes:
        steps: number of optimizer steps.
        line: the line in all of them.
    """

    steps: int
    line: Line


@dataclass(frozen=True)
class WeightState:
    """A weight after some step.

    Attributes:
        norm: ||w|| over its equilibrium value under the line at the largest learning rate; nan if not predicted.
        angle: angular update of that step, radian per optimizer step.
    """

    norm: float
    angle: float


def relax(segments: Sequence[LineSegment], peak: Line, start_norm: float = 1.0) -> list[WeightState]:
    """Returns the state of a weight at the end of each segment.

    Assumes that the effective gradient `||g|| ||w||` keeps its size and is uncorrelated in time. Its size is not
    needed, because norms are expressed in units of the equilibrium norm under `peak`.

    Derived here: with r = ||w||^2, update length |u|^2 = P r^-p and decay rate gamma, `dr/dt = R P r^-p - 2 gamma r`.
    Then `x = r^(1+p)` obeys the linear equation `dx/dt = (1+p)(R P - 2 gamma x)`. In these units P is the square of
    the peak's angular update, times the square of the step size over the peak's.

    Args:
        segments: the schedule.
        peak: the line at the largest learning rate; it must have an equilibrium.
        start_norm: ||w|| before training over its equilibrium value under `peak`.

    Raises:
        ValueError: `peak` has no equilibrium.
    """
    if not peak.angular_update or peak.norm_exponent is None or not peak.step_size:
        raise ValueError(f"no equilibrium for {peak.optimizer}: {peak.reason or 'its line is not known'}")
    if peak.trust is not None:
        # A trust ratio sets the angle by the learning rate alone. The norm has no influence on it.
        return [WeightState(math.nan, segment.line.angular_update or 0.0) for segment in segments]
    power = 1 + peak.norm_exponent
    squared_norm = start_norm**2
    states = []
    for segment in segments:
        decay_rate = segment.line.decay_rate or 0.0
        push = peak.angular_update**2 * ((segment.line.step_size or 0.0) / peak.step_size) ** 2
        line = segment.line
        memory = 2 * decay_rate / line.angular_update**2 if line.angular_update else line.memory or 1.0
        x = squared_norm**power
        if decay_rate > 0:
            target = memory * push / (2 * decay_rate)
            x = target + (x - target) * math.exp(-2 * power * decay_rate * segment.steps)
        else:
            x += power * memory * push * segment.steps
        squared_norm = x ** (1 / power)
        states.append(WeightState(math.sqrt(squared_norm), math.sqrt(push / squared_norm**power)))
    return states
