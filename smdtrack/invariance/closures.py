"""Copies functions together with their closures, so that a copied model does not compute with the original one."""

import copy
import functools
import types
from collections import deque
from typing import Any

from torch import Tensor, nn

from smdtrack.invariance.attribute_walk import is_empty

_CONTAINERS = (list, tuple, set, frozenset, dict, deque)


class FunctionCopies:
    """Copies of functions whose closure or default arguments refer to something, for `copy.deepcopy`.

    `deepcopy` shares functions. So `self.norm = lambda x: self.bn(x)` in a copied model still runs the original batch
    norm. Here each such function gets a copy with empty cells, which goes into deepcopy's memo. After the modules have
    been copied, `fill` puts their copies into the cells.
    """

    def __init__(self, memo: dict[int, Any]):
        self._memo = memo
        self._copies: list[tuple[types.FunctionType, types.FunctionType]] = []

    def add(self, function: types.FunctionType) -> types.FunctionType:
        """Returns the copy of a function, with empty cells for now; the function itself if it refers to nothing."""
        if id(function) in self._memo:
            found: types.FunctionType = self._memo[id(function)]
            return found
        cells = function.__closure__
        if not cells and not function.__defaults__ and not function.__kwdefaults__:
            return function
        closure = None if cells is None else tuple(types.CellType() for _ in cells)
        fresh = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__, closure
        )
        fresh.__kwdefaults__ = function.__kwdefaults__
        fresh.__dict__.update(function.__dict__)
        self._memo[id(function)] = fresh
        self._copies.append((function, fresh))
        return fresh

    def fill(self) -> None:
        """Fills cells and defaults with the copies of what the original functions refer to."""
        for function, fresh in self._copies:
            for cell, fresh_cell in zip(function.__closure__ or (), fresh.__closure__ or (), strict=True):
                if not is_empty(cell):
                    fresh_cell.cell_contents = self._copied(cell.cell_contents)
            if function.__defaults__:
                fresh.__defaults__ = tuple(self._copied(value) for value in function.__defaults__)
            if function.__kwdefaults__:
                fresh.__kwdefaults__ = {key: self._copied(value) for key, value in function.__kwdefaults__.items()}

    def _copied(self, value: Any) -> Any:
        if id(value) in self._memo:
            return self._memo[id(value)]
        if isinstance(value, (nn.Module, Tensor, functools.partial)):
            return copy.deepcopy(value, self._memo)
        if isinstance(value, types.MethodType):
            holder = self._copied(value.__self__)
            return value if holder is value.__self__ else types.MethodType(value.__func__, holder)
        if isinstance(value, dict) and type(value) is dict:
            self._memo[id(value)] = fresh = {}
            fresh.update({key: self._copied(item) for key, item in value.items()})
            return fresh
        if isinstance(value, _CONTAINERS):
            items = [self._copied(item) for item in value]
            try:
                fresh_container = type(value)(items)
            except TypeError:  # A named tuple or another subclass with arguments of its own.
                return copy.deepcopy(value, self._memo)
            self._memo[id(value)] = fresh_container
            return fresh_container
        return value


_OBSERVERS = ("wandb", "mlflow", "tensorboard", "lightning", "pytorch_lightning", "smdtrack", "torchinfo", "fvcore")
_RECORDING_METHODS = frozenset(
    {"append", "extend", "add", "update", "insert", "setdefault", "log", "info", "debug", "print", "write", "put"}
    | {"send", "record", "emit", "add_scalar", "add_histogram"}
)


def changes_what_a_module_computes(hook: Any) -> bool:
    """Whether a forward hook may replace a module's input or output, told by its code without running it.

    A hook that returns nothing only looks on. Neither does one change anything that returns the result of a recording
    method (`lambda module, args, out: outputs.append(out)`), or that belongs to a tracker's client.
    """
    function = hook
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, types.MethodType):
        function = function.__func__
    if not isinstance(function, types.FunctionType):
        function = getattr(type(function), "__call__", None)  # noqa: B004
        if not isinstance(function, types.FunctionType):
            return True
    if (function.__module__ or "").split(".")[0] in _OBSERVERS:
        return False
    return _returns_a_value(function.__code__)


def _returns_a_value(code: types.CodeType) -> bool:
    import dis

    instructions = [step for step in dis.get_instructions(code) if step.opname not in ("CACHE", "NOP", "EXTENDED_ARG")]
    for before, step in zip([None, *instructions], instructions, strict=False):
        if step.opname == "RETURN_CONST" and step.argval is not None:
            return True
        if step.opname != "RETURN_VALUE" or before is None:
            continue
        if before.opname == "LOAD_CONST" and before.argval is None:
            continue
        if before.opname.startswith("CALL") and _RECORDING_METHODS & set(code.co_names):
            continue
        return True
    return False
