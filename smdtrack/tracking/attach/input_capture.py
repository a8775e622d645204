"""Captures the input of a model's next forward pass, for the audit of a model whose input cannot be guessed."""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from smdtrack.tracking.attach.resume import TrainingState


class InputCapture:
    """Captures the input of the module that runs next among several candidates, by hooks that it then removes.

    A module inside a compiled one gets no hook, because the hook would make torch compile it again. The compiled
    wrapper gets the hook instead.

    Attributes:
        model: The module that ran; None until then.
        example: Its input, in the form that `audit` takes.
        reason: Why the input is needed.
        state_before: The training's state before the step at which the hooks were set.
    """

    def __init__(self, models: Sequence[nn.Module], reason: str, state_before: TrainingState) -> None:
        self.model: nn.Module | None = None
        self.example: Any = None
        self.reason = reason
        self.state_before = state_before
        inside = [model._modules["_orig_mod"] for model in models if "_orig_mod" in model._modules]
        compiled = {id(part) for model in inside if model is not None for part in model.modules()}
        outside = [model for model in models if id(model) not in compiled]
        self._handles = [model.register_forward_pre_hook(self._see, with_kwargs=True) for model in outside]

    def remove(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.remove()
        if self.model is not None:
            return
        self.model, self.example = module, args
        if kwargs:
            try:
                self.example = dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
            except TypeError:
                self.example = kwargs
