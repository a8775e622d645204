"""An independent reference: float64 copies of weights and gradients before and after each step, by its own hooks.

Nothing of smdtrack is used here. Angles come from chords of unit vectors, `2 asin(|a/|a| - b/|b|| / 2)`, another
formula than smdtrack's.
"""

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass
class Step:
    """One optimizer step as the witness saw it, by the weights' names."""

    before: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)
    gradient: dict[str, Tensor] = field(default_factory=dict)
    hyper_parameters: dict[str, dict[str, Any]] = field(default_factory=dict)


class Witness:
    """Saves each step of an optimizer, with gradients divided by a loss scaler's factor."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.steps: list[Step] = []
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        step = Step()
        scale = getattr(optimizer, "grad_scale", None)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = self._names.get(id(parameter))
                if name is None:
                    continue
                step.before[name] = whole(parameter)
                if parameter.grad is not None:
                    step.gradient[name] = whole(parameter.grad) / (1.0 if scale is None else float(scale))
                step.hyper_parameters[name] = {
                    key: float(value) if isinstance(value, Tensor) else copy.copy(value)
                    for key, value in group.items()
                    if key != "params"
                }
        self.steps.append(step)

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = self._names.get(id(parameter))
                if name is not None:
                    self.steps[-1].after[name] = whole(parameter)

    def angle(self, name: str, step: int, lag: int = 1) -> float:
        """Angle between the weight before step `step - lag + 1` and after step `step` (counted from 1)."""
        return chord_angle(self.steps[step - lag].before[name], self.steps[step - 1].after[name])

    def norm(self, name: str, step: int) -> float:
        return float(self.steps[step - 1].after[name].norm())

    def effective_gradient(self, name: str, step: int) -> float:
        seen = self.steps[step - 1]
        return float(seen.gradient[name].norm() * seen.before[name].norm())

    def cosine(self, name: str, step: int) -> float:
        seen = self.steps[step - 1]
        weight, gradient = seen.before[name].flatten(), seen.gradient[name].flatten()
        return abs(float(weight @ gradient / (weight.norm() * gradient.norm())))


def whole(tensor: Tensor) -> Tensor:
    """A detached float64 copy."""
    return tensor.detach().to(torch.float64, copy=True).contiguous()


def chord_angle(before: Tensor, after: Tensor) -> float:
    """Angle in radian by the chord between the two unit vectors, in float64."""
    chord = (before / before.norm() - after / after.norm()).norm()
    return float(2 * torch.asin(chord / 2))


def everything(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """All of a training's state: weights, buffers, gradients, optimizer states, and the four generators' states."""
    return {
        "weights": {key: value.detach().clone() for key, value in model.state_dict().items()},
        "gradients": [None if p.grad is None else p.grad.detach().clone() for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "optimizers": [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }


def assert_same_bits(left: Any, right: Any, where: str = "") -> None:
    """Bitwise equality through containers; nan equals nan."""
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same_bits(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same_bits(one, other, f"{where}/{index}")
    elif isinstance(left, Tensor):
        assert left.dtype == right.dtype, where
        one, other = (x.detach().contiguous().reshape(-1).view(torch.uint8) if x.numel() else x for x in (left, right))
        assert torch.equal(one, other), where
    elif isinstance(left, np.ndarray):
        assert left.dtype == right.dtype, where
        assert left.tobytes() == right.tobytes(), where
    else:
        assert left == right or (left != left and right != right), where


def seed_everything(seed: int) -> None:
    """Seeds python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
