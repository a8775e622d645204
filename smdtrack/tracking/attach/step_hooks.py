"""The two hooks before and after every optimizer step of the process.

They are the only code that smdtrack adds to a training loop.
"""

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
    """Is called before and after each outermost optimizer step; must not raise.

    Attributes:
        ended: Whether it need not be called any more.
    """

    ended: bool

    def before_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """Called before the update; gradients are accumulated, reduced, unscaled (unless fused) and clipped."""

    def after_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """Called after the update."""


def add_listener(listener: StepListener) -> None:
    """Calls a listener before and after every step of every optimizer. It may be added in the middle of a step."""
    _hooks.add(listener)


def remove_listener(listener: StepListener) -> None:
    """Stops calling a listener. Does nothing if it was not added."""
    _hooks.remove(listener)


def some_steps_call_no_hooks() -> bool:
    """Returns whether an optimizer step was compiled with `fullgraph=True` since the hooks were set."""
    return _hooks.has_warned_of_one_graph


class _StepHooks:
    """Calls the listeners before and after each outermost step.

    Steps nest: Lookahead steps its base optimizer inside its own step, and a subclass may call its parent's step. Only
    the outermost step counts. The hooks are torch's own, for all optimizers of the process. They are called once per
    step for every optimizer class, also with a scheduler or `torch.compile`. They are registered while there are
    listeners. They are never removed from inside a step, because torch is then iterating over them.
    """

    def __init__(self) -> None:
        self._listeners: list[StepListener] = []
        self._handles: list[RemovableHandle] = []
        self.has_warned_of_one_graph = False
        self._local = threading.local()

    def add(self, listener: StepListener) -> None:
        self._listeners = [*(other for other in self._listeners if not other.ended), listener]
        if not self._handles:
            self.has_warned_of_one_graph = False
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
        """Removes all listeners in a forked child process: the parent process goes on measuring."""
        self._listeners = []
        if not self._stack():
            for handle in self._handles:
                handle.remove()
            self._handles = []

    def warn_of_one_graph(self) -> None:
        """Warns once that compiled steps are not measured."""
        if not self.has_warned_of_one_graph:
            self.has_warned_of_one_graph = True
            notify(
                "an optimizer step compiled with fullgraph=True is not measured, because such a step calls no hooks;"
                " training goes on"
            )

    def _pre(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stack = self._stack()
        if stack:
            # A step that raised did not call its post-hook and is still on the stack: remove it.
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
    """Counts the optimizer steps on the call stack, this one included; torch runs each in its own wrapper function."""
    count = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        count += "wrapper" in code.co_name and code.co_filename == torch_optimizer.__file__
        frame = frame.f_back
    return max(count, 1)


def _not_compiled(hook: Callable[..., None]) -> Callable[..., None]:
    """Returns a hook that `torch.compile` does not trace: tracing takes half a minute, and traced code cannot measure.

    A step compiled with `fullgraph=True` cannot call uncompiled code; a hook that tried would end the training. There
    the hook does nothing, and a notice says so once.
    """

    def call(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hook(optimizer, args, kwargs)

    # Not `torch.compiler.disable` itself: it imports the compiler, which takes seconds.
    without_dynamo: Callable[..., Callable[..., None]] = getattr(torch, "_disable_dynamo", torch.compiler.disable)
    uncompiled = without_dynamo(call)

    def call_unless_one_graph(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling() and _must_be_one_graph():
            return
        uncompiled(optimizer, args, kwargs)

    return call_unless_one_graph


def _must_be_one_graph() -> bool:
    """Returns whether the step that is being compiled must not call uncompiled code. Called while it is traced."""
    try:
        from torch._dynamo.symbolic_convert import InstructionTranslator

        tracer = InstructionTranslator.current_tx()
        root = getattr(tracer.output, "root_tx", tracer)
        one_graph = bool(root.one_graph or getattr(tracer, "error_on_graph_break", False))
    except Exception:  # another version of torch: measuring nothing is better than ending the training
        one_graph = True
    if one_graph:
        _hooks.warn_of_one_graph()
    return one_graph


# `torch.compiler.assume_constant_result` sets this too, but imports the compiler: the function is run, not traced.
_must_be_one_graph._dynamo_marked_constant = True  # type: ignore[attr-defined]


_hooks = _StepHooks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_hooks.forget)


def _has_closure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Returns whether a step was given a closure. Some versions of torch put the optimizer before the arguments."""
    return any(callable(arg) and not isinstance(arg, Optimizer) for arg in args) or kwargs.get("closure") is not None
