"""Second-order statistics of an optimizer's updates: their length, and how similar successive updates are.

An optimizer that filters its gradients linearly moves the weight by `u_t = lr * sum_k h_k g_{t-k}`, where `h` is its
impulse response (adaptive optimizers filter a normalised gradient). Three numbers of `h` decide every reference line:

    gain    H = sum_k h_k        weight decay that is part of the gradient reaches the weight multiplied by H
    energy  S = sum_k h_k^2      squared length of an update over that of a gradient, if gradients are white noise
    memory  R = H^2 / S          equals 1 + 2 sum_{j>=1} rho_j, where rho is the autocorrelation of the updates

Derived here: let the gradients be orthogonal to the weight w and uncorrelated in time. Then `<w_t, u_t>` comes only
from older updates, because w contains them and u_t is correlated with them. Summing their contributions, ||w||^2 grows
per step by `|u|^2 (1 + 2 sum rho_j) = |u|^2 R`.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class UpdateStatistics:
    """Second-order statistics of an optimizer's updates without weight decay, at a learning rate of 1.

    Attributes:
        gain: H, the sum of the impulse response; 1 if only the autocorrelation is known.
        energy: S, the squared length of an update over that of a (normalised) gradient; None if it is not known.
        autocorrelation: rho_0 = 1, rho_1, ..., a float64 tensor on the CPU.
        memory: R.
        delay: `sum_k k h_k / H`, the mean age in steps of the gradients in an update; 0 if it is not known.
        impulse_response: h_0, h_1, ... of a linear filter; None for other optimizers.
        are_signs: Whether the updates are the signs of what the filter returns.
    """

    gain: float
    energy: float | None
    autocorrelation: Tensor = field(repr=False, compare=False)
    memory: float
    delay: float = 0.0
    impulse_response: Tensor | None = field(default=None, repr=False, compare=False)
    are_signs: bool = False

    def memory_over(self, steps: int) -> float:
        """Returns R_k, the squared length of the sum of k successive updates over the sum of their squared lengths.

        `R_k = 1 + 2 sum_{j<k} (1 - j/k) rho_j`, which goes to R as k grows.

        Raises:
            ValueError: If `steps` is less than 1.
        """
        if steps < 1:
            raise ValueError(f"steps is {steps}; it must be at least 1")
        reach = min(steps, self.autocorrelation.numel())
        lags = torch.arange(1, reach, dtype=torch.float64, device="cpu")
        return float(1 + 2 * ((1 - lags / steps) * self.autocorrelation[1:reach]).sum())


def from_impulse_response(response: Tensor) -> UpdateStatistics:
    """Returns the statistics of a linear filter with this impulse response (float64, 1-d) under white gradients."""
    energy = float(response.square().sum())
    spectrum = torch.fft.rfft(response, n=2 * response.numel())
    autocorrelation = torch.fft.irfft(spectrum.abs().square())[: response.numel()] / energy
    gain = float(response.sum())
    ages = torch.arange(response.numel(), dtype=torch.float64, device="cpu")
    return UpdateStatistics(
        gain, energy, autocorrelation, gain**2 / energy, float((ages * response).sum()) / gain, response
    )


def from_autocorrelation(autocorrelation: Tensor, gain: float = 1.0, energy: float | None = None) -> UpdateStatistics:
    """Returns the statistics of updates that are no linear filter's: signs, cautious masks, orthogonalised updates."""
    memory = float(2 * autocorrelation.sum() - autocorrelation[0])
    return UpdateStatistics(gain, energy, autocorrelation, memory)
