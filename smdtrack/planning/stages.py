"""The stages of a schedule, as people name them: warm-up, constant, decay; and what each one reaches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from smdtrack.planning.lr_schedule import Piece
from smdtrack.planning.relaxation import Leg

REACHED_WITHIN = 0.05
#: A decay of fewer pieces than this is one stage.
_SMOOTH = 8
_MOST_ROWS = 12


@dataclass(frozen=True)
class Stage:
    """A part of the schedule.

    Attributes:
        name: "warm-up", "constant", "decay 1/4", "cooldown".
        first_epoch, last_epoch: where it begins and ends.
        steps: optimizer steps.
        lr_start, lr_end: learning rates at its first and last steps.
        angular_update: the line at its end, radian per step; None without one.
        time_constants: how many fit into it; None without one.
        predicted_angle: where the angle will be at its end; None where no trajectory is known.
        predicted_norm: ||w|| at its end over the equilibrium norm at the largest learning rate.
        lag: predicted angle over line at its end.
        reached: whether the lag is within 5 %.
    """

    name: str
    first_epoch: float
    last_epoch: float
    steps: int
    lr_start: float
    lr_end: float
    angular_update: float | None
    time_constants: float | None
    predicted_angle: float | None
    predicted_norm: float | None
    lag: float | None
    reached: bool | None

    @property
    def epochs(self) -> str:
        """From where to where, for people."""
        return f"{round(self.first_epoch, 1):g}-{round(self.last_epoch, 1):g}"


def split(schedule: Sequence[Piece], warmup_epochs: float) -> list[tuple[str, int, int]]:
    """Stages as (name, first piece, one past the last): warm-up, stretches of one lr, smooth decays in quarters."""
    warm = 0
    while warm < len(schedule) and schedule[warm].epoch < warmup_epochs - 1e-9 and warmup_epochs > 0:
        warm += 1
    if warm and not schedule[0].lr < max(piece.lr for piece in schedule):
        warm = 0
    stages = [("warm-up", 0, warm)] if warm else []
    moving: list[list[int]] = []
    level = _level(schedule, warm)
    # a drop every other epoch is a decay, too
    least = 2 if sum(last - first > 1 for first, last in level) <= _MOST_ROWS else (len(schedule) - warm) / _MOST_ROWS
    for first, last in level:
        if last - first >= least or len(schedule) - warm < _SMOOTH:
            stages.append(("constant", first, last))
        elif moving and moving[-1][1] == first and schedule[first].lr <= schedule[first - 1].lr:
            moving[-1][1] = last
        else:
            moving.append([first, last])
    for number, (first, last) in enumerate(moving, 1):
        if len(moving) > 1:
            stages.append((f"cycle {number}", first, last))
        elif last - first < _SMOOTH:
            stages.append(("decay", first, last))
        else:
            bounds = [first + round((last - first) * quarter / 4) for quarter in range(5)]
            stages += [(f"decay {quarter + 1}/4", bounds[quarter], bounds[quarter + 1]) for quarter in range(4)]
    return sorted(stages, key=lambda stage: stage[1])


def _level(schedule: Sequence[Piece], first: int) -> list[tuple[int, int]]:
    """Stretches of one learning rate, from `first` on."""
    runs: list[tuple[int, int]] = []
    for index in range(first, len(schedule)):
        if runs and math.isclose(schedule[index].lr, schedule[runs[-1][0]].lr, rel_tol=1e-9):
            runs[-1] = runs[-1][0], index + 1
        else:
            runs.append((index, index + 1))
    return runs


def time_constants(legs: Sequence[Leg]) -> float | None:
    """Returns how many time constants these legs last; None where no line has one."""
    if all(leg.line.time_constant is None for leg in legs):
        return None
    return sum(leg.steps / leg.line.time_constant for leg in legs if leg.line.time_constant)


def stage_of(
    name: str,
    schedule: Sequence[Piece],
    legs: Sequence[Leg],
    points: Sequence[tuple[float, float]],
    first: int,
    last: int,
) -> Stage:
    """Sums up the pieces from `first` to before `last`; `points` are (norm, angle) at the end of each, or empty."""
    line = legs[last - 1].line
    norm, angle = points[last - 1] if points else (None, None)
    equilibrium = line.angular_update or None
    lag = angle / equilibrium if angle is not None and equilibrium else None
    steps = sum(leg.steps for leg in legs[first:last])
    end = schedule[last].epoch if last < len(schedule) else float(math.ceil(schedule[-1].epoch + 1e-9) or 1)
    if last == len(schedule) and schedule[-1].epoch == int(schedule[-1].epoch):
        end = schedule[-1].epoch + 1
    return Stage(
        name,
        schedule[first].epoch,
        end,
        steps,
        schedule[first].lr,
        schedule[last - 1].lr,
        equilibrium,
        time_constants(legs[first:last]),
        angle,
        None if norm is None or math.isnan(norm) else norm,
        lag,
        None if lag is None else abs(lag - 1) <= REACHED_WITHIN,
    )
