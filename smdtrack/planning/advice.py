"""What in a recipe is likely to surprise, and which change of it would help."""

import math
from collections.abc import Sequence
from itertools import pairwise

from smdtrack.planning.relaxation import LineSegment
from smdtrack.planning.stages import Stage
from smdtrack.theory.line import Line

#: A stage shorter than this many time constants ends before the norm has followed.
SHORT_STAGE = 0.3
#: Largest angular update, in radian per step, at which the small-angle theory and a local step of the loss make sense.
LARGE_ANGLE = 0.1
#: Time constants after which a deviation from equilibrium has fallen to 5 %.
SETTLED = 3
#: A fall of the learning rate by a smaller factor than this between two stages is part of a smooth decay.
_LEAST_DROP = 1.5


def find_problems(
    peak: Line,
    stages: Sequence[Stage],
    run_time_constants: float | None,
    segments: Sequence[LineSegment],
) -> list[str]:
    """Returns one sentence for each property of the recipe that is likely to surprise.

    Args:
        peak: the line at the largest learning rate.
        stages: of the schedule.
        run_time_constants: length of the whole run in time constants; None if there is no time constant.
        segments: the schedule with its lines.
    """
    problems = []
    if peak.reason:
        problems.append(peak.reason)
    largest = max((segment.line.angular_update or 0.0 for segment in segments), default=0.0)
    if largest > LARGE_ANGLE:
        problems.append(
            f"lr x weight decay turns weights by {largest:.3g} rad per step, which is more than {LARGE_ANGLE}: the "
            "loss cannot be followed over such steps, and the theory assumes small angles"
        )
    if run_time_constants is None or peak.trust is not None:
        return problems
    if run_time_constants < 1:
        problems.append(
            f"weight decay is too weak to matter in this run: the run lasts {run_time_constants:.2g} time constants, "
            f"and equilibrium takes about {SETTLED}"
        )
        return problems
    problems += [
        f"stage '{stage.name}' (epochs {stage.epochs}) lasts {stage.time_constants:.2g} time constants: the norm "
        "cannot follow the learning rate, and the angle will lag behind its line"
        for stage in stages
        if stage.time_constants is not None and stage.time_constants < SHORT_STAGE and stage.name != "warm-up"
    ]
    return problems


def suggest_changes(
    peak: Line,
    stages: Sequence[Stage],
    run_time_constants: float | None,
    weight_decay: float,
) -> list[str]:
    """Returns one sentence for each change that would bring the weights closer to equilibrium; code in backticks.

    Args:
        peak: the line at the largest learning rate.
        stages: of the schedule.
        run_time_constants: length of the whole run in time constants; None if there is no time constant.
        weight_decay: of the recipe.
    """
    changes = _suggest_rescaling(peak, stages)
    if run_time_constants is not None and 0 < run_time_constants < SETTLED and weight_decay > 0:
        factor = SETTLED / run_time_constants
        if peak.trust is None and peak.angular_update:
            changes.append(
                f"for {SETTLED} time constants within this run: weight decay {weight_decay * factor:.2g} "
                f"(angle {peak.angular_update * math.sqrt(factor):.3g} rad per step)"
            )
    return changes


def _suggest_rescaling(peak: Line, stages: Sequence[Stage]) -> list[str]:
    """Returns, for each size of drop of the learning rate, the factor that puts the angle on its new line at once."""
    if not peak.angular_update or peak.trust is not None or peak.norm_exponent is None or peak.norm_exponent <= -1:
        return []
    exponent = 1 / (2 * (1 + peak.norm_exponent))
    drops: dict[str, tuple[float, list[float]]] = {}
    for before, after in pairwise(stages):
        if not before.angular_update or not after.angular_update or after.lr_start * _LEAST_DROP >= before.lr_end:
            continue
        ratio = before.lr_end / after.lr_start
        # A corrected decay lowers the line in proportion to the learning rate, as the angle falls: nothing to rescale.
        if math.isclose((before.angular_update / after.angular_update) ** 2, ratio, rel_tol=0.05):
            drops.setdefault(f"{ratio:.3g}", (ratio, []))[1].append(after.first_epoch)
    changes = []
    for shown, (ratio, epochs) in drops.items():
        factor = ratio**-exponent
        when = f"epoch{'s' if len(epochs) > 1 else ''} " + " and ".join(f"{round(epoch, 1):g}" for epoch in epochs)
        changes.append(
            f"at {when} (lr / {shown}) multiply weight norms by {shown}^-{exponent:g} = {factor:.3g} and the momentum "
            f"buffer by {1 / factor:.3g}: `smdtrack.rescale_weight_norms(optimizer, {factor:.4g})` puts the angle on "
            "its new line at once"
        )
    return changes


def suggest_for_angle(wanted: float, weight_decay: float, line: Line) -> str:
    """Returns which weight decay, or which learning rate under a trust ratio, gives an angle.

    The squared angle is proportional to the weight decay. Under a trust ratio the angle is proportional to the learning
    rate and does not depend on the weight decay.

    Args:
        wanted: radian per step at the largest learning rate.
        weight_decay: any one above 0.
        line: the line under that weight decay.
    """
    if not line.angular_update:
        return f"for {wanted:.3g} rad per step: not known, because this optimizer has no equilibrium line here"
    if line.trust is not None:
        return (
            f"for {wanted:.3g} rad per step: learning rate times {wanted / line.angular_update:.3g}; the trust ratio "
            "sets the angle by the learning rate, whatever the weight decay"
        )
    return (
        f"for {wanted:.3g} rad per step at the largest lr: weight decay "
        f"{weight_decay * (wanted / line.angular_update) ** 2:.3g}"
    )
