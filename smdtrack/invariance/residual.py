"""The live check: is a weight under batch norm still orthogonal to its gradient, once eps is accounted for?

Batch norm divides by `sqrt(var + eps)`, not by `sqrt(var)`, so that a weight under it is not exactly scale-invariant.
For `conv -> BN` the remainder is known per channel `c`:

    <w_c, g_c> = eps / (var_c + eps) * gamma_c * dL/dgamma_c

Derived here: with `x_c = <w_c, patch> (+ bias)` and `y_c = gamma_c xhat_c + beta_c`, scaling `w_c` by `k` turns
`xhat_c = (x_c - mean_c) / sqrt(var_c + eps)` into `k (x_c - mean_c) / sqrt(k^2 var_c + eps)`, whose derivative at `k
= 1` is `xhat_c eps / (var_c + eps)`; and `dL/dgamma_c = sum <dL/dy_c, xhat_c>`. A bias of the convolution and what
lies behind the batch norm do not enter. Where `var_c` is of the order of eps (starnet) the remainder is several per
cent of `||w_c|| ||g_c||`; subtracting it leaves float32 rounding.

All functions are pure functions of tensors, computed in float64 on their device, without a host synchronisation.

What a caller that sees only the two hooks of an optimizer has to supply:

* `weight`, `grad`, `gamma`, `gamma_grad` from the *pre*-hook: the values with which the gradients were computed. The
  step changes gamma. Loss scaling, averaging over processes and clipping by the global norm multiply both gradients
  alike and cancel in the residual; clipping per tensor (AGC) does not.
* `variance`, the biased variance of the batch that gave the gradients. No hook of the optimizer sees it; from a copy
  of `running_var` taken after the step before (one forward pass earlier) `batch_variance` recovers it,
  up to the rounding of `running_var` over `momentum`. After several forward passes (accumulation, a validation pass
  in training mode) it cannot, and neither does the identity hold for their sum with one variance.
* `running_var` itself is the fall-back: it is an unbiased average over about `1 / momentum` batches. With a relative
  error `d` of the variance the correction is off by `d eps / (var + eps)` times `gamma dL/dgamma`: harmless where
  `var >> eps`, wrong in the first hundred steps, when `running_var` still remembers its initial 1.
"""

import torch
from torch import Tensor

from smdtrack.invariance.bench import slice_sums


def batch_variance(before: Tensor, after: Tensor, momentum: float, count: int) -> Tensor:
    """Recovers the biased variance of one batch from batch norm's running variance around one forward pass.

    Inverts `after = (1 - momentum) before + momentum count / (count - 1) var`.

    Args:
        before: `running_var` before the forward pass, shape `(channels,)`.
        after: `running_var` after it.
        momentum: Batch norm's momentum; for `momentum=None`, 1 / (number of batches so far).
        count: Values per channel in the batch, batch x height x width.
    """
    fresh = (after.double() - (1 - momentum) * before.double()) / momentum
    return fresh * ((count - 1) / count)


def eps_radial_derivative(gamma: Tensor, gamma_grad: Tensor, variance: Tensor, eps: float) -> Tensor:
    """The radial derivative `<w_c, g_c>` that eps alone leaves, per channel, shape `(channels,)`."""
    return eps / (variance.double() + eps) * gamma.double() * gamma_grad.double()


def orthogonality_residual(
    weight: Tensor,
    grad: Tensor,
    gamma: Tensor | None,
    gamma_grad: Tensor | None,
    variance: Tensor,
    eps: float,
    *,
    filter_dim: int = 0,
) -> Tensor:
    """The eps-corrected cosine between each filter and its gradient.

    Args:
        weight: The weight with which the gradient was computed.
        grad: Its gradient.
        gamma: The scale of the responsible batch norm, shape `(channels,)`. Without a learned scale (None)
            the identity has nothing to take `dL/dgamma` from, and no correction is made.
        gamma_grad: Its gradient.
        variance: Biased variance of the batch, shape `(channels,)`.
        eps: Of the batch norm.
        filter_dim: Dimension of the weight's filters (1 for transposed convolutions).

    Returns:
        `|<w_c, g_c> - eps / (var_c + eps) gamma_c dL/dgamma_c| / max(||w_c|| ||g_c||)` in float64, shape
        `(channels,)`. The scale is the largest filter's: a filter whose gradient is rounding noise says nothing.
    """
    w, g = weight.detach().double(), grad.detach().double()
    radial = slice_sums(w * g, filter_dim)
    if gamma is not None and gamma_grad is not None:
        radial = radial - eps_radial_derivative(gamma.detach(), gamma_grad.detach(), variance.detach(), eps)
    scale = (slice_sums(w.square(), filter_dim) * slice_sums(g.square(), filter_dim)).sqrt().max()
    return radial.abs() / scale.clamp_min(torch.finfo(torch.float64).tiny)
