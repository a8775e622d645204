"""What is likely to surprise in a recipe, and what would change it."""

import math
from collections.abc import Sequence
from itertools import pairwise

from smdtrack.planning.relaxation import Leg
from smdtrack.planning.stages import Stage
from smdtrack.theory.line import Line

SHORT_STAGE = 0.3
LARGE_ANGLE = 0.1
#: A drop of the learning rate by less than this is part of a smooth decay.
_DROP = 1.5


def warnings(peak: Line, stages: Sequence[Stage], total: float | None, legs: Sequence[Leg]) -> list[str]:
    """What is likely to surprise.

    Args:
        peak: the line at the largest learning rate.
        stages: of the schedule.
        total: time constants in the whole run; None where there is none.
        legs: the schedule with its lines.
    """
    found = []
    if peak.reason:
        found.append(peak.reason)
    largest = max((leg.line.angular_update or 0.0 for leg in legs), default=0.0)
    if largest > LARGE_ANGLE:
        found.append(
            f"lr x wd turns weights by {largest:.3g} rad per step, more than {LARGE_ANGLE}: too far for the loss to be "
            "followed, and for the small-angle theory"
        )
    if total is not None and total < 1 and peak.trust is None:
        found.append(
            f"weight decay is too weak to matter in this run: it lasts {total:.2g} time constants, and equilibrium "
            "takes about three"
        )
    elif peak.trust is None:
        found += [
            f"stage '{stage.name}' (epochs {stage.epochs}) lasts "
            f"{stage.time_constants:.2g} time constants: the norm cannot follow, the angle will lag its line"
            for stage in stages
            if stage.time_constants is not None and stage.time_constants < SHORT_STAGE and stage.name != "warm-up"
        ]
    return found


def advice(
    peak: Line,
    stages: Sequence[Stage],
    total: float | None,
    weight_decay: float,
    asked: tuple[float, float, Line] | None,
) -> list[str]:
    """What would change it; code in backticks.

    Args:
        peak: the line at the largest learning rate.
        stages: of the schedule.
        total: time constants in the whole run.
        weight_decay: in force.
        asked: a wanted angle (radian per step), some weight decay, and the line under it; None where none is wanted.
    """
    found = _rescalings(peak, stages)
    if asked is not None:
        found.append(_for_the_angle(*asked))
    if peak.trust is None and peak.angular_update and total is not None and 0 < total < 3 and weight_decay > 0:
        found.append(
            f"to pass three time constants within this run: `--weight-decay {weight_decay * 3 / total:.2g}` "
            f"(angle {peak.angular_update * math.sqrt(3 / total):.3g} rad per step)"
        )
    return found


def _rescalings(peak: Line, stages: Sequence[Stage]) -> list[str]:
    """Where the learning rate drops: by how much to rescale the norms, once for all drops of one size."""
    if not peak.angular_update or peak.trust is not None or peak.norm_exponent is None or peak.norm_exponent <= -1:
        return []
    exponent = 1 / (2 * (1 + peak.norm_exponent))
    drops: dict[str, tuple[float, list[float]]] = {}
    for before, after in pairwise(stages):
        if not before.angular_update or not after.angular_update or after.lr_start * _DROP >= before.lr_end:
            continue
        ratio = before.lr_end / after.lr_start
        # a corrected decay brings the line down with the rate itself, and needs nothing
        if math.isclose((before.angular_update / after.angular_update) ** 2, ratio, rel_tol=0.05):
            drops.setdefault(f"{ratio:.3g}", (ratio, []))[1].append(after.first_epoch)
    found = []
    for shown, (ratio, epochs) in drops.items():
        factor = ratio**-exponent
        when = f"epoch{'s' if len(epochs) > 1 else ''} " + " and ".join(f"{round(epoch, 1):g}" for epoch in epochs)
        found.append(
            f"at {when} (lr / {shown}) multiply weight norms by {shown}^-{exponent:g} = {factor:.3g} and the momentum "
            f"buffer by {1 / factor:.3g}: `smdtrack.rescale_weight_norms(optimizer, {factor:.4g})` puts the angle on "
            "its new line at once"
        )
    return found


def _for_the_angle(wanted: float, decay: float, line: Line) -> str:
    """Delta^2 goes as the weight decay, but for trust ratios, where the angle goes as the learning rate alone."""
    if not line.angular_update:
        return f"for {wanted:.3g} rad per step: not known, there is no equilibrium line to go by"
    if line.trust is not None:
        return (
            f"for {wanted:.3g} rad per step: `--lr` times {wanted / line.angular_update:.3g}; a trust ratio sets "
            "the angle, whatever the weight decay"
        )
    return (
        f"for {wanted:.3g} rad per step at the largest lr: "
        f"`--weight-decay {decay * (wanted / line.angular_update) ** 2:.3g}`"
    )
