"""The lines of an optimizer outside of a tracked training: one per parameter group."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from smdtrack.optimizers import state_of
from smdtrack.theory.family import Family, identify
from smdtrack.theory.line import Line


def equilibrium_lines(optimizer: Optimizer) -> list[Line]:
    """Returns one line per parameter group, for the shape of the group's first weight with two dimensions or more.

    If weight decay is divided by a denominator from the optimizer's state, the state is read; it exists after the first
    step.

    Example:
        >>> import torch, smdtrack
        >>> weight = torch.nn.Parameter(torch.randn(8, 8))
        >>> sgd = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=1e-4)
        >>> round(smdtrack.equilibrium_lines(sgd)[0].angular_update, 6)
        0.003244
    """
    family, state = identify(optimizer), state_of(optimizer)
    return [_line_of_group(family, group, state) for group in optimizer.param_groups]


def _line_of_group(family: Family, group: Mapping[str, Any], state: Mapping[Any, Any]) -> Line:
    weights = [parameter for parameter in group["params"] if parameter.ndim >= 2] or list(group["params"])
    with_state = [weight for weight in weights[:1] if state.get(weight)]
    pulls = family.decay_pulls(with_state, [state[weight] for weight in with_state], group)
    factor = None
    if pulls:
        factor = float(pulls[0] / torch.linalg.vector_norm(with_state[0].detach(), dtype=torch.float64).square())
    return family.line(group, tuple(weights[0].shape) if weights else (1, 1), state_factor=factor)
