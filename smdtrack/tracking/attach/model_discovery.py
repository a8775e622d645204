"""Finds the model that an optimizer trains, and the parameters that other optimizers hold."""

import gc
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.optim import Optimizer

from smdtrack.optimizers import parameters_of


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
