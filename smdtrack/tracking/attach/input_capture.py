"""Takes the input of a model's next forward pass, where nothing else says what input the model takes."""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from smdtrack.tracking.attach.resume import Before


class InputCapture:
    """Takes the input of the next forward pass of whichever of some modules runs first, by a hook that goes at once.

    A module inside a compiled one gets no hook, which would be compiled anew: its wrapper gets it.

    Attributes:
        model: The module whose input was seen, once it has been.
        example: The input, as `audit` takes it.
        reason: Why the input is needed.
        before: The training's state before the step at which the hooks were set.
    """

    def __init__(self, models: Sequence[nn.Module], reason: str, before: Before) -> None:
        self.model: nn.Module | None = None
        self.example: Any = None
        self.reason = reason
        self.before = before
        inside = [model._modules["_orig_mod"] for model in models if "_orig_mod" in model._modules]
        compiled = {id(part) for model in inside if model is not None for part in model.modules()}
        outside = [model for model in models if id(model) not in compiled]
        self._handles = [model.register_forward_pre_hook(self._see, with_kwargs=True) for model in outside]

    def remove(self) -> None:
        """Takes the hooks out."""
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
