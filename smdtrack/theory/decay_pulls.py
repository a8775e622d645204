"""The pull of weight decay on the squared norm of a weight when decay is divided by the optimizer's denominator."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from smdtrack.geometry import wide
from smdtrack.theory.denominators import Denominators

#: Elements of weights and denominators that are held at a time, which bounds the extra memory at 32 MB in fp32.
BATCH = 4_000_000


@torch.no_grad()
def decay_pulls(
    denominators: Denominators,
    parameters: Sequence[Tensor],
    states: Sequence[Mapping[str, Any]],
    group: Mapping[str, Any],
) -> list[Tensor]:
    """Returns `<w, w/denom>` per weight, a 0-d float64 tensor on the weight's device, without waiting for the device.

    It is a plain sum over elements, so that the results for the shards of a weight add up. Divided by `<w, w>` it is
    the state factor of `Family.line`.

    Args:
        denominators: Reads what the optimizer divides by from its state.
        parameters: The weights, all on one device.
        states: The optimizer's state for each, after at least one step.
        group: Their parameter group.
    """
    pulls: list[Tensor] = []
    for some in _batches(parameters):
        weights = wide([parameter.detach() for parameter in parameters[some]])
        pulled = torch._foreach_mul(weights, weights)
        torch._foreach_div_(pulled, denominators(states[some], group))
        # The elements are not negative, so their L1 norm is their sum; the fused kernel adds it up in float64.
        pulls += torch._foreach_norm(pulled, 1, dtype=torch.float64)
    return pulls


def _batches(parameters: Sequence[Tensor]) -> Iterator[slice]:
    """Yields slices of consecutive weights with at most `BATCH` elements together, or one larger weight."""
    first, room = 0, BATCH
    for place, parameter in enumerate(parameters):
        if parameter.numel() > room and place > first:
            yield slice(first, place)
            first, room = place, BATCH
        room -= parameter.numel()
    if parameters:
        yield slice(first, len(parameters))
