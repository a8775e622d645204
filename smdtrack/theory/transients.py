"""Norm and angle on their way: recursions driven by the gradients, for any schedule.

Derived here. With r = ||w||^2 and P_t the squared length of the update,

    r_{t+1} = r_t (1 - 2 gamma_t) + R P_t            Delta_t = sqrt(P_t / r_t)

P follows the gradients: `P = (lr sqrt(S))^2 C^2 / r` where the step follows the gradient's length (SGD, C the effective
gradient ||g|| ||w||), `P = (lr sqrt(S))^2 d c` where it is normalised, c = <g^2>/<v> with v the second moment that lags
behind. Assumes a learning rate that changes slowly against the momentum; windows that straddle a tenfold drop are off.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from smdtrack.theory.line import Line


@dataclass(frozen=True)
class Point:
    """State of a weight before one step: its norm, and the angle (radian) that the step turns it."""

    norm: float
    angle: float


def trajectory(
        lines: Iterable[Line],
        effective_gradients: Iterable[float],
        norm: float,
        *,
        coordinates: int | None = None,
        second_moment_decay: float | None = None,
) -> Iterator[Point]:
    """Norm and angle step by step.

    Args:
        lines: the line in force at each step (its decay rate and step size follow the schedule).
        effective_gradients: C at each step, ||g|| ||w||, RMS; measured or assumed.
        norm: ||w|| at the start.
        coordinates: d, for normalised updates.
        second_moment_decay: beta2, for normalised updates whose second moment lags; None takes c = 1.

    Yields:
        One `Point` per step.

    Raises:
        ValueError: where a line has no decay rate or energy (kind "none", or the state is needed and was not given).
    """
    squared = norm * norm
    moment, weightless = 0.0, 1.0
    for line, gradient in zip(lines, effective_gradients, strict=False):
        if line.decay_rate is None or line.updates is None or line.updates.energy is None or line.step_size is None:
            raise ValueError(f"no trajectory for {line.optimizer}: {line.reason or 'its updates are not known'}")
        power = line.step_size**2 * line.updates.energy
        if line.norm_exponent == 1:
            power *= gradient**2 / squared
        elif line.norm_exponent == 0:
            power *= coordinates or 1
            if second_moment_decay is not None:
                present = gradient**2 / squared
                moment = second_moment_decay * moment + (1 - second_moment_decay) * present
                weightless *= second_moment_decay
                power *= present * (1 - weightless) / moment
        else:
            power = squared * (line.angular_update or 0.0) ** 2
        yield Point(math.sqrt(squared), math.sqrt(power / squared))
        squared = squared * (1 - 2 * line.decay_rate) + line.updates.memory * power


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
