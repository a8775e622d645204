"""Finds the model behind an optimizer, and names for the optimizer's parameters."""

import gc
from collections.abc import Iterable

from torch import nn
from torch.optim import Optimizer

from smdtrack.names import canonical_name


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """Returns all parameters of all groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def models_of(optimizer: Optimizer) -> list[nn.Module]:
    """Returns the living modules that hold all of an optimizer's parameters that need a gradient, smallest first.

    The smallest root is the model itself: wrappers (DDP, a compiled module, a training task) hold one module more. The
    list is empty where no one module holds them all.
    """
    wanted = {id(parameter) for parameter in parameters_of(optimizer) if parameter.requires_grad}
    if not wanted:
        return []
    found = []
    for thing in gc.get_objects():
        # `type(thing)`, not isinstance: a lazy proxy among all of a process's objects must not be woken.
        if issubclass(type(thing), nn.Module):
            module: nn.Module = thing
            try:
                held = {id(parameter) for parameter in module.parameters()}
            except (AttributeError, TypeError):  # a module whose __init__ is still under way, or failed
                continue
            if wanted <= held:
                found.append((sum(1 for _ in module.modules()), module))
    return [module for _, module in sorted(found, key=lambda pair: pair[0])]


def parameter_names(model: nn.Module) -> dict[int, str]:
    """Returns `id(parameter) -> canonical name`; a tied parameter has its first name."""
    return {id(parameter): canonical_name(name) for name, parameter in model.named_parameters()}


def group_indices(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> list[int | None]:
    """Returns the index of each parameter's group; None for one that the optimizer does not hold."""
    indices = {id(p): index for index, group in enumerate(optimizer.param_groups) for p in group["params"]}
    return [indices.get(id(parameter)) for parameter in parameters]
