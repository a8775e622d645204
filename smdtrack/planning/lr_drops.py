"""Drops of the learning rate: after them the angle is off its new line until the norm has followed."""

import math
from collections.abc import Sequence
from itertools import pairwise

from smdtrack.planning.finding import Finding
from smdtrack.planning.stages import Stage
from smdtrack.theory.line import Line

#: A fall of the learning rate by a smaller factor than this between two stages is part of a smooth decay.
_LEAST_DROP = 1.5


def review_drops(peak: Line, stages: Sequence[Stage]) -> list[Finding]:
    """Returns, for each size of drop of the learning rate, the factor that puts the angle on its new line at once."""
    if peak.norm_exponent is None or peak.norm_exponent <= -1:
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
    found = []
    for shown, (ratio, epochs) in drops.items():
        factor = ratio**-exponent
        when = f"epoch{'s' if len(epochs) > 1 else ''} " + joined([f"{round(epoch, 1):g}" for epoch in epochs])
        found.append(
            Finding(
                "drop",
                "note",
                f"at {when} the learning rate falls by {shown}: the angle first falls by {shown}, its line only by "
                f"{math.sqrt(ratio):.3g}",
                f"there multiply weight norms by {factor:.3g} and the momentum buffer by {1 / factor:.3g}: "
                f"`smdtrack.rescale_weight_norms(optimizer, {factor:.4g})` puts the angle on its new line at once",
            )
        )
    return found


def joined(words: Sequence[str]) -> str:
    """Returns words as an enumeration: `a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
