"""The two hooks around every optimizer step of the process: all that smdtrack puts into somebody's training."""

import os
import sys
import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from smdtrack.notices import notify


class StepListener(Protocol):
    """Hears of each outermost optimizer step; must not raise."""

    def before_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """Gradients are accumulated, reduced, unscaled (unless fused) and clipped; weights are still the old ones."""

    def after_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """Weights are the new ones."""


def add_listener(listener: StepListener) -> None:
    """Calls a listener around every step of every optimizer from now on, also when added in the middle of a step."""
    _hooks.add(listener)


def remove_listener(listener: StepListener) -> None:
    """Stops calling a listener; one that is not there is no error."""
    _hooks.remove(listener)


class _StepHooks:
    """Calls back before and after each outermost step.

    Steps nest (Lookahead steps its base optimizer inside its own step, a subclass calls its parent's), so only the
    outermost counts. The hooks are torch's own, for all optimizers of the process: they fire once a step for every
    optimizer class, and survive schedulers and `torch.compile`, which steps around them. They are in place while there
    are listeners, and are never taken out from inside a step, where torch iterates over them.
    """

    def __init__(self) -> None:
        self._listeners: list[StepListener] = []
        self._handles: list[RemovableHandle] = []
        self._told_of_one_graph = False
        self._local = threading.local()

    def add(self, listener: StepListener) -> None:
        self._listeners = [*self._listeners, listener]
        if not self._handles:
            self._told_of_one_graph = False
            self._handles = [
                register_optimizer_step_pre_hook(_not_compiled(self._pre)),
                register_optimizer_step_post_hook(_not_compiled(self._post)),
            ]

    def remove(self, listener: StepListener) -> None:
        self._listeners = [other for other in self._listeners if other is not listener]
        if not self._listeners and not self._stack():
            for handle in self._handles:
                handle.remove()
            self._handles = []

    def forget(self) -> None:
        """In a forked child: what the parent watches is the parent's."""
        self._listeners = []
        if not self._stack():
            for handle in self._handles:
                handle.remove()
            self._handles = []

    def tell_of_one_graph(self) -> None:
        """Says once that a step goes on unmeasured."""
        if not self._told_of_one_graph:
            self._told_of_one_graph = True
            notify(
                "an optimizer step compiled with fullgraph=True is not measured: nothing may be called inside it;"
                " training goes on"
            )

    def _pre(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stack = self._stack()
        if stack:
            # A step that raised never came to its post-hook: it is not under way any more.
            del stack[_steps_under_way() - 1 :]
        stack.append(weakref.ref(optimizer))
        if len(stack) == 1:
            for listener in self._listeners:
                listener.before_step(optimizer, _has_closure(args, kwargs))

    def _post(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stack = self._stack()
        depth = next((index for index in reversed(range(len(stack))) if stack[index]() is optimizer), None)
        if depth is None:
            return
        if depth == 0:
            for listener in self._listeners:
                listener.after_step(optimizer, _has_closure(args, kwargs))
        del stack[depth:]

    def _stack(self) -> list[weakref.ref[Optimizer]]:
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        stack: list[weakref.ref[Optimizer]] = self._local.stack
        return stack


def _steps_under_way() -> int:
    """How many hooked steps, this one included, are among the callers; torch runs each in a wrapper of its own."""
    count = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        count += "wrapper" in code.co_name and code.co_filename == torch_optimizer.__file__
        frame = frame.f_back
    return max(count, 1)


def _not_compiled(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook that a compiled step calls as it is: to trace it takes half a minute, and measures nothing.

    Where the step must become one graph (`fullgraph=True`) there is no such call, and a hook that insisted would end
    the training. There it is left out, and that is said once.
    """

    def call(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hook(optimizer, args, kwargs)

    # Torch's own decorator, not `torch.compiler.disable`, which imports the compiler at once.
    without_dynamo: Callable[..., Callable[..., None]] = getattr(torch, "_disable_dynamo", torch.compiler.disable)
    uncompiled = without_dynamo(call)

    def call_unless_one_graph(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling() and _must_be_one_graph():
            return
        uncompiled(optimizer, args, kwargs)

    return call_unless_one_graph


def _must_be_one_graph() -> bool:
    """Whether the step that is being compiled may not call anything uncompiled; the compiler asks while it traces."""
    try:
        from torch._dynamo.symbolic_convert import InstructionTranslator

        tracer = InstructionTranslator.current_tx()
        root = getattr(tracer.output, "root_tx", tracer)
        one_graph = bool(root.one_graph or getattr(tracer, "error_on_graph_break", False))
    except Exception:  # a version of torch that keeps it elsewhere: rather nothing measured than a training ended
        one_graph = True
    if one_graph:
        _hooks.tell_of_one_graph()
    return one_graph


# What `torch.compiler.assume_constant_result` sets, without importing the compiler: run by it, not traced.
_must_be_one_graph._dynamo_marked_constant = True  # type: ignore[attr-defined]


_hooks = _StepHooks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_hooks.forget)


def _has_closure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Hooks get the step's arguments, with or without the optimizer itself in front, as torch's versions differ."""
    return any(callable(arg) and not isinstance(arg, Optimizer) for arg in args) or kwargs.get("closure") is not None
