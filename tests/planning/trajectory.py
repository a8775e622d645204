"""Test oracle: norm and angle of a weight step by step, from the size of its gradients, under any schedule.

Derived here. With r = ||w||^2 and P_t the squared length of the update,

    r_{t+1} = r_t (1 - 2 gamma_t) + G_t              Delta_t = sqrt(P_t / r_t)

If the optimizer is a linear filter, then `u_t = sum_s c_s g_s` with c_s = lr_t h_{t-s}, divided by the root of the
second moment if the optimizer has one. The sum of the c_s of the earlier steps, a_s, is the multiple of g_s that w_t
contains so far. With gradients that are uncorrelated in time and orthogonal to w,

    P_t = sum_s c_s^2 <g_s^2>        G_t = sum_s (2 a_s c_s + c_s^2) <g_s^2>,

This holds through warm-ups, through drops of the learning rate and while the momentum buffer fills. `<g_s^2>` is
`C^2 / r_s`, with C the measured effective gradient. For other optimizers (calibrated updates) G = R P, which assumes
that the learning rate changes slowly.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch
from torch import Tensor

from smdtrack.planning.lr_schedule import LrSegment
from smdtrack.theory.line import Line


def rates(schedule: Iterable[LrSegment]) -> Iterator[float]:
    """The learning rate of every optimizer step of a schedule."""
    for segment in schedule:
        yield from repeat(segment.lr, segment.steps)


@dataclass(frozen=True)
class Point:
    """A weight before one step: its norm, and the angle in radian by which the step turns it."""

    norm: float
    angle: float


def trajectory(
    lines: Iterable[Line],
    effective_gradients: Iterable[float],
    norm: float,
    *,
    coordinates: int | None = None,
    betas: tuple[float, float] | None = None,
) -> Iterator[Point]:
    """Norm and angle step by step, from the optimizer's first step on.

    Args:
        lines: the line in force at each step (its decay rate and step size follow the schedule).
        effective_gradients: C at each step, ||g|| ||w||, RMS; measured or assumed.
        norm: ||w|| at the start.
        coordinates: d, for normalised updates.
        betas: of Adam-like optimizers, whose moments lag and are bias-corrected; None for a steady second moment.

    Yields:
        One `Point` per step.

    Raises:
        ValueError: where a line has no decay rate or energy (kind "none", or the state is needed and was not given).
    """
    squared, moment = norm * norm, 0.0
    memory = _Memory()
    for step, (line, gradient) in enumerate(zip(lines, effective_gradients, strict=False), 1):
        if line.decay_rate is None or line.updates is None or line.updates.energy is None or line.step_size is None:
            raise ValueError(f"no trajectory for {line.optimizer}: {line.reason or 'its updates are not known'}")
        present = gradient**2 / squared
        scale = line.step_size
        if line.norm_exponent == 0 and betas is not None:
            moment = betas[1] * moment + (1 - betas[1]) * present
            scale *= math.sqrt((coordinates or 1) * (1 - betas[1] ** step) / moment) / (1 - betas[0] ** step)
        elif line.norm_exponent == 0:
            scale *= math.sqrt((coordinates or 1) / present)
        elif line.norm_exponent != 1:
            scale = squared * (line.angular_update or 0.0) / math.sqrt(line.updates.energy) / gradient
        if line.updates.impulse_response is not None and not line.updates.are_signs and line.trust is None:
            power, growth = memory.step(line.updates.impulse_response, scale, present, line.decay_rate)
        else:
            full = 1 - betas[0] ** step if betas is not None and line.norm_exponent == 0 else 1.0
            power = (scale * full) ** 2 * line.updates.energy * present
            growth = line.updates.memory * power
        yield Point(math.sqrt(squared), math.sqrt(power / squared))
        squared = squared * (1 - 2 * line.decay_rate) + growth


def replay(
    lines: Iterable[Line],
    steps: Sequence[int],
    effective_gradients: Sequence[float],
    norm: float,
    *,
    coordinates: int | None = None,
    betas: tuple[float, float] | None = None,
) -> list[Point]:
    """Returns the trajectory for the sizes of gradients that a run has measured at some of its steps.

    The squares of the measured sizes are interpolated linearly between the sampled steps. Before the first and after
    the last sampled step they are constant.

    Args:
        lines: the line in force at each step, from the optimizer's first on (`schedule.rates` gives the learning rates
            of any timm schedule).
        steps: sampled steps, counted from 1, increasing.
        effective_gradients: ||g|| ||w|| at each of them.
        norm: ||w|| at the start.
        coordinates, betas: as in `trajectory`.

    Returns:
        One `Point` per line, up to the last sampled step.

    Raises:
        ValueError: where steps and gradients do not match, or a line has no trajectory.
    """
    if not steps or len(steps) != len(effective_gradients):
        raise ValueError(f"{len(steps)} steps and {len(effective_gradients)} gradients; there must be one for each")
    every = np.arange(1, steps[-1] + 1)
    filled = np.sqrt(np.interp(every, steps, np.square(effective_gradients)))
    return list(trajectory(lines, filled.tolist(), norm, coordinates=coordinates, betas=betas))


class _Memory:
    """The gradients that a filter still holds: their squares, and the multiple of each that the weight contains."""

    def __init__(self, longest: int = 1024) -> None:
        self._longest = longest
        self._squares = torch.zeros(0, dtype=torch.float64, device="cpu")
        self._contained = torch.zeros(0, dtype=torch.float64, device="cpu")

    def step(self, taps: Tensor, scale: float, present: float, decay_rate: float) -> tuple[float, float]:
        """Adds the squared size of one gradient; returns the squared update and the growth of ||w||^2."""
        keep = min(self._squares.numel() + 1, taps.numel(), self._longest)
        self._squares = torch.cat([torch.tensor([present], dtype=torch.float64, device="cpu"), self._squares])[:keep]
        nothing = torch.zeros(1, dtype=torch.float64, device="cpu")
        self._contained = torch.cat([nothing, self._contained])[:keep] * (1 - decay_rate)
        coefficients = scale * taps[:keep]
        power = coefficients.square() * self._squares
        growth = power + 2 * coefficients * self._contained * self._squares
        self._contained = self._contained + coefficients
        return float(power.sum()), float(growth.sum())
