"""Optimizers that keep the norm of a weight fixed, recognised by running them.

Such optimizers (known as Hyperball, MuonH or AdamH) scale the weight back to its norm after each step, so that weight
decay has no effect and the learning rate sets the angle directly. They are found in people's repositories, so they are
told by what they do and not by their names.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from smdtrack.theory.calibration import as_key, decay_argument, isolated, run, settings_that_matter

_SHAPE = (32, 32)
#: Steps of one run; the angle is read from the second half, when most filters have filled.
_STEPS = 200
#: Learning rates that are tried, until the weight turns far enough to tell a fixed norm from rounding.
_LRS = (1e-3, 1e-2, 1e-1)
#: Sum of squared changes over ||w||^2 that is far enough: 1000 times the rounding of a norm in fp32.
_FAR = 1e-4
#: An ordinary optimizer's ||w||^2 grows by at least the sum of its squared changes. The norm counts as fixed if it
#: changes by less than this share of it.
_FIXED = 0.1
_measured: "dict[tuple[Any, ...], FixedNorm | None]" = {}


@dataclass(frozen=True)
class FixedNorm:
    """How an optimizer with a fixed norm turns a weight.

    Attributes:
        angle_over_lr: Radian per step over the learning rate.
        follows_lr: Whether the angle is proportional to the learning rate.
        follows_gradient: Whether the angle depends on the size of the gradients.
    """

    angle_over_lr: float
    follows_lr: bool
    follows_gradient: bool


def fixed_norm(optimizer: Optimizer, group: Mapping[str, Any]) -> FixedNorm | None:
    """Returns how the optimizer turns a weight of fixed norm; None if it does not keep the norm.

    Measured once per class and hyper-parameters.

    Raises:
        CannotRunError: If the class cannot be built or stepped on plain gradients.
    """
    arguments = settings_that_matter(type(optimizer), group)
    key = (type(optimizer), as_key(arguments))
    if key not in _measured:
        with isolated():
            _measured[key] = _measure(type(optimizer), arguments)
    return _measured[key]


def _measure(optimizer_class: type[Optimizer], arguments: Mapping[str, Any]) -> FixedNorm | None:
    for lr in _LRS:
        path, growth, angle = _run(optimizer_class, arguments, lr, 1.0)
        if path > _FAR:
            break
    if not path > _FAR or not abs(growth) < _FIXED * path:
        return None
    at_quarter = _run(optimizer_class, arguments, lr / 4, 1.0)[2]
    at_larger_gradients = _run(optimizer_class, arguments, lr, 10.0)[2]
    return FixedNorm(
        angle_over_lr=angle / lr,
        follows_lr=abs(4 * at_quarter / angle - 1) < 0.05,
        follows_gradient=abs(at_larger_gradients / angle - 1) > 0.05,
    )


def _run(
    optimizer_class: type[Optimizer], arguments: Mapping[str, Any], lr: float, gradient_scale: float
) -> tuple[float, float, float]:
    """Returns, over ||w||^2, the sum of squared changes and the growth of ||w||^2; and the RMS angle of later steps."""
    generator = torch.Generator("cpu").manual_seed(13)
    weight = torch.randn(_SHAPE, generator=generator)

    def gradient(_: int) -> Tensor:
        return torch.randn(_SHAPE, generator=generator) * gradient_scale

    start = float(weight.double().square().sum())
    path, squared_angles = 0.0, 0.0
    settings = {**arguments, "lr": lr, **decay_argument(optimizer_class, 0.0)}
    present = weight.clone()
    for step, change in enumerate(run(optimizer_class, settings, weight, gradient, _STEPS)):
        chord = float(change.double().square().sum()) / start
        path += chord
        if step >= _STEPS // 2:
            squared_angles += (2 * math.asin(min(1.0, math.sqrt(chord) / 2))) ** 2
        present += change
    growth = float(present.double().square().sum()) / start - 1
    return path, growth, math.sqrt(squared_angles / (_STEPS - _STEPS // 2))
