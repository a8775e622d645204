"""Finds what a model's modules hold besides parameters and buffers: tensors, functions, locks, other modules."""

import functools
import types
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

_MOST_DEPTH = 6
_MOST_VALUES = 100_000
_ATOMIC = (str, bytes, int, float, complex, bool, type(None), type, types.ModuleType, types.CodeType, Tensor)


def values_within(roots: Iterable[Any], seen: set[int] | None = None) -> Iterator[Any]:
    """Yields values and everything that they refer to, each once: containers, attributes, closures, defaults.

    Modules are yielded but not entered. Strings and numbers are not yielded.

    Args:
        roots: Where to begin.
        seen: `id`s of values that were yielded before; those that are yielded now are added.
    """
    seen = set() if seen is None else seen
    waiting: deque[tuple[Any, int]] = deque((root, 0) for root in roots)
    while waiting and len(seen) < _MOST_VALUES:
        value, depth = waiting.popleft()
        if id(value) in seen or (isinstance(value, _ATOMIC) and not isinstance(value, Tensor)):
            continue
        seen.add(id(value))
        yield value
        if depth < _MOST_DEPTH:
            waiting.extend((item, depth + 1) for item in _contents(value))


def _contents(value: Any) -> Iterable[Any]:
    if isinstance(value, (Tensor, nn.Module)):
        return ()
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return list(value)
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if isinstance(value, types.FunctionType):
        return [*cell_contents(value), *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    return list(getattr(value, "__dict__", {}).values())


def cell_contents(function: types.FunctionType) -> list[Any]:
    """Returns the variables that a function's closure holds; an empty cell is left out."""
    return [cell.cell_contents for cell in function.__closure__ or () if not is_empty(cell)]


def is_empty(cell: types.CellType) -> bool:
    """Whether the variable of a closure has no value yet."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return True
    return False
