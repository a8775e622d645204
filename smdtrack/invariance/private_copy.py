"""A private copy of a model in float64 or float32; neither copying nor using it changes the original."""

import copy
import threading
import types
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from smdtrack.invariance.attribute_walk import values_within
from smdtrack.invariance.closures import FunctionCopies, changes_what_a_module_computes
from smdtrack.notices import SmdtrackError, first_line

_FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_OTHER_HOOKS = (
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_FLAGS_OF_HOOKS = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")
_CONTENTS = ("_parameters", "_buffers", "_modules")
_LOCKS = {type(threading.Lock()): threading.Lock, type(threading.RLock()): threading.RLock}


@dataclass(frozen=True)
class PrivateCopy:
    """A copy of a model.

    Attributes:
        model: The copy.
        parameters: Its parameters, by the `id` of the parameters that they were copied from.
        originals: `id`s of the original's parameters and buffers.
    """

    model: nn.Module
    parameters: dict[int, nn.Parameter]
    originals: frozenset[int]


def unwrapped(model: nn.Module) -> nn.Module:
    """Strips the wrappers of `torch.compile`, DataParallel and DistributedDataParallel.

    Raises:
        SmdtrackError: The model is scripted, or its parameters are sharded over processes.
    """
    while True:
        if isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = cast(nn.Module, model._orig_mod)
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            break
    if isinstance(model, torch.jit.ScriptModule):
        raise SmdtrackError(f"{type(model).__name__} is a scripted module; audit the module that it was scripted from")
    if type(model).__name__ == "FullyShardedDataParallel" or any(
        type(parameter).__name__ == "DTensor" for parameter in model.parameters()
    ):
        raise SmdtrackError("the parameters are sharded over processes; audit the model before it is sharded")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise SmdtrackError("the model is on the meta device, its parameters have no values; move it to a real device")
    if any(isinstance(parameter, nn.parameter.UninitializedParameter) for parameter in model.parameters()):
        raise SmdtrackError("the model has lazy parameters; run one forward pass before the audit")
    return model


class _Copier:
    """Fills `deepcopy`'s memo with everything that must not be copied in the ordinary way."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self._device = device
        self._dtype = dtype
        self.memo: dict[int, Any] = {}
        self.parameters: dict[int, nn.Parameter] = {}
        self.functions = FunctionCopies(self.memo)
        # The memo is keyed by id: what it refers to must live as long as it does.
        self._kept: list[Any] = []
        self._seen: set[int] = set()

    def converted(self, tensor: Tensor) -> Tensor:
        """Returns a detached copy on the device, in the audit's dtype if it is floating."""
        if tensor.is_meta:
            return tensor.detach()
        dtype = self._dtype if tensor.is_floating_point() else tensor.dtype
        if tensor.is_complex():
            dtype = torch.complex128 if self._dtype == torch.float64 else torch.complex64
        return tensor.detach().to(device=self._device, dtype=dtype, copy=True)

    def add_module(self, module: nn.Module) -> None:
        """Prepares the tensors, hooks, functions and locks of one module."""
        self._add_hooks(module)
        if module.__dict__.get("_compiled_call_impl") is not None:
            self.memo[id(module.__dict__["_compiled_call_impl"])] = None
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in self.parameters:
                floating = parameter.is_floating_point() or parameter.is_complex()
                fresh = nn.Parameter(self.converted(parameter), requires_grad=floating)
                self._set(parameter, fresh)
                self.parameters[id(parameter)] = fresh
        for buffer in module.buffers(recurse=False):
            self._set(buffer, self.converted(buffer))
        attributes = [value for key, value in module.__dict__.items() if key not in _CONTENTS and "_hooks" not in key]
        for value in values_within(attributes, self._seen):
            self._add_value(value)

    def _set(self, value: Any, replacement: Any) -> None:
        self.memo[id(value)] = replacement
        self._kept.append(value)

    def _add_value(self, value: Any) -> None:
        if id(value) in self.memo:
            return
        if isinstance(value, nn.Parameter):
            self._set(value, nn.Parameter(self.converted(value), requires_grad=value.is_floating_point()))
        elif isinstance(value, Tensor):
            self._set(value, self.converted(value))
        elif type(value) in _LOCKS:
            self._set(value, _LOCKS[type(value)]())
        elif isinstance(value, types.FunctionType):
            self.functions.add(value)
            self._kept.append(value)

    def _add_hooks(self, module: nn.Module) -> None:
        """Keeps hooks that are part of the function: torch's own reparametrisations and those that replace a value."""
        kept: set[Any] = set()
        for key in (*_FORWARD_HOOKS, *_OTHER_HOOKS):
            store = module.__dict__.get(key)
            if store is None:
                continue
            copies: OrderedDict[Any, Any] = OrderedDict()
            for handle, hook in store.items():
                if type(hook).__module__.startswith("torch.nn.utils"):
                    copies[handle] = copy.deepcopy(hook, {})
                elif key in _FORWARD_HOOKS and changes_what_a_module_computes(hook):
                    for value in values_within([hook]):
                        self._add_value(value)
                    copies[handle] = hook
            kept.update(copies)
            self._set(store, copies)
        for key in _FLAGS_OF_HOOKS:
            store = module.__dict__.get(key)
            if store is not None:
                self._set(store, OrderedDict((handle, flag) for handle, flag in store.items() if handle in kept))

    def copy_hooks(self, model: nn.Module) -> None:
        """Replaces the kept hooks of a finished copy by copies, whose modules are those of the copy."""
        for module in model.modules():
            for key in () if _is_scripted(module) else _FORWARD_HOOKS:
                store = module.__dict__.get(key) or {}
                for handle, hook in list(store.items()):
                    if not type(hook).__module__.startswith("torch.nn.utils"):
                        store[handle] = copy.deepcopy(hook, self.memo)

    def share_what_cannot_be_copied(self, model: nn.Module) -> None:
        """Lets the copy share attributes that `deepcopy` refuses: file handles, loggers, process groups."""
        for module in model.modules():
            for key, value in module.__dict__.items():
                if key in _CONTENTS or "_hooks" in key or isinstance(value, (nn.Module, Tensor)):
                    continue
                try:
                    copy.deepcopy(value, dict(self.memo))
                except Exception:
                    self._set(value, value)


def private_copy(model: nn.Module, device: torch.device, dtype: torch.dtype = torch.float64) -> PrivateCopy:
    """Copies a model to one floating dtype.

    The converted tensors are put into `deepcopy`'s memo beforehand. So float32 duplicates never exist, tied weights
    stay tied, and tensors with a history (`weight_norm` leaves one, a list of cached activations another) do not stop
    the copying. Forward hooks are copied if they can change what a module computes, others are left out. Functions are
    copied with their closures.

    Raises:
        SmdtrackError: The model cannot be copied.
    """
    copier = _Copier(device, dtype)
    for module in model.modules():
        if not _is_scripted(module):
            copier.add_module(module)
    memo = copier.memo
    try:
        for module in reversed(list(model.modules())):
            if _is_scripted(module):
                continue
            if isinstance(module.__dict__.get("_modules", {}).get("_orig_mod"), nn.Module):
                memo[id(module)] = copy.deepcopy(module._orig_mod, memo)
        try:
            duplicate = copy.deepcopy(model, memo)
        except Exception:
            copier.share_what_cannot_be_copied(model)
            duplicate = copy.deepcopy(model, memo)
        copier.functions.fill()
        copier.copy_hooks(duplicate)
    except Exception as error:
        raise SmdtrackError(f"cannot copy {type(model).__name__} for the audit: {first_line(error)}") from error
    parameters = dict(copier.parameters)
    parameters.update(_scripted_parameters(model, duplicate, dtype))
    originals = frozenset(id(tensor) for tensor in (*model.parameters(), *model.buffers()))
    return PrivateCopy(duplicate, parameters, originals)


def _is_scripted(module: nn.Module) -> bool:
    """Whether a module keeps its tensors in C++, where `deepcopy`'s memo cannot replace them."""
    return isinstance(module, torch.jit.ScriptModule)


def _scripted_parameters(model: nn.Module, duplicate: nn.Module, dtype: torch.dtype) -> dict[int, nn.Parameter]:
    """Converts scripted submodules of the copy, whose tensors `deepcopy`'s memo cannot replace."""
    found: dict[int, nn.Parameter] = {}
    copies = dict(duplicate.named_modules())
    for name, module in model.named_modules():
        if _is_scripted(module):
            # `deepcopy` clones scripted parameters, with a history.
            for parameter in copies[name].parameters():
                parameter.detach_()
            scripted = copies[name].to(dtype)
            own = dict(scripted.named_parameters(recurse=False))
            for key, parameter in module.named_parameters(recurse=False):
                own[key].requires_grad_(parameter.is_floating_point())
                found[id(parameter)] = cast(nn.Parameter, own[key])
    return found
