"""Traces that clipped gradients carry, so that a line is not drawn where it does not hold.

No hook sees the clipping itself. Norm clipping keeps directions and leaves no trace, nor does it matter. Clipping by
value leaves many elements at exactly the same extreme, and a gradient that is not orthogonal to the weight any more.
Adaptive clipping (AGC) leaves many filters at exactly the same ratio of gradient norm to weight norm: the gradient is
then proportional to `||w||`, and no norm is an equilibrium.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

#: Elements looked at per sample: clipping goes over all weights alike, so that the small ones tell.
BUDGET = 65536
_AGC_FLOOR = 1e-3


def watched_columns(weights: Mapping[int, Tensor]) -> list[int]:
    """Returns the columns of the smallest weights that the budget allows, in fp32."""
    by_size = sorted((weight.numel(), column) for column, weight in weights.items() if weight.dtype == torch.float32)
    columns: list[int] = []
    spent = 0
    for size, column in by_size:
        if spent + size > BUDGET:
            break
        columns.append(column)
        spent += size
    return columns


@torch.no_grad()
def traces(weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Returns, as 0-d tensors, how many elements and how many filters tie for the extreme; 0 for a zero gradient."""
    size = gradient.abs()
    extreme = size.amax()
    elements = ((size == extreme) & (extreme > 0)).sum(dtype=torch.float64)
    # As AGC takes a unit: all but the first dimension.
    over, under = (torch.linalg.vector_norm(x.detach(), dim=tuple(range(1, x.ndim))) for x in (gradient, weight))
    ratio = over / under.clamp_min(_AGC_FLOOR)
    most = ratio.amax()
    filters = ((ratio >= most * (1 - 1e-5)) & (most > 0)).sum(dtype=torch.float64)
    return elements, filters
