"""How an optimizer without a record responds to weight decay and to scale: run it a few hundred steps and look."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from smdtrack.theory.calibration import as_key, decay_argument, isolated, run, settings_that_matter

_SHAPE = (32, 32)
#: Steps of one run. The second half is read, when every filter with a memory below 100 steps has filled.
_STEPS = 400
#: Learning rate of the runs: small, so that the weight hardly changes.
_LR = 1e-4
#: Weight decays that are tried, the weak one first: if the learning rate does not multiply the decay, the strong one
#: would leave nothing of the weight.
_DECAYS = (1e-4, 0.1)
#: Weight decay that has no effect in fp32, but is not 0: LAMB applies its trust ratio only with weight decay.
_TINY_DECAY = 1e-9
#: Share of the weight that decay must take in a run to be told from rounding.
_VISIBLE = 1e-3
_measured: "dict[tuple[Any, ...], DecayResponse]" = {}


@dataclass(frozen=True)
class DecayResponse:
    """How an optimizer responds to weight decay, to the size of gradients and to the size of the weight.

    Attributes:
        decay_share: gamma over `lr^decay_rate_exponent * weight_decay`; 0 if it takes no weight decay.
        decay_rate_exponent: 1 if gamma is proportional to lr, 0 if it does not depend on lr.
        decay_needs_state: Whether gamma changes with the size of the gradients.
        norm_exponent: p in |u| ~ |g|^p at a fixed weight. With |g| ~ 1/||w|| it is p in |u| ~ ||w||^-p.
        follows_weight: Whether |u| grows with ||w||, as with a trust ratio.
        follows_lr: Whether |u| is proportional to the learning rate.
    """

    decay_share: float
    decay_rate_exponent: float
    decay_needs_state: bool
    norm_exponent: float
    follows_weight: bool
    follows_lr: bool

    def decay(self, lr: float, weight_decay: float) -> float:
        """Returns gamma at a learning rate and weight decay."""
        return float(self.decay_share * lr**self.decay_rate_exponent * weight_decay)


def decay_response(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    call: Callable[[Callable[[], DecayResponse]], DecayResponse] | None = None,
) -> DecayResponse:
    """Runs an optimizer with and without weight decay, at two sizes of gradient, weight and learning rate.

    It is measured once per class and hyper-parameters, at a learning rate of its own, so that a schedule does not
    repeat it. Derived here: under the same noise, runs with and without decay differ by -gamma w per step. The
    difference is projected on a weight that is large compared with the updates, and averaged after the filters have
    filled.

    Args:
        optimizer: The user's own. Only its class is used.
        group: The parameter group whose hyper-parameters hold.
        call: Calls the function that measures, for example in another process; by default it is called here.

    Raises:
        CannotRunError: If the class cannot be built or stepped that way.
    """
    arguments = settings_that_matter(type(optimizer), group)
    key = (type(optimizer), as_key(arguments))
    if key not in _measured:

        def measure() -> DecayResponse:
            with isolated():
                return _measure(type(optimizer), arguments)

        _measured[key] = measure() if call is None else call(measure)
    return _measured[key]


@dataclass(frozen=True)
class _Run:
    """What one run showed: the shares of the weight left half-way and at the end, and the later steps' RMS length."""

    left_half_way: float
    left: float
    step_length: float


def _run(
    optimizer_class: type[Optimizer],
    arguments: Mapping[str, Any],
    decay: float,
    gradient_scale: float = 1.0,
    weight_scale: float = 1.0,
    lr: float = _LR,
) -> _Run:
    generator = torch.Generator("cpu").manual_seed(11)
    direction = torch.randn(_SHAPE, generator=generator)
    taken, taken_half_way, power = 0.0, 0.0, 0.0

    def gradient(_: int) -> Tensor:
        return torch.randn(_SHAPE, generator=generator) * gradient_scale

    settings = {**arguments, "lr": lr, **decay_argument(optimizer_class, decay)}
    changes = run(optimizer_class, settings, direction * weight_scale, gradient, _STEPS)
    for step, change in enumerate(changes, 1):
        taken -= float((change * direction).sum() / (direction.square().sum() * weight_scale))
        if step <= _STEPS // 2:
            taken_half_way = taken
        else:
            power += float(change.square().sum())
    return _Run(1 - taken_half_way, 1 - taken, math.sqrt(power / (_STEPS - _STEPS // 2)))


def _measure(optimizer_class: type[Optimizer], arguments: Mapping[str, Any]) -> DecayResponse:
    def shrinkage(decay: float, gradient_scale: float = 1.0, lr: float = _LR) -> float:
        decayed = _run(optimizer_class, arguments, decay, gradient_scale, lr=lr)
        free = _run(optimizer_class, arguments, 0.0, gradient_scale, lr=lr)
        left = (1 + decayed.left - free.left) / (1 + decayed.left_half_way - free.left_half_way)
        return float(1 - max(left, 0.0) ** (1 / (_STEPS - _STEPS // 2)))

    plain = _run(optimizer_class, arguments, 0.0).step_length
    larger_gradients = _run(optimizer_class, arguments, 0.0, gradient_scale=10.0).step_length
    usual_weight = _run(optimizer_class, arguments, _TINY_DECAY).step_length
    larger_weight = _run(optimizer_class, arguments, _TINY_DECAY, weight_scale=10.0).step_length
    smaller_lr = _run(optimizer_class, arguments, 0.0, lr=_LR / 4).step_length
    share, exponent, needs_state = 0.0, 1.0, False
    if decay_argument(optimizer_class, 0.0):
        for decay in _DECAYS:
            gamma = shrinkage(decay)
            if gamma * _STEPS > _VISIBLE:
                break
        with_larger_gradients, with_smaller_lr = shrinkage(decay, 10.0), shrinkage(decay, lr=_LR / 4)
        if gamma > 0 and with_smaller_lr > 0:
            exponent = float(round(math.log(gamma / with_smaller_lr) / math.log(4)))
        share = gamma / (_LR**exponent * decay)
        needs_state = abs(with_larger_gradients - gamma) > 0.1 * max(abs(gamma), 1e-12 * _LR)
    moves = min(larger_gradients, plain) > 0
    return DecayResponse(
        decay_share=share,
        decay_rate_exponent=exponent,
        decay_needs_state=needs_state,
        norm_exponent=round(math.log10(larger_gradients / plain), 2) if moves else 0.0,
        follows_weight=larger_weight > 3 * usual_weight,
        follows_lr=abs(4 * smaller_lr - plain) <= 0.2 * plain,
    )
