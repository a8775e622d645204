"""The geometry of one step without assuming that weight decay is small.

The weight follows `w' = (1 - g) w - u` with the decay rate g and the update u. Everything follows from one number, the
overlap `A = -<w, u>/|u|^2` of the update with the weight, because the gradient itself is orthogonal to the weight.
Derived here, with r = ||w||^2 and the updates' autocorrelation rho:

    w_t  = -sum_{j>=1} (1 - g)^(j-1) u_{t-j}        so that   A = sum_{j>=1} rho_j (1 - g)^(j-1)
    r'   = (1 - g)^2 r + |u|^2 (1 + 2 (1 - g) A)    so that   x = |u|^2/r = (2 g - g^2 + growth)/(1 + 2 (1 - g) A)

with growth = r'/r - 1, which is 0 at equilibrium. In the plane of w and w', the part of u across w has the squared
length `|u|^2 - <w, u>^2/r = r (x - A^2 x^2)`, and w' has the coordinate `r^(1/2) (1 - g + A x)` along w:

    tan(angle) = sqrt(x - A^2 x^2)/(1 - g + A x)

To first order in g this is angle^2 = (2 g + growth)/R with R = 1 + 2 A at g = 0. The first order needs g times the
memory to be small, not only the angle: it is 2.5 % low for AdamW at lr wd = .1, and 3.7 % for Lion at lr wd = .001.

If weight decay is part of the gradient (coupled) and passes through a linear filter, the squared chord between the
weights of two steps is exactly 2 gamma/R at equilibrium. Derived here for heavy-ball, `b = a b' + g + wd w`,
`w' = w - lr b`: equal norms give `lr |b|^2 = 2 <w, b>`. Then `s = <w, b'>` is stationary at `s = -<w, b>`, so that
`<w, b> = wd r/(1 + a)` and `cos(angle) = 1 - lr <w, b>/r = 1 - lr wd/(1 + a)`.
"""

import math

import torch
from torch import Tensor

#: Rounds of the iteration in `angle_at_fixed_norm`.
_ROUNDS = 20


def overlap(autocorrelation: Tensor, decay_rate: float) -> float:
    """Returns `A = sum_{j>=1} rho_j (1 - g)^(j-1)`.

    Args:
        autocorrelation: rho_0 = 1, rho_1, ... of the updates.
        decay_rate: g.
    """
    lags = torch.arange(autocorrelation.numel() - 1, dtype=torch.float64, device="cpu")
    return float((autocorrelation[1:] * (1 - decay_rate) ** lags).sum())


def relative_update(decay_rate: float, overlap: float, growth: float = 0.0) -> float:
    """Returns `x = |u|^2/||w||^2` at a relative growth of ||w||^2 per step; 0 if the growth allows no update.

    Args:
        decay_rate: g.
        overlap: A.
        growth: Of ||w||^2 in one step, relative.
    """
    memory = 1 + 2 * (1 - decay_rate) * overlap
    return max(0.0, 2 * decay_rate - decay_rate**2 + growth) / memory if memory > 0 else 0.0


def angle(decay_rate: float, overlap: float, growth: float = 0.0) -> float:
    """Returns the angle of one step in radian under decoupled weight decay; see the formulas above."""
    x = relative_update(decay_rate, overlap, growth)
    return math.atan2(math.sqrt(max(0.0, x - (overlap * x) ** 2)), 1 - decay_rate + overlap * x)


def angle_over_window(squared_equilibrium: float, log_norm2_drift: float, drift_memory: float) -> float:
    """Returns the RMS angle per step that is expected over a window in which the settings may change.

    The squared line is linear in decay and drift, so that both are averaged over the same steps before the root is
    taken: `sqrt(max(0, <angle_eq^2> + drift/drift_memory))`. Taking the line at each step with the drift of the window
    would count the steps at which it is below zero as zero. That matters at the end of a cosine.

    Args:
        squared_equilibrium: Mean of the squared equilibrium angles of the window.
        log_norm2_drift: Change of ln ||w||^2 over the window, per step.
        drift_memory: Of `Line.drift_memory`.
    """
    return math.sqrt(max(0.0, squared_equilibrium + log_norm2_drift / drift_memory))


def angle_of_chord(squared_chord: float) -> float:
    """Returns the angle in radian between two vectors of the same length, from their squared distance over r."""
    return 2 * math.asin(min(1.0, math.sqrt(max(0.0, squared_chord)) / 2))


def angle_at_fixed_norm(autocorrelation: Tensor, relative_update: float) -> float:
    """Returns the angle of one step in radian if the optimizer scales the weight back to its norm after each step.

    Derived here: the scaling acts like a decay rate g with `(1 - g)^2 (1 + x + 2 A x) = 1`, applied after the update.
    Hence `A = sum_{j>=1} rho_j (1 - g)^j`. The two equations are iterated from g = 0; each round reduces the error by a
    factor of about x times the memory. Then `tan(angle) = sqrt(x - A^2 x^2)/(1 + A x)`.

    Args:
        autocorrelation: rho_0 = 1, rho_1, ... of the updates.
        relative_update: x, the squared length of the update over that of the weight.
    """
    x, along = relative_update, overlap(autocorrelation, 0.0)
    for _ in range(_ROUNDS):
        shrunk = max(0.0, 1 + x + 2 * along * x) ** -0.5
        along = overlap(autocorrelation, 1 - shrunk) * shrunk
    return math.atan2(math.sqrt(max(0.0, x - (along * x) ** 2)), 1 + along * x)


def cosine_after(steps: int, autocorrelation: Tensor, decay_rate: float, relative_update: float) -> float:
    r"""Returns the cosine between the weight now and `steps` steps later, at equilibrium.

    Derived here with q = 1 - g: `w_{t+K} = q^K w_t - sum_{i<K} q^(K-1-i) u_{t+i}`, and `<w_t, u_{t+i}>` is
    `-|u|^2 sum_{m>i} rho_m q^(m-i-1)`. Summed over i first, with n = min(m, K):

    $$\cos\theta_K = q^K + x \sum_{m\ge1} \rho_m\, q^{K+m-2n}\, \frac{1-q^{2n}}{1-q^2}$$

    Args:
        steps: K.
        autocorrelation: rho_0 = 1, rho_1, ... of the updates.
        decay_rate: g, larger than 0.
        relative_update: x.
    """
    q = 1 - decay_rate
    lags = torch.arange(1, autocorrelation.numel(), dtype=torch.float64, device="cpu")
    shorter = lags.clamp_max(steps)
    weights = q ** (steps + lags - 2 * shorter) * (1 - q ** (2 * shorter)) / (1 - q * q)
    return float(q**steps + relative_update * (autocorrelation[1:] * weights).sum())
