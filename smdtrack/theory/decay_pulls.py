"""The pull of weight decay on the squared norm of a weight when decay is divided by the optimizer's denominator."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from smdtrack.geometry import wide
from smdtrack.theory.denominators import Denominators

#: Elements of weights and denominators that are held at a time, which bounds the extra memory at 32 MB in fp32.
BATCH = 4_000_000
#: An eps up to this (the usual ones are 1e-8 and 1e-10) is far below denominators: no further pass is spent on it.
_SMALL_EPS = 1e-7


@torch.no_grad()
def decay_pulls(
    denominators: Denominators,
    parameters: Sequence[Tensor],
    states: Sequence[Mapping[str, Any]],
    group: Mapping[str, Any],
    own_share: float = 0.0,
    eps_power: int = 1,
) -> list[Tensor]:
    """Returns `<w, w/denom>` per weight, a 0-d float64 tensor on the weight's device, without waiting for the device.

    It is a plain sum over elements, so that the results for the shards of a weight add up. Divided by `<w, w>` it is
    the state factor of `Family.line`.

    A large eps adds to it. The decay rate is `lr wd H (1 - own_share) <w, w/denom>/<w, w>`, because the denominator
    contains the gradient that it divides. eps does not contain it: derived here by differentiating `1/denom`, own_share
    is smaller by the factor `1 - eps/denom` if eps is added to the denominator, and `1 - eps/denom^2` if it is added to
    its square. Each element is multiplied by `1 + own_share/(1 - own_share) eps/denom^eps_power` to account for it.

    Args:
        denominators: Reads what the optimizer divides by from its state.
        parameters: The weights, all on one device.
        states: The optimizer's state for each, after at least one step.
        group: Their parameter group.
        own_share: See above.
        eps_power: See above.
    """
    eps = group.get("eps", 0.0)
    correction = own_share / (1 - own_share) * eps if isinstance(eps, float) and eps > _SMALL_EPS else 0.0
    pulls: list[Tensor] = []
    for some in _batches(parameters):
        weights = wide([parameter.detach() for parameter in parameters[some]])
        pulled = torch._foreach_mul(weights, weights)
        divisors = denominators(states[some], group)
        torch._foreach_div_(pulled, divisors)
        if correction:
            corrections = torch._foreach_pow(divisors, -float(eps_power))
            torch._foreach_mul_(corrections, correction)
            torch._foreach_add_(corrections, 1.0)
            torch._foreach_mul_(pulled, corrections)
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
