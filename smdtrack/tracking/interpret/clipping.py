"""Decides from the traces in the gradients whether a script clips them by value or adaptively."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from smdtrack.record.run import Floats

Clipping = Literal["value", "adaptive"]

_TIED_FILTERS = 3
_TIED_ELEMENTS = 4

MEANING: Mapping[Clipping, str] = {
    "value": "gradients are clipped by value, which bends them out of the weights' tangent: the lines are approximate",
    "adaptive": "gradients are clipped in proportion to the weights' norms (AGC): no equilibrium line holds, only the"
    " drift-corrected one",
}


def clipping_seen(elements: Floats, filters: Floats, sizes: Floats) -> Clipping | None:
    """Tells clipping from the traces of one step.

    Args:
        elements: Elements tied for the extreme, per weight; NaN where not looked at.
        filters: Filters tied for the largest ratio, likewise.
        sizes: Elements of each weight.
    """
    with np.errstate(invalid="ignore"):
        by_value = np.count_nonzero(elements >= np.maximum(_TIED_ELEMENTS, 1e-3 * sizes))
        adaptive = np.count_nonzero(filters >= _TIED_FILTERS)
    looked_at = np.count_nonzero(np.isfinite(elements))
    if by_value and 2 * by_value >= min(looked_at, 4):
        return "value"
    return "adaptive" if adaptive and 2 * adaptive >= min(looked_at, 4) else None
