"""Finds the model that an optimizer trains, and the parameters that other optimizers hold."""

import gc
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.optim import Optimizer

from smdtrack.optimizers import parameters_of


def models_of(optimizer: Optimizer) -> list[nn.Module]:
    """Returns the modules that hold an optimizer's parameters, smallest first.

    The smallest one is the model itself: its wrappers (DDP, a compiled module, a training task) have more submodules.
    If no module holds all parameters, for example because the loss has parameters too, the modules that hold the most
    are returned. The list is empty if no module holds any.
    """
    wanted = {id(parameter) for parameter in parameters_of(optimizer)}
    if not wanted:
        return []
    found = []
    for module in _objects_of(nn.Module):
        try:
            held = {id(parameter) for parameter in module.parameters()}
        except Exception:  # a module whose __init__ has not finished, or has failed
            continue
        common = len(wanted & held)
        if common:
            found.append((-common, sum(1 for _ in module.modules()), module))
    most = min((entry[0] for entry in found), default=0)
    return [entry[2] for entry in sorted(found, key=lambda entry: entry[:2]) if entry[0] == most]


def held_by_others(optimizer: Optimizer) -> set[int]:
    """Returns the `id`s of parameters that only other optimizers hold, not counting those inside this one."""
    own = {id(parameter) for parameter in parameters_of(optimizer)}
    others = set()
    for other in _objects_of(Optimizer):
        if other is not optimizer and "param_groups" in other.__dict__:
            others |= {id(parameter) for parameter in parameters_of(other)}
    return others - own


def _objects_of(kind: type) -> Iterator[Any]:
    # `type(thing)` instead of isinstance: isinstance would make lazy proxy objects load what they stand for.
    return (thing for thing in gc.get_objects() if issubclass(type(thing), kind))
