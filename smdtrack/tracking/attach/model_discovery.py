"""Finds the models that an optimizer trains, and the parameters that other optimizers hold."""

import gc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from smdtrack.optimizers import inner_optimizer, parameters_of

#: Wrappers that pass their inputs on to one module, by class name, with the name of that module.
_WRAPPERS = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "OptimizedModule": "_orig_mod",
}
#: Containers whose owner may use their modules in another way than one after the other.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_MOST_CANDIDATES = 5


@dataclass(frozen=True)
class Discovery:
    """A model that an optimizer trains.

    Attributes:
        candidates: Modules that hold the same share of the optimizer's parameters, smallest first. The larger ones
            wrap the smallest, or use it as a part.
        ambiguous: Whether only the next forward pass tells which candidate is the model.
    """

    candidates: Sequence[nn.Module]
    ambiguous: bool


def models_of(optimizer: Optimizer) -> list[Discovery]:
    """Returns the models that hold an optimizer's parameters; several if no single module holds them all.

    Parameters that no module holds, such as those of a loss, are passed over.
    """
    wanted = {id(parameter) for parameter in parameters_of(optimizer)}
    held = [(module, ids) for module in _objects_of(nn.Module) if (ids := _ids_of(module)) & wanted]
    elsewhere = {id(parameter) for other in other_optimizers(optimizer) for parameter in parameters_of(other)} - wanted
    found: list[Discovery] = []
    while wanted:
        most = max((len(ids & wanted) for _, ids in held), default=0)
        if not most:
            break
        best = [(module, ids) for module, ids in held if len(ids & wanted) == most]
        best.sort(key=lambda entry: sum(1 for _ in entry[0].modules()))
        # Other modules with equally many, such as the second model of a chain, are found in the next round.
        same = best[0][1] & wanted
        best = [(module, ids) for module, ids in best if ids & wanted == same]
        found.append(_discovery(best, elsewhere))
        wanted -= same
    return found


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns the module inside DDP, DataParallel and `torch.compile`; any other module itself."""
    while type(model).__name__ in _WRAPPERS:
        inside = model._modules.get(_WRAPPERS[type(model).__name__])
        if inside is None:
            break
        model = inside
    return model


def other_optimizers(optimizer: Optimizer) -> list[Optimizer]:
    """Returns all living optimizers but this one and those that it wraps."""
    others = [other for other in _objects_of(Optimizer) if "param_groups" in other.__dict__]
    return [other for other in others if other is not optimizer and inner_optimizer(optimizer) is not other]


def held_by_others(optimizer: Optimizer) -> set[int]:
    """Returns the `id`s of parameters that only other optimizers hold, not counting those inside this one."""
    own = {id(parameter) for parameter in parameters_of(optimizer)}
    return {id(parameter) for other in other_optimizers(optimizer) for parameter in parameters_of(other)} - own


def _discovery(best: Sequence[tuple[nn.Module, set[int]]], elsewhere: set[int]) -> Discovery:
    real = [(module, ids) for module, ids in best if type(module).__name__ not in _WRAPPERS]
    if not real:
        real = list(best)
    smallest, ids = real[0]
    owners = [module for module, _ in real[1:] if module is not smallest]
    is_part = isinstance(smallest, _CONTAINERS)
    # Other optimizers hold further parameters of an owner: this one trains only a part of the model.
    shared = any(len(ids_of_owner & elsewhere) > len(ids & elsewhere) for _, ids_of_owner in real)
    ambiguous = bool(owners) and (is_part or shared)
    candidates = [module for module, _ in best]
    return Discovery(candidates if ambiguous else candidates[:_MOST_CANDIDATES], ambiguous)


def _ids_of(module: nn.Module) -> set[int]:
    try:
        return {id(parameter) for parameter in module.parameters()}
    except Exception:  # a module whose __init__ has not finished, or has failed
        return set()


def _objects_of(kind: type) -> Iterator[Any]:
    # `type(thing)` instead of isinstance: isinstance would make lazy proxy objects load what they stand for.
    return (thing for thing in gc.get_objects() if issubclass(type(thing), kind))


def holders(parameters: Iterable[nn.Parameter], optimizers: Sequence[Optimizer]) -> list[tuple[Optimizer, int] | None]:
    """Returns for each parameter the first of the optimizers that holds it, with the index of the group."""
    found: dict[int, tuple[Optimizer, int]] = {}
    for optimizer in optimizers:
        for index, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                found.setdefault(id(parameter), (optimizer, index))
    return [found.get(id(parameter)) for parameter in parameters]
