"""The norm and the angle of a weight on their way to equilibrium, over a schedule of learning rates.

Derived here: with gradients whose effective size `||g|| ||w||` stays the same, a power of the squared norm obeys a
linear differential equation, which is solved exactly for each stretch of constant learning rate; see `relax`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from smdtrack.theory.line import Line


@dataclass(frozen=True)
class Leg:
    """A stretch of steps under one line.

    Attributes:
        steps: how many.
        line: in force throughout.
    """

    steps: int
    line: Line


def relax(legs: Sequence[Leg], peak: Line, start: float = 1.0) -> list[tuple[float, float]]:
    """Norm and angle before training, at the end of each leg, with gradients that keep their effective size.

    The norm is in units of the equilibrium norm under `peak`, which takes the unknown size of the gradients out.
    Derived here: `x = r^(1+p)` obeys the linear equation `dx/dt = (1+p)(R P_1 - 2 gamma x)`, solved leg by leg.

    Args:
        legs: the schedule, piecewise constant.
        peak: the line at the largest learning rate; it must have an equilibrium.
        start: ||w|| over its equilibrium value under `peak`.

    Returns:
        Pairs of (norm over that under `peak`, angle in radian), one per leg.

    Raises:
        ValueError: where `peak` has no equilibrium.
    """
    if not peak.angular_update or peak.norm_exponent is None or not peak.step_size:
        raise ValueError(f"no equilibrium to measure from: {peak.reason or peak.optimizer}")
    if peak.trust is not None:
        return [(math.nan, leg.line.angular_update or 0.0) for leg in legs]
    power = 1 + peak.norm_exponent
    squared = start**2
    points = []
    for leg in legs:
        rate = leg.line.decay_rate or 0.0
        push = peak.angular_update**2 * ((leg.line.step_size or 0.0) / peak.step_size) ** 2
        memory = leg.line.memory or 1.0
        x = squared**power
        if rate > 0:
            target = memory * push / (2 * rate)
            x = target + (x - target) * math.exp(-2 * power * rate * leg.steps)
        else:
            x += power * memory * push * leg.steps
        squared = x ** (1 / power)
        points.append((math.sqrt(squared), math.sqrt(push / squared**power)))
    return points
