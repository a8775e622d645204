"""The memory of the updates and the two forces on the norm, from the inner products that each sampled step measures.

All functions take numbers or numpy arrays. Inner products of one step are those of the weight w before the step and its
change d: `<w, w>`, `<w, d>` and `<d, d>`. A single step scatters far more than it tells. For several steps, pass the
means of `<w, d>/<w, w>` and `<d, d>/<w, w>`, and 1 for `<w, w>`.
"""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", float, NDArray[np.float64])


def decay_force(decay_rate: Number, coupled: bool) -> Number:
    """Returns by how much weight decay alone shrinks ||w||^2 per step, relative.

    It is `1 - (1 - g)^2` if decay multiplies the weight, and `2 g` if it is part of the gradient.

    Args:
        decay_rate: g, the relative shrinking of the weight per step.
        coupled: Whether weight decay is part of the gradient.
    """
    return 2 * decay_rate if coupled else 2 * decay_rate - decay_rate * decay_rate


def growth_force(
    weight_squared: Number, weight_change: Number, change_squared: Number, decay_rate: Number, coupled: bool
) -> Number:
    """Returns by how much the updates alone make ||w||^2 grow per step, relative; at equilibrium, the decay force.

    Derived here: ||w||^2 changes by `2 <w, d> + <d, d>`, and what weight decay takes away is known.
    """
    return (2 * weight_change + change_squared) / weight_squared + decay_force(decay_rate, coupled)


def measured_memory(
    weight_squared: Number, weight_change: Number, change_squared: Number, decay_rate: Number, coupled: bool
) -> Number:
    """Returns R of the updates as measured, to be compared with the line's R of white gradients.

    Derived here. Decoupled: the update is `u = -(d + g w)`. Its overlap with the weight `A = -<w, u>/|u|^2` follows
    from the inner products, and `R = 1 + 2 A`. Coupled: decay is contained in the update, and R is the growth of
    ||w||^2 by the updates over the squared change.

    With R of the same steps, the drift-corrected line agrees with the measured angle by construction and tests nothing.
    Use R of earlier steps for a prediction.
    """
    if coupled:
        growth = growth_force(weight_squared, weight_change, change_squared, decay_rate, coupled)
        return growth * weight_squared / change_squared
    along = weight_change + decay_rate * weight_squared
    squared = change_squared + 2 * decay_rate * weight_change + decay_rate * decay_rate * weight_squared
    return 1 + 2 * along / squared
