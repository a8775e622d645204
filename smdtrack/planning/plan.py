"""What a recipe will reach: the line and the predicted trajectory, stage by stage, and what would change it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from smdtrack.planning.advice import advice, warnings
from smdtrack.planning.lr_schedule import Piece
from smdtrack.planning.relaxation import Leg, relax
from smdtrack.planning.stages import Stage, split, stage_of, time_constants
from smdtrack.theory.line import Line


@dataclass(frozen=True)
class Plan:
    """A recipe's prediction.

    Attributes:
        peak: the line at the largest learning rate.
        stages: in order.
        curve: (step, line, predicted angle) at the end of each piece, for a plot; empty without a trajectory.
        time_constants: over the whole run.
        warnings: what is likely to surprise.
        advice: what would change it.
    """

    peak: Line
    stages: tuple[Stage, ...]
    curve: tuple[tuple[int, float, float], ...]
    time_constants: float | None
    warnings: tuple[str, ...]
    advice: tuple[str, ...]


def plan(
    schedule: Sequence[Piece],
    line_at: Callable[[float], Line],
    weight_decay: float,
    *,
    warmup_epochs: float = 0.0,
    start_norm: float = 1.0,
    wanted_angle: float | None = None,
    unit_decay: tuple[float, Line] | None = None,
) -> Plan:
    """Predicts a run from its schedule.

    Args:
        schedule: learning rates, piece by piece.
        line_at: the line at a learning rate.
        weight_decay: in force, for advice (0: none).
        warmup_epochs: how long the warm-up lasts, for naming stages.
        start_norm: initial norm over the equilibrium norm at the largest learning rate.
        wanted_angle: radian per step at the largest learning rate, for advice.
        unit_decay: some weight decay and the line under it at the largest learning rate, for advice where
            `weight_decay` is 0.
    """
    legs = [Leg(piece.steps, line_at(piece.lr)) for piece in schedule]
    peak = line_at(max(piece.lr for piece in schedule))
    points = relax(legs, peak, start_norm) if peak.angular_update else []
    stages = tuple(
        stage_of(name, schedule, legs, points, first, last) for name, first, last in split(schedule, warmup_epochs)
    )
    total = time_constants(legs)
    step, curve = 0, []
    for index, leg in enumerate(legs):
        step += leg.steps
        if points:
            curve.append((step, leg.line.angular_update or 0.0, points[index][1]))
    found = warnings(peak, stages, total, legs)
    asked = None if wanted_angle is None else (wanted_angle, *(unit_decay or (weight_decay, peak)))
    changes = advice(peak, stages, total, weight_decay, asked)
    return Plan(peak, stages, tuple(curve), total, tuple(found), tuple(changes))
