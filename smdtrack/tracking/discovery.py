"""Finds the model behind an optimizer, names for the optimizer's parameters, and how many steps it has taken."""

import gc
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from smdtrack.names import canonical_name


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """Returns all parameters of all groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def models_of(optimizer: Optimizer) -> list[nn.Module]:
    """Returns the living modules that hold an optimizer's parameters, smallest first.

    The smallest root is the model itself: wrappers (DDP, a compiled module, a training task) hold one module more.
    Where no one module holds them all (a loss with weights of its own), those that hold the most are returned; the
    list is empty where no module holds any.
    """
    wanted = {id(parameter) for parameter in parameters_of(optimizer)}
    if not wanted:
        return []
    found = []
    for module in _living(nn.Module):
        try:
            held = {id(parameter) for parameter in module.parameters()}
        except Exception:  # a module whose __init__ is still under way, or failed
            continue
        common = len(wanted & held)
        if common:
            found.append((-common, sum(1 for _ in module.modules()), module))
    most = min((entry[0] for entry in found), default=0)
    return [entry[2] for entry in sorted(found, key=lambda entry: entry[:2]) if entry[0] == most]


def held_by_others(optimizer: Optimizer) -> set[int]:
    """Returns the `id` of the parameters that other living optimizers hold, those inside this one (Lookahead) aside."""
    own = {id(parameter) for parameter in parameters_of(optimizer)}
    others = set()
    for other in _living(Optimizer):
        if other is not optimizer and "param_groups" in other.__dict__:
            others |= {id(parameter) for parameter in parameters_of(other)}
    return others - own


def _living(kind: type) -> Iterator[Any]:
    # `type(thing)`, not isinstance: a lazy proxy among all of a process's objects must not be woken.
    return (thing for thing in gc.get_objects() if issubclass(type(thing), kind))


def parameter_names(model: nn.Module) -> dict[int, str]:
    """Returns `id(parameter) -> canonical name`; a tied parameter has its first name."""
    return {id(parameter): canonical_name(name) for name, parameter in model.named_parameters()}


def group_indices(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> list[int | None]:
    """Returns the index of each parameter's group; None for one that the optimizer does not hold."""
    indices = {id(p): index for index, group in enumerate(optimizer.param_groups) for p in group["params"]}
    return [indices.get(id(parameter)) for parameter in parameters]


def state_of(optimizer: Optimizer) -> dict[Any, Any]:
    """Returns the state per parameter, for timm's Lookahead that of the optimizer inside it."""
    state: dict[Any, Any] = getattr(optimizer, "_base_optimizer", optimizer).state
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
