"""How an optimizer without a rule answers to weight decay and to scale: run it a few hundred steps and look."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from smdtrack.theory.calibration import alone, decay_argument, frozen, hyper_parameters, run

_SHAPE = (32, 32)
_STEPS, _LR, _DECAYS = 400, 1e-4, (1e-4, 0.1)
_probes: "dict[tuple[Any, ...], Probe]" = {}


@dataclass(frozen=True)
class Probe:
    """How an unknown optimizer answers to weight decay and to scale.

    Attributes:
        decay_share: gamma over `lr^decay_rate_exponent * weight_decay`; 0 where it takes no weight decay.
        decay_rate_exponent: 1 where gamma goes as lr, 0 where the learning rate is not in it.
        decay_needs_state: gamma changes with the size of the gradients.
        norm_exponent: p of |u| ~ |g|^p at a fixed weight; with |g| ~ 1/||w||, p of |u| ~ ||w||^-p.
        follows_weight: |u| goes with ||w||: a trust ratio.
    """

    decay_share: float
    decay_rate_exponent: float
    decay_needs_state: bool
    norm_exponent: float
    follows_weight: bool

    def decay(self, lr: float, weight_decay: float) -> float:
        """gamma at a learning rate and weight decay."""
        return float(self.decay_share * lr**self.decay_rate_exponent * weight_decay)


def probe(optimizer: Optimizer, group: Mapping[str, Any]) -> Probe:
    """Runs an optimizer a few hundred steps with and without decay, at two sizes of gradient, weight and rate.

    Measured once per class and hyper-parameters, like `calibrated`, at a learning rate of its own: the schedule of a
    run does not run it again. Derived here: the same noise with and without decay leaves a difference -gamma w per
    step; projected on a weight that is large against the updates, and averaged after the filters have filled, it is
    gamma.

    Raises:
        CannotRunError: where the class cannot be built or stepped that way.
    """
    arguments = hyper_parameters(type(optimizer), group)
    key = (type(optimizer), frozen(arguments))
    if key not in _probes:
        with alone():
            _probes[key] = _probe(type(optimizer), arguments)
    return _probes[key]


def _probe(optimizer_class: type[Optimizer], arguments: Mapping[str, Any]) -> Probe:
    half = _STEPS // 2

    def answer(
        decay: float,
        gradient_scale: float,
        weight_scale: float,
        lr: float = _LR,
    ) -> tuple[float, float, float]:
        """What is left of the weight half-way and at the end, along itself, and the RMS length of the later steps."""
        generator = torch.Generator("cpu").manual_seed(11)
        direction = torch.randn(_SHAPE, generator=generator)
        taken, taken_by_half, power = 0.0, 0.0, 0.0

        def gradient(_: int) -> Tensor:
            return torch.randn(_SHAPE, generator=generator) * gradient_scale

        settings = {**arguments, "lr": lr, **decay_argument(optimizer_class, decay)}
        moves = run(optimizer_class, settings, direction * weight_scale, gradient, _STEPS)
        for step, move in enumerate(moves, 1):
            taken -= float((move * direction).sum() / (direction.square().sum() * weight_scale))
            if step <= half:
                taken_by_half = taken
            else:
                power += float(move.square().sum())
        return 1 - taken_by_half, 1 - taken, math.sqrt(power / (_STEPS - half))

    def shrinkage(decay: float, gradient_scale: float, lr: float = _LR) -> float:
        decayed, free = answer(decay, gradient_scale, 1.0, lr), answer(0.0, gradient_scale, 1.0, lr)
        left = (1 + decayed[1] - free[1]) / (1 + decayed[0] - free[0])
        return float(1 - max(left, 0.0) ** (1 / (_STEPS - half)))

    plain, loud, heavy = (answer(0.0, *scales)[2] for scales in ((1.0, 1.0), (10.0, 1.0), (1.0, 10.0)))
    share, exponent, needs_state = 0.0, 1.0, False
    if decay_argument(optimizer_class, 0.0):
        # the weak one first: where the learning rate is not in the decay, the other would leave nothing of the weight
        for decay in _DECAYS:
            gamma = shrinkage(decay, 1.0)
            if gamma * _STEPS > 1e-3:
                break
        louder, slower = shrinkage(decay, 10.0), shrinkage(decay, 1.0, _LR / 4)
        if gamma > 0 and slower > 0:
            exponent = float(round(math.log(gamma / slower) / math.log(4)))
        share = gamma / (_LR**exponent * decay)
        needs_state = abs(louder - gamma) > 0.1 * max(abs(gamma), 1e-12 * _LR)
    return Probe(
        decay_share=share,
        decay_rate_exponent=exponent,
        decay_needs_state=needs_state,
        norm_exponent=round(math.log10(loud / plain), 2) if min(loud, plain) > 0 else 0.0,
        follows_weight=heavy > 3 * plain,
    )
