"""The stages of a schedule (warm-up, constant, decay in quarters), and what a weight reaches at the end of each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from smdtrack.planning.lr_schedule import LrSegment
from smdtrack.planning.relaxation import LineSegment, WeightState

#: An angle within this share of its line counts as having reached it.
REACHED_WITHIN = 0.05
#: A decay of at least this many segments is divided into quarters; a shorter one stays one stage.
_LEAST_SEGMENTS_FOR_QUARTERS = 8
#: With more stretches of constant learning rate than this, the schedule counts as a decay in small drops.
_MOST_CONSTANT_STAGES = 12


@dataclass(frozen=True)
class Stage:
    """One part of a schedule.

    Attributes:
        name: "warm-up", "constant", "decay", "decay 1/4", "cycle 2".
        first_epoch: where it begins, counted from 0.
        last_epoch: where it ends, exclusive.
        steps: number of optimizer steps.
        lr_start: learning rate of its first step.
        lr_end: learning rate of its last step.
        angular_update: the equilibrium line at its last step, radian per step; None if there is no line.
        time_constants: its length in time constants; None if there is no time constant.
        predicted_angle: predicted angle at its last step, radian per step; None if it cannot be predicted. From the
            middle one of several initial norms.
        predicted_range: smallest and largest predicted angle over all initial norms.
        predicted_norm: predicted norm at its end over the equilibrium norm at the largest learning rate.
        lag: predicted angle over the line at its last step.
        reached: True if the lag is within 5 % of 1 from all initial norms, False if from none, None if it depends on
            the initial norm or cannot be predicted.
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
    predicted_range: tuple[float, float] | None
    predicted_norm: float | None
    lag: float | None
    reached: bool | None

    @property
    def epochs(self) -> str:
        """First and last epoch as text, such as `5-30`; with a decimal below 10."""
        first, last = (round(epoch, 1 if epoch < 10 else None) for epoch in (self.first_epoch, self.last_epoch))
        return f"{first:g}-{last:g}"


def split_into_stages(schedule: Sequence[LrSegment], warmup_epochs: float) -> list[tuple[str, int, int]]:
    """Returns the stages as (name, index of the first segment, index after the last segment).

    A stretch of one learning rate is a stage. A smooth decay is divided into quarters. Each rise of the learning rate
    after the warm-up begins a new cycle.

    Args:
        schedule: all segments of the training.
        warmup_epochs: length of the warm-up, 0 without one.
    """
    warm = 0
    while warm < len(schedule) and warmup_epochs > 0 and schedule[warm].epoch < warmup_epochs - 1e-9:
        warm += 1
    if warm and not schedule[0].lr < max(segment.lr for segment in schedule):
        warm = 0
    stages = [("warm-up", 0, warm)] if warm else []
    decays: list[list[int]] = []
    stretches = _constant_stretches(schedule, warm)
    left = len(schedule) - warm
    # A schedule that drops every other epoch is a decay, not dozens of constant stages.
    if sum(last - first > 1 for first, last in stretches) <= _MOST_CONSTANT_STAGES:
        least_length = 2.0
    else:
        least_length = left / _MOST_CONSTANT_STAGES
    for first, last in stretches:
        if last - first >= least_length or left < _LEAST_SEGMENTS_FOR_QUARTERS:
            stages.append(("constant", first, last))
        elif decays and decays[-1][1] == first and schedule[first].lr <= schedule[first - 1].lr:
            decays[-1][1] = last
        else:
            decays.append([first, last])
    for number, (first, last) in enumerate(decays, 1):
        if len(decays) > 1:
            stages.append((f"cycle {number}", first, last))
        elif last - first < _LEAST_SEGMENTS_FOR_QUARTERS:
            stages.append(("decay", first, last))
        else:
            bounds = [first + round((last - first) * quarter / 4) for quarter in range(5)]
            stages += [(f"decay {quarter + 1}/4", bounds[quarter], bounds[quarter + 1]) for quarter in range(4)]
    return sorted(stages, key=lambda stage: stage[1])


def _constant_stretches(schedule: Sequence[LrSegment], start: int) -> list[tuple[int, int]]:
    """Returns (first, after last) of each longest run of segments with one learning rate, beginning at `start`."""
    runs: list[tuple[int, int]] = []
    for index in range(start, len(schedule)):
        if runs and math.isclose(schedule[index].lr, schedule[runs[-1][0]].lr, rel_tol=1e-9):
            runs[-1] = runs[-1][0], index + 1
        else:
            runs.append((index, index + 1))
    return runs


def time_constants(segments: Sequence[LineSegment]) -> float | None:
    """Returns the length of these segments in time constants; None if no line has a time constant."""
    if all(segment.line.time_constant is None for segment in segments):
        return None
    return sum(segment.steps / segment.line.time_constant for segment in segments if segment.line.time_constant)


def summarize_stage(
    name: str,
    schedule: Sequence[LrSegment],
    segments: Sequence[LineSegment],
    paths: Sequence[Sequence[WeightState]],
    first: int,
    last: int,
) -> Stage:
    """Returns the stage that consists of the segments from `first` up to, but not including, `last`.

    Args:
        name: of the stage.
        schedule: learning rates of the whole training.
        segments: the lines of the same segments.
        paths: predicted states at the end of each segment, for each initial norm in ascending order; empty if
            nothing is predicted.
        first: index of the first segment.
        last: index after the last segment.
    """
    equilibrium = segments[last - 1].line.angular_update or None
    states = [path[last - 1] for path in paths]
    state = states[len(states) // 2] if states else None
    lag = state.angle / equilibrium if state is not None and equilibrium else None
    reached = None
    if equilibrium:
        outcomes = {abs(one.angle / equilibrium - 1) <= REACHED_WITHIN for one in states}
        reached = outcomes.pop() if len(outcomes) == 1 else None
    return Stage(
        name,
        first_epoch=schedule[first].epoch,
        last_epoch=schedule[last].epoch if last < len(schedule) else _end(schedule),
        steps=sum(segment.steps for segment in segments[first:last]),
        lr_start=schedule[first].lr,
        lr_end=schedule[last - 1].lr,
        angular_update=equilibrium,
        time_constants=time_constants(segments[first:last]),
        predicted_angle=None if state is None else state.angle,
        predicted_range=(min(one.angle for one in states), max(one.angle for one in states)) if states else None,
        predicted_norm=None if state is None or math.isnan(state.norm) else state.norm,
        lag=lag,
        reached=reached,
    )


def _end(schedule: Sequence[LrSegment]) -> float:
    """Returns the epoch in which the training ends: the first whole number above the last segment's beginning."""
    return float(math.floor(schedule[-1].epoch + 1e-9) + 1)
