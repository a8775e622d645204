"""timm's Lookahead around another optimizer: its slow weights follow the fast ones a part of the way, every k steps."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from smdtrack.theory.dynamics import Dynamics, no_line
from smdtrack.theory.update_statistics import UpdateStatistics

#: Lags of the autocorrelation that are worked out; no optimizer's memory reaches further, and the matrices stay small.
_LONGEST_LAG = 1024


def inside_lookahead(dynamics: Dynamics, group: Mapping[str, Any]) -> Dynamics:
    """Returns the dynamics of a weight under Lookahead around an optimizer with the given dynamics.

    Derived here: over a cycle the slow weights move by alpha times the sum of the fast steps, weight decay included.
    So the decay rate is alpha times that of the inner optimizer, to first order: decay acts in full within a cycle.

    Args:
        dynamics: Of the inner optimizer.
        group: The parameter group, with `lookahead_alpha` and `lookahead_k`.
    """
    if dynamics.updates is None:
        return dynamics
    title = f"Lookahead {dynamics.title}"
    if dynamics.trust is not None:
        return no_line("a trust ratio inside Lookahead: not worked out", title)
    alpha, period = float(group["lookahead_alpha"]), int(group["lookahead_k"])
    return replace(
        dynamics,
        title=title,
        updates=lookahead_updates(dynamics.updates, alpha, period),
        decay=alpha * dynamics.decay,
        first_order=True,
        formula="2 alpha gamma / R of whole Lookahead steps",
        source="derived here (slow weights move by alpha times the fast path)",
        assumptions=(
            *(dynamics.assumptions or ()),
            "RMS over whole cycles; a step is one of Lookahead's, jump included",
        ),
    )


def lookahead_updates(fast: UpdateStatistics, alpha: float, period: int) -> UpdateStatistics:
    """Returns the statistics of Lookahead's steps: `period - 1` fast ones, then a fast one together with the jump back.

    Derived here: over a cycle the slow weights move by `alpha * sum of the fast updates`, so that the growth of
    ||w||^2 per step is `alpha^2` times that of the inner optimizer. The last step of a cycle moves the weight by
    `u_k - (1 - alpha) sum_j u_j`, which gives the mean squared length of a step.

    Source: Zhang et al., Lookahead, 1907.08610, for the optimizer; the statistics are derived here.
    """
    rho = [float(value) for value in fast.autocorrelation[: period + 1]]
    rho += [0.0] * (period + 1 - len(rho))
    together = sum(rho[abs(i - j)] for i in range(period) for j in range(period))
    jump = 1 - 2 * (1 - alpha) * sum(rho[:period]) + (1 - alpha) ** 2 * together
    power = ((period - 1) + jump) / period
    energy = None if fast.energy is None else fast.energy * power
    memory = alpha**2 * fast.memory / power
    return UpdateStatistics(alpha * fast.gain, energy, _autocorrelation(fast.autocorrelation, alpha, period), memory)


def _autocorrelation(rho: Tensor, alpha: float, period: int) -> Tensor:
    """Returns the autocorrelation of Lookahead's steps, averaged over their place in the cycle.

    A matrix turns the fast updates into Lookahead's steps. Its row t is the unit vector e_t. In the last row of each
    cycle, (1 - alpha) times the sum of that cycle's unit vectors is subtracted.
    """
    reach = min(rho.numel(), _LONGEST_LAG)
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
