"""The two hooks around every optimizer step of the process: all that smdtrack puts into somebody's training."""

import threading
from typing import Any, Protocol

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle


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

    Optimizers nest (Lookahead steps its base optimizer inside its own step), so only the outermost counts. The hooks
    are torch's own, for all optimizers of the process: they fire once a step for every optimizer class, and survive
    schedulers and `torch.compile`. They are in place while there are listeners, and are never taken out from inside a
    step, where torch iterates over them.
    """

    def __init__(self) -> None:
        self._listeners: list[StepListener] = []
        self._handles: list[RemovableHandle] = []
        self._local = threading.local()

    def add(self, listener: StepListener) -> None:
        self._listeners = [*self._listeners, listener]
        if not self._handles:
            self._handles = [
                register_optimizer_step_pre_hook(self._pre),
                register_optimizer_step_post_hook(self._post),
            ]

    def remove(self, listener: StepListener) -> None:
        self._listeners = [other for other in self._listeners if other is not listener]
        if not self._listeners and not self._stack():
            for handle in self._handles:
                handle.remove()
            self._handles = []

    def _pre(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stack = self._stack()
        if optimizer in stack:  # its last step raised, and never came to its post-hook
            del stack[stack.index(optimizer) :]
        stack.append(optimizer)
        if len(stack) == 1:
            for listener in self._listeners:
                listener.before_step(optimizer, _has_closure(args, kwargs))

    def _post(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stack = self._stack()
        if optimizer not in stack:
            return
        outermost = stack[0] is optimizer
        if outermost:
            for listener in self._listeners:
                listener.after_step(optimizer, _has_closure(args, kwargs))
        del stack[stack.index(optimizer) :]

    def _stack(self) -> list[Optimizer]:
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        stack: list[Optimizer] = self._local.stack
        return stack


_hooks = _StepHooks()


def _has_closure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Hooks get the step's arguments, with or without the optimizer itself in front, as torch's versions differ."""
    return any(callable(arg) and not isinstance(arg, Optimizer) for arg in args) or kwargs.get("closure") is not None
