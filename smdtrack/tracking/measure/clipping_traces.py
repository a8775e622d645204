"""Counts ties in the gradients, which show that the training clips them.

No hook sees the clipping itself, but its effect stays in the gradients:

* Clipping by norm multiplies all gradients by one number. It leaves no trace, and the lines need none.
* Clipping by value sets many elements to exactly the same extreme. The gradient is then no longer orthogonal to the
  weight.
* Adaptive clipping (AGC) brings many filters to exactly the same ratio of gradient norm to weight norm. The gradient is
  then proportional to `||w||`, and no norm is an equilibrium.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

#: Number of elements that are looked at per sample. Clipping treats all weights alike, so the small ones suffice.
BUDGET = 65536
#: The smallest weight norm that AGC divides by, as in timm.utils.agc.
_AGC_EPS = 1e-3


def columns_to_search(weights: Mapping[int, Tensor]) -> list[int]:
    """Returns the columns of the smallest fp32 weights whose elements together stay within `BUDGET`."""
    by_size = sorted((weight.numel(), column) for column, weight in weights.items() if weight.dtype == torch.float32)
    columns: list[int] = []
    elements = 0
    for size, column in by_size:
        if elements + size > BUDGET:
            break
        columns.append(column)
        elements += size
    return columns


@torch.no_grad()
def count_ties(weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Counts elements and filters that share the largest value; both counts are 0 for a gradient of zeros.

    Returns:
        As 0-d float64 tensors, the number of elements with the largest absolute value, and the number of filters with
        the largest ratio of gradient norm to weight norm.
    """
    size = gradient.abs()
    largest = size.amax()
    elements = ((size == largest) & (largest > 0)).sum(dtype=torch.float64)
    # AGC takes the norm over all dimensions but the first.
    over, under = (torch.linalg.vector_norm(x.detach(), dim=tuple(range(1, x.ndim))) for x in (gradient, weight))
    ratio = over / under.clamp_min(_AGC_EPS)
    largest_ratio = ratio.amax()
    filters = ((ratio >= largest_ratio * (1 - 1e-5)) & (largest_ratio > 0)).sum(dtype=torch.float64)
    return elements, filters
