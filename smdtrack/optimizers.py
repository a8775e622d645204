"""What every room must know of a torch optimizer: the one inside a wrapper, its state, its parameter groups."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


def inner_optimizer(optimizer: Optimizer) -> Optimizer:
    """Returns the optimizer that timm's Lookahead wraps, and any other optimizer itself."""
    inner: Optimizer = getattr(optimizer, "_base_optimizer", optimizer)
    return inner


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """Returns all parameters of all groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def group_indices(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> list[int | None]:
    """Returns the index of each parameter's group; None for one that the optimizer does not hold."""
    indices = {id(p): index for index, group in enumerate(optimizer.param_groups) for p in group["params"]}
    return [indices.get(id(parameter)) for parameter in parameters]


def state_of(optimizer: Optimizer) -> dict[Any, Any]:
    """Returns the state per parameter, for timm's Lookahead that of the optimizer inside it."""
    state: dict[Any, Any] = inner_optimizer(optimizer).state
    return state


def steps_taken(optimizer: Optimizer) -> int | None:
    """Returns how many steps an optimizer counts behind it, also after a checkpoint; None where it keeps no count.

    Adam and its kin count in each parameter's state, LAMB and Adan in the group; SGD does not count. Waits for the
    device where the counter lies there: ask once, at the start.
    """
    entries = [entry for entry in state_of(optimizer).values() if isinstance(entry, dict)]
    counters = [entry.get("step") for entry in [*entries, *optimizer.param_groups]]
    counts = [int(count) for count in counters if isinstance(count, (int, float, torch.Tensor))]
    return max(counts, default=None)


def snapshot_of_group(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group as it is during this step; a tensor (a capturable learning rate) is copied where it lies."""
    return {
        key: value.detach().clone() if isinstance(value, torch.Tensor) else value
        for key, value in group.items()
        if key != "params"
    }


def numbers_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group's hyper-parameters with tensors as numbers; waits for the device where one lies there."""
    return {
        key: value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
        for key, value in group.items()
        if key != "params"
    }
