"""What an optimizer's updates remember: impulse responses, autocorrelations and the memory factor R.

An optimizer that filters its gradients linearly moves the weight by `u_t = lr * sum_k h_k g_{t-k}` (of a normalised
gradient where it is adaptive). Three numbers of `h` decide every reference line:

    gain    H = sum_k h_k        a constant pull (weight decay inside the gradient) ends up multiplied by H
    energy  S = sum_k h_k^2      the squared length of one update under white gradients
    memory  R = H^2 / S          = 1 + 2 sum_{j>=1} rho_j, rho the autocorrelation of the updates

Derived here: with gradients orthogonal to w and uncorrelated in time, `<w_t, u_t>` comes only from older updates, which
w contains and u_t resembles, so that ||w||^2 grows per step by `|u|^2 (1 + 2 sum rho_j) = |u|^2 R`.
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

_NEGLIGIBLE = 1e-12
_LONGEST = 1 << 16


@dataclass(frozen=True)
class Updates:
    """The second-order statistics of one optimizer's updates, at learning rate 1.

    Attributes:
        gain: H, the sum of the impulse response; 1 where only the autocorrelation is known.
        energy: S, squared length of an update over that of a (normalised) gradient; None where it is not known.
        autocorrelation: rho_0 = 1, rho_1, ... as a float64 tensor on the CPU.
        memory: R.
        delay: sum_k k h_k / H, the mean age of the gradients in an update; 0 where it is not known.
        taps: h_0, h_1, ... where the updates are a linear filter's.
    """

    gain: float
    energy: float | None
    autocorrelation: Tensor = field(repr=False, compare=False)
    memory: float
    delay: float = 0.0
    taps: Tensor | None = field(default=None, repr=False, compare=False)

    def memory_over(self, steps: int) -> float:
        """R_k = 1 + 2 sum_{j<k} (1 - j/k) rho_j: the growth of k steps taken together over k separate ones."""
        if steps < 1:
            raise ValueError(f"steps is {steps}; it must be at least 1")
        reach = min(steps, self.autocorrelation.numel())
        lags = torch.arange(1, reach, dtype=torch.float64, device="cpu")
        return float(1 + 2 * ((1 - lags / steps) * self.autocorrelation[1:reach]).sum())


def from_taps(taps: Tensor) -> Updates:
    """Statistics of the updates of a linear filter with impulse response `taps` (float64, 1-d)."""
    energy = float(taps.square().sum())
    spectrum = torch.fft.rfft(taps, n=2 * taps.numel())
    autocorrelation = torch.fft.irfft(spectrum.abs().square())[: taps.numel()] / energy
    gain = float(taps.sum())
    delay = float((torch.arange(taps.numel(), dtype=torch.float64, device="cpu") * taps).sum()) / gain
    return Updates(gain, energy, autocorrelation, gain**2 / energy, delay, taps)


def from_autocorrelation(autocorrelation: Tensor, gain: float = 1.0, energy: float | None = None) -> Updates:
    """Statistics where only the autocorrelation is known: signs, cautious masks, orthogonalised updates."""
    return Updates(gain, energy, autocorrelation, float(2 * autocorrelation.sum() - autocorrelation[0]))


def _powers(decay: float) -> Tensor:
    """1, p, p^2, ... down to a negligible tail."""
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


@lru_cache(maxsize=256)
def white() -> Updates:
    """Updates without memory: plain SGD, or projected onto the tangent of the sphere at every step (R = 1)."""
    return from_taps(_impulse(1.0))


@lru_cache(maxsize=256)
def heavy_ball(momentum: float, dampening: float = 0.0) -> Updates:
    """`b = a b + (1 - tau) g`, `u = b`: R = (1 + a)/(1 - a), H = (1 - tau)/(1 - a)."""
    return from_taps((1 - dampening) * _powers(momentum))


@lru_cache(maxsize=256)
def nesterov(momentum: float) -> Updates:
    """`b = a b + g`, `u = g + a b`: R = 1/((1 - a) F), F = [(1 - a)(1 + a)^3 + a^4]/(1 + a); 14.16 at a = .9."""
    return from_taps(_sum(_impulse(1.0), momentum * _powers(momentum)))


@lru_cache(maxsize=256)
def average(beta: float) -> Updates:
    """`m = b m + (1 - b) g`, `u = m`: R = (1 + b)/(1 - b), H = 1. Adam and its family."""
    return from_taps((1 - beta) * _powers(beta))


@lru_cache(maxsize=256)
def nesterov_average(beta: float, now: float | None = None, past: float | None = None) -> Updates:
    """`u = now * g + past * m` with m the average of `average`; by default now = 1 - b, past = b (NAdamW)."""
    now = 1 - beta if now is None else now
    past = beta if past is None else past
    return from_taps(_sum(_impulse(now), past * (1 - beta) * _powers(beta)))


@lru_cache(maxsize=256)
def adan(beta1: float, beta2: float) -> Updates:
    """`u = EMA_b1(g) + b2 EMA_b2(g_t - g_{t-1})` (Xie et al., Adan, 2208.06677); R = 61.2 at (.98, .92)."""
    slope = (1 - beta2) * _powers(beta2)
    return from_taps(_sum((1 - beta1) * _powers(beta1), beta2 * slope, -beta2 * torch.cat([_impulse(0.0), slope])))


@lru_cache(maxsize=256)
def mars(beta1: float, scale: float) -> Updates:
    """`u = EMA_b1(c)`, `c = g_t + k (g_t - g_{t-1})`, `k = scale b1/(1 - b1)` (Yuan et al., MARS, 2411.10438)."""
    lean = scale * beta1 / (1 - beta1)
    taps = (1 - beta1) * _powers(beta1)
    return from_taps(_sum((1 + lean) * taps, -lean * torch.cat([_impulse(0.0), taps])))


@lru_cache(maxsize=256)
def two_averages(beta1: float, beta3: float, weight: float) -> Updates:
    """`u = EMA_b1(g) + weight EMA_b3(g)` (Pagliardini et al., AdEMAMix, 2409.03137)."""
    return from_taps(_sum((1 - beta1) * _powers(beta1), weight * (1 - beta3) * _powers(beta3)))


@lru_cache(maxsize=256)
def lion(beta1: float, beta2: float) -> Updates:
    """`u = sign(b1 m + (1 - b1) g)`, `m = EMA_b2(g)` (Chen et al., Lion, 2302.06675); R = 45.9 at (.9, .99)."""
    past = beta1 * (1 - beta2) * torch.cat([_impulse(0.0), _powers(beta2)])
    return signs(from_taps(_sum(_impulse(1 - beta1), past)))


@lru_cache(maxsize=256)
def signs(filtered: Updates) -> Updates:
    """Signs of a Gaussian series with autocorrelation rho are correlated by (2/pi) asin(rho) (the arcsine law)."""
    bounded = filtered.autocorrelation.clamp(-1.0, 1.0)
    return from_autocorrelation((2 / math.pi) * torch.asin(bounded), energy=1.0)


def lookahead(fast: Updates, alpha: float, period: int) -> Updates:
    """Updates of a whole Lookahead step: `period - 1` fast ones, then a fast one and the jump back (Zhang, 1907.08610).

    Derived here: over a cycle the slow weights move by `alpha * sum of the fast updates`, so that the growth per step
    is `alpha^2` that of the optimizer inside; the last step of the cycle moves by `u_k - (1 - alpha) sum_j u_j`.
    """
    rho = [float(value) for value in fast.autocorrelation[: period + 1]]
    rho += [0.0] * (period + 1 - len(rho))
    together = sum(rho[abs(i - j)] for i in range(period) for j in range(period))
    jump = 1 - 2 * (1 - alpha) * sum(rho[:period]) + (1 - alpha) ** 2 * together
    power = ((period - 1) + jump) / period
    energy = None if fast.energy is None else fast.energy * power
    memory = alpha**2 * fast.memory / power
    gain = alpha * fast.gain
    return Updates(gain, energy, _lookahead_autocorrelation(fast.autocorrelation, alpha, period), memory)


def _lookahead_autocorrelation(rho: Tensor, alpha: float, period: int) -> Tensor:
    """Autocorrelation of the whole steps, averaged over the phase of the cycle.

    Written with the matrix that turns fast updates into whole ones: row t is the unit vector e_t, minus, where t closes
    a cycle, (1 - alpha) times the sum of that cycle's unit vectors.
    """
    reach = min(rho.numel(), 1024)
    cycles = 4 + reach // period
    total = cycles * period
    turn = torch.eye(total, dtype=torch.float64, device="cpu")
    for end in range(period - 1, total, period):
        turn[end, end - period + 1 : end + 1] -= 1 - alpha
    places = torch.arange(total, device="cpu")
    lags = (places[:, None] - places[None, :]).abs()
    padded = torch.zeros(total, dtype=torch.float64, device="cpu")
    padded[: min(reach, total)] = rho[: min(reach, total)]
    first = turn[:period]
    covariance = first @ padded[lags] @ turn.T
    series = torch.stack([covariance[phase, phase : phase + total - period] for phase in range(period)]).mean(0)
    return series / series[0]
