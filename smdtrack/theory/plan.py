"""What a recipe will reach: stages of the schedule, time constants, lag behind the line, and what would change it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from smdtrack.theory.line import Line
from smdtrack.theory.schedule import Piece
from smdtrack.theory.transients import Leg, relax

REACHED_WITHIN = 0.05
SHORT_STAGE = 0.3
LARGE_ANGLE = 0.1


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
) -> Plan:
    """Predicts a run from its schedule.

    Args:
        schedule: learning rates, piece by piece.
        line_at: the line at a learning rate.
        weight_decay: in force, for advice.
        warmup_epochs: how long the warm-up lasts, for naming stages.
        start_norm: initial norm over the equilibrium norm at the largest learning rate.
        wanted_angle: radian per step at the largest learning rate, for advice.
    """
    legs = [Leg(piece.steps, line_at(piece.lr)) for piece in schedule]
    peak = line_at(max(piece.lr for piece in schedule))
    points = relax(legs, peak, start_norm) if peak.angular_update else []
    stages = tuple(
        _stage(name, schedule, legs, points, first, last) for name, first, last in _split(schedule, warmup_epochs))
    total = _time_constants(legs)
    step, curve = 0, []
    for index, leg in enumerate(legs):
        step += leg.steps
        if points:
            curve.append((step, leg.line.angular_update or 0.0, points[index][1]))
    warnings = _warnings(peak, stages, total, legs)
    advice = _advice(peak, stages, total, weight_decay, wanted_angle)
    return Plan(peak, stages, tuple(curve), total, tuple(warnings), tuple(advice))


def _split(schedule: Sequence[Piece], warmup_epochs: float) -> list[tuple[str, int, int]]:
    """Stages as (name, first piece, one past the last): warm-up, stretches of one lr, quarters of a smooth decay."""
    warm = 0
    while warm < len(schedule) and schedule[warm].epoch < warmup_epochs - 1e-9 and warmup_epochs > 0:
        warm += 1
    if warm and not schedule[0].lr < max(piece.lr for piece in schedule):
        warm = 0
    stages = [("warm-up", 0, warm)] if warm else []
    runs: list[list[int]] = []
    for index in range(warm, len(schedule)):
        if runs and math.isclose(schedule[index].lr, schedule[runs[-1][0]].lr, rel_tol=1e-9):
            runs[-1][1] = index + 1
        else:
            runs.append([index, index + 1])
    if len(runs) <= 12:
        return stages + [("constant", first, last) for first, last in runs]
    tail = None
    if runs[-1][1] - runs[-1][0] > 1:
        tail = runs.pop()
    first, last = runs[0][0], runs[-1][1]
    bounds = [first + round((last - first) * quarter / 4) for quarter in range(5)]
    stages += [(f"decay {quarter + 1}/4", bounds[quarter], bounds[quarter + 1]) for quarter in range(4)]
    return [*stages, ("cooldown", tail[0], tail[1])] if tail else stages


def _time_constants(legs: Sequence[Leg]) -> float | None:
    if all(leg.line.time_constant is None for leg in legs):
        return None
    return sum(leg.steps / leg.line.time_constant for leg in legs if leg.line.time_constant)


def _stage(
        name: str, schedule: Sequence[Piece], legs: Sequence[Leg], points: Sequence[tuple[float, float]],
        first: int, last: int,
) -> Stage:
    line = legs[last - 1].line
    norm, angle = points[last - 1] if points else (None, None)
    equilibrium = line.angular_update or None
    lag = angle / equilibrium if angle is not None and equilibrium else None
    steps = sum(leg.steps for leg in legs[first:last])
    end = schedule[last].epoch if last < len(schedule) else float(math.ceil(schedule[-1].epoch + 1e-9) or 1)
    if last == len(schedule) and schedule[-1].epoch == int(schedule[-1].epoch):
        end = schedule[-1].epoch + 1
    return Stage(
        name, schedule[first].epoch, end, steps, schedule[first].lr, schedule[last - 1].lr, equilibrium,
        _time_constants(legs[first:last]), angle, None if norm is None or math.isnan(norm) else norm, lag,
        None if lag is None else abs(lag - 1) <= REACHED_WITHIN,
    )


def _warnings(
        peak: Line, stages: Sequence[Stage], total: float | None, legs: Sequence[Leg],
) -> list[str]:
    found = []
    if peak.reason:
        found.append(peak.reason)
    largest = max((leg.line.angular_update or 0.0 for leg in legs), default=0.0)
    if largest > LARGE_ANGLE:
        found.append(
            f"lr x wd turns weights by {largest:.3g} rad per step, more than {LARGE_ANGLE}: too far for the loss to be "
            "followed, and for the small-angle theory")
    if total is not None and total < 1 and peak.trust is None:
        found.append(
            f"weight decay is too weak to matter in this run: it lasts {total:.2g} time constants, and equilibrium "
            "takes about three")
    elif peak.trust is None:
        found += [
            f"stage '{stage.name}' (epochs {stage.first_epoch:g}-{stage.last_epoch:g}) lasts "
            f"{stage.time_constants:.2g} time constants: the norm cannot follow, the angle will lag its line"
            for stage in stages
            if stage.time_constants is not None and stage.time_constants < SHORT_STAGE and stage.name != "warm-up"
        ]
    return found


def _advice(
        peak: Line, stages: Sequence[Stage], total: float | None, weight_decay: float, wanted_angle: float | None,
) -> list[str]:
    found = []
    if peak.angular_update and peak.trust is None and peak.norm_exponent is not None and peak.norm_exponent > -1:
        exponent = 1 / (2 * (1 + peak.norm_exponent))
        for before, after in pairwise(stages):
            if before.angular_update is None or after.angular_update is None or after.lr_start >= before.lr_end / 1.5:
                continue
            drop = (before.angular_update / after.angular_update) ** 2 if after.angular_update else 0.0
            ratio = before.lr_end / after.lr_start
            if math.isclose(drop, ratio, rel_tol=0.05):
                factor = ratio**-exponent
                found.append(
                    f"at epoch {after.first_epoch:g} (lr / {ratio:.3g}) multiply weight norms by {ratio:.3g}^-"
                    f"{exponent:g} = {factor:.3g} and the momentum buffer by {1 / factor:.3g}: "
                    f"smdtrack.rescale_weight_norms(optimizer, {factor:.4g}) puts the angle on its new line at once")
        if wanted_angle is not None and weight_decay > 0:
            wanted = weight_decay * (wanted_angle / peak.angular_update) ** 2
            found.append(f"for {wanted_angle:.3g} rad per step at the largest lr: --weight-decay {wanted:.3g}")
        if total is not None and 0 < total < 3 and weight_decay > 0:
            found.append(
                f"to pass three time constants within this run: --weight-decay {weight_decay * 3 / total:.2g} "
                f"(angle {peak.angular_update * math.sqrt(3 / total):.3g} rad per step)")
    return found
