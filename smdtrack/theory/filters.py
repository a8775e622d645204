"""Update statistics of the linear filters (and their signs) that optimizers apply to gradients, in closed form.

`g` is the gradient of the step, `m` or `b` the optimizer's running buffer and `u` the update, all without weight decay.
`EMA_b(x)` is the exponential moving average `m = b m + (1 - b) x`. Values of R are for white gradients.
"""

import math
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from smdtrack.theory.update_statistics import UpdateStatistics, from_autocorrelation, from_impulse_response

#: Impulse responses are cut off where they have fallen to this share of their start; far below float64 sums' rounding.
_NEGLIGIBLE = 1e-12
#: Longest impulse response in steps: a momentum of .9995 falls below the share above within it.
_LONGEST = 1 << 16
#: Logarithm of the largest factor between an old gradient and the present one, which bounds overflow.
_MOST_LOUDER = 20.0


@lru_cache(maxsize=256)
def identity() -> UpdateStatistics:
    """`u = g`: R = 1. Plain SGD, and gradients that are only normalised."""
    return from_impulse_response(_impulse(1.0))


@lru_cache(maxsize=256)
def heavy_ball(momentum: float, dampening: float = 0.0) -> UpdateStatistics:
    """`b = a b + (1 - tau) g`, `u = b`: R = (1 + a)/(1 - a), H = (1 - tau)/(1 - a)."""
    return from_impulse_response((1 - dampening) * _powers(momentum))


@lru_cache(maxsize=256)
def nesterov(momentum: float) -> UpdateStatistics:
    """`b = a b + g`, `u = g + a b`: R = 1/((1 - a) F), F = [(1 - a)(1 + a)^3 + a^4]/(1 + a); 14.16 at a = .9."""
    return from_impulse_response(_sum(_impulse(1.0), momentum * _powers(momentum)))


@lru_cache(maxsize=256)
def moving_average(beta: float) -> UpdateStatistics:
    """`u = EMA_b(g)`: R = (1 + b)/(1 - b), H = 1. Adam and most of its relatives."""
    return from_impulse_response((1 - beta) * _powers(beta))


@lru_cache(maxsize=256)
def nesterov_average(beta: float, now: float | None = None, past: float | None = None) -> UpdateStatistics:
    """`u = now * g + past * EMA_b(g)`, by default with now = 1 - b and past = b (NAdamW); R = 14.16 at b = .9."""
    now = 1 - beta if now is None else now
    past = beta if past is None else past
    return from_impulse_response(_sum(_impulse(now), past * (1 - beta) * _powers(beta)))


@lru_cache(maxsize=256)
def adan(beta1: float, beta2: float) -> UpdateStatistics:
    """`u = EMA_b1(g) + b2 EMA_b2(g_t - g_{t-1})` (Xie et al., Adan, 2208.06677); R = 61.2 at (.98, .92)."""
    slope = (1 - beta2) * _powers(beta2)
    return from_impulse_response(
        _sum((1 - beta1) * _powers(beta1), beta2 * slope, -beta2 * torch.cat([_impulse(0.0), slope]))
    )


@lru_cache(maxsize=256)
def mars(beta1: float, scale: float) -> UpdateStatistics:
    """`u = EMA_b1(c)`, `c = g_t + k (g_t - g_{t-1})`, `k = scale b1/(1 - b1)` (Yuan et al., MARS, 2411.10438)."""
    correction = scale * beta1 / (1 - beta1)
    average = (1 - beta1) * _powers(beta1)
    return from_impulse_response(_sum((1 + correction) * average, -correction * torch.cat([_impulse(0.0), average])))


@lru_cache(maxsize=256)
def two_averages(beta1: float, beta3: float, weight: float) -> UpdateStatistics:
    """`u = EMA_b1(g) + weight EMA_b3(g)` (Pagliardini et al., AdEMAMix, 2409.03137)."""
    return from_impulse_response(_sum((1 - beta1) * _powers(beta1), weight * (1 - beta3) * _powers(beta3)))


@lru_cache(maxsize=256)
def lion(beta1: float, beta2: float) -> UpdateStatistics:
    """`u = sign(b1 m + (1 - b1) g)`, then `m = EMA_b2(g)` (Chen et al., Lion, 2302.06675); R = 45.9 at (.9, .99)."""
    past = beta1 * (1 - beta2) * torch.cat([_impulse(0.0), _powers(beta2)])
    return signs(from_impulse_response(_sum(_impulse(1 - beta1), past)))


@lru_cache(maxsize=256)
def signs(filtered: UpdateStatistics) -> UpdateStatistics:
    """The signs of `filtered`: their autocorrelation is (2/pi) asin(rho), the arcsine law of Gaussian series."""
    bounded = filtered.autocorrelation.clamp(-1.0, 1.0)
    found = from_autocorrelation((2 / math.pi) * torch.asin(bounded), energy=1.0)
    return replace(found, impulse_response=filtered.impulse_response, are_signs=True)


def signs_under_drift(updates: UpdateStatistics, log_norm2_drift: float) -> UpdateStatistics:
    """Returns the statistics of sign updates while ||w|| grows or shrinks at a constant rate.

    Derived here: a gradient is proportional to 1/||w||, so that one of k steps ago counts `exp(drift k/2)` times as
    much beside the present one. The signs keep their length, but resemble each other more the faster the weight grows.

    Args:
        updates: From `signs`.
        log_norm2_drift: Change of ln ||w||^2 per step.
    """
    if updates.impulse_response is None or not updates.are_signs:
        return updates
    return _signs_under_drift(updates, float(f"{log_norm2_drift:.2g}"))


@lru_cache(maxsize=1024)
def _signs_under_drift(updates: UpdateStatistics, log_norm2_drift: float) -> UpdateStatistics:
    assert updates.impulse_response is not None
    ages = torch.arange(updates.impulse_response.numel(), dtype=torch.float64, device="cpu")
    louder = (log_norm2_drift / 2 * ages).clamp_max(_MOST_LOUDER).exp()
    return signs(from_impulse_response(updates.impulse_response * louder))


@lru_cache(maxsize=256)
def projected(filtered: UpdateStatistics) -> UpdateStatistics:
    """Updates of `filtered` made orthogonal to the weight at every step: R = 1, with the same length."""
    energy = filtered.energy
    return from_autocorrelation(identity().autocorrelation, gain=math.sqrt(energy or 1.0), energy=energy)


def _powers(decay: float) -> Tensor:
    """Returns 1, p, p^2, ... until they are negligible."""
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"a momentum of {decay!r} has no finite memory; it must lie in [0, 1)")
    length = 2 if decay == 0 else math.ceil(math.log(_NEGLIGIBLE) / math.log(decay)) + 1
    exponents = torch.arange(min(max(length, 2), _LONGEST), device="cpu")
    return torch.pow(torch.tensor(decay, dtype=torch.float64, device="cpu"), exponents)


def _sum(*parts: Tensor) -> Tensor:
    total = torch.zeros(max(part.numel() for part in parts), dtype=torch.float64, device="cpu")
    for part in parts:
        total[: part.numel()] += part
    return total


def _impulse(height: float) -> Tensor:
    return torch.tensor([height], dtype=torch.float64, device="cpu")
