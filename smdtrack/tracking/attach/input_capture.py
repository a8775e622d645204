"""Captures the input of a model's next forward pass, for the audit of a model whose input cannot be guessed."""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from smdtrack.tracking.attach.model_discovery import unwrapped


class InputCapture:
    """Captures the input of the module that runs next among several candidates, by hooks that it then removes.

    A module inside a compiled one gets no hook, because the hook would make torch compile it again. The compiled
    wrapper gets the hook instead.

    Args:
        candidates: The modules.
        reason: Why the forward pass is awaited.

    Attributes:
        model: The module that ran, without wrappers such as DDP; None until then. It is the outermost of the
            candidates that the training calls.
        example: Its input, in the form that `audit` takes.
    """

    def __init__(self, candidates: Sequence[nn.Module], reason: str) -> None:
        self.candidates = list(candidates)
        self.reason = reason
        self.model: nn.Module | None = None
        self.example: Any = None
        inside = [model._modules["_orig_mod"] for model in candidates if "_orig_mod" in model._modules]
        compiled = {id(part) for model in inside if model is not None for part in model.modules()}
        outside = [model for model in candidates if id(model) not in compiled]
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
        self.model, self.example = unwrapped(module), args
        if kwargs:
            # A wrapper passes its arguments on: their names are those of the model inside.
            try:
                self.example = dict(inspect.signature(self.model.forward).bind(*args, **kwargs).arguments)
            except TypeError:
                self.example = kwargs
