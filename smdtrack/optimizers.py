"""Helpers for torch optimizers: the one inside a wrapper, its state and its parameter groups."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


def inner_optimizer(optimizer: Optimizer) -> Optimizer:
    """Returns the optimizer that timm's Lookahead wraps; any other optimizer is returned as it is."""
    inner: Optimizer = getattr(optimizer, "_base_optimizer", optimizer)
    return inner


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """Returns the parameters of all groups, in order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def group_indices(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> list[int | None]:
    """Returns the index of each parameter's group; None if the optimizer does not hold the parameter."""
    indices = {id(p): index for index, group in enumerate(optimizer.param_groups) for p in group["params"]}
    return [indices.get(id(parameter)) for parameter in parameters]


def state_of(optimizer: Optimizer) -> dict[Any, Any]:
    """Returns the state by parameter; for timm's Lookahead, that of the optimizer inside it."""
    state: dict[Any, Any] = inner_optimizer(optimizer).state
    return state


def steps_taken(optimizer: Optimizer) -> int | None:
    """Returns the number of steps that an optimizer has counted, restored ones included; None if it does not count.

    Adam and its relatives count in the state of each parameter, LAMB and Adan in the parameter group. SGD does not
    count. If a counter is on an accelerator, reading it waits for the device: call this once, at the start.
    """
    entries = [entry for entry in state_of(optimizer).values() if isinstance(entry, dict)]
    counters = [entry.get("step") for entry in [*entries, *optimizer.param_groups]]
    counts = [int(count) for count in counters if isinstance(count, (int, float, torch.Tensor))]
    return max(counts, default=None)


def snapshot_of_group(group: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of a group's hyper-parameters; a tensor (a capturable learning rate) is copied on its device."""
    return {
        key: value.detach().clone() if isinstance(value, torch.Tensor) else value
        for key, value in group.items()
        if key != "params"
    }


def numbers_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a group's hyper-parameters with tensors as numbers; waits for the device if a tensor is on one."""
    return {
        key: value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
        for key, value in group.items()
        if key != "params"
    }


def cycle_of(optimizer: Optimizer) -> int:
    """Returns the number of steps after which an optimizer repeats itself: k for timm's Lookahead, 1 for others."""
    return max((int(group.get("lookahead_k", 1)) for group in optimizer.param_groups), default=1)
