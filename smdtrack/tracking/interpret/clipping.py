"""Decides from ties in the gradients whether a training clips them by value or adaptively."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from smdtrack.record.run import Floats

Clipping = Literal["value", "adaptive"]

#: Smallest number of tied filters that shows adaptive clipping. Unclipped gradients have one largest ratio, and ties
#: within the tolerance of the count are rare.
_MIN_TIED_FILTERS = 3
#: Smallest number of tied elements that shows clipping by value, and the smallest share of a weight's elements.
_MIN_TIED_ELEMENTS = 4
_MIN_TIED_SHARE = 1e-3

MEANING: Mapping[Clipping, str] = {
    "value": "gradients are clipped by value, so that they are no longer orthogonal to the weights: the lines are"
    " approximate",
    "adaptive": "gradients are clipped in proportion to the weights' norms (AGC): no equilibrium line holds, only the"
    " drift-corrected one",
}


def find_clipping(tied_elements: Floats, tied_filters: Floats, sizes: Floats) -> Clipping | None:
    """Returns the kind of clipping that the ties of one step show; None if they show none.

    At least half of the weights that were looked at must show it (of up to four weights, two).

    Args:
        tied_elements: Per weight, the number of gradient elements with the largest absolute value; NaN where not
            counted.
        tied_filters: Per weight, the number of filters with the largest ratio of gradient norm to weight norm; NaN
            where not counted.
        sizes: Per weight, its number of elements.
    """
    with np.errstate(invalid="ignore"):
        by_value = np.count_nonzero(tied_elements >= np.maximum(_MIN_TIED_ELEMENTS, _MIN_TIED_SHARE * sizes))
        adaptive = np.count_nonzero(tied_filters >= _MIN_TIED_FILTERS)
    counted = np.count_nonzero(np.isfinite(tied_elements))
    if by_value and 2 * by_value >= min(counted, 4):
        return "value"
    return "adaptive" if adaptive and 2 * adaptive >= min(counted, 4) else None
