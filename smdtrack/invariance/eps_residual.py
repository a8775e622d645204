"""The radial derivative that batch norm's eps leaves, for a live check to subtract.

Batch norm divides by `sqrt(var + eps)`, not by `sqrt(var)`. So a weight in front of it is not exactly scale-invariant.
For `conv -> BN` the remaining radial derivative is known per channel `c`:

    <w_c, g_c> = eps / (var_c + eps) * gamma_c * dL/dgamma_c

Derived here: with `x_c = <w_c, patch> (+ bias)` and `y_c = gamma_c xhat_c + beta_c`, scaling `w_c` by `k` turns
`xhat_c = (x_c - mean_c) / sqrt(var_c + eps)` into `k (x_c - mean_c) / sqrt(k^2 var_c + eps)`, whose derivative at `k
= 1` is `xhat_c eps / (var_c + eps)`; and `dL/dgamma_c = sum <dL/dy_c, xhat_c>`. A bias of the convolution and the
layers after the batch norm do not enter. The sum over the channels holds for a weight that is invariant only as a
whole. If `var_c` is of the order of eps (as in timm's starnet), the remainder is several per cent of `||w|| ||g||`;
subtracting it leaves float32 rounding errors.

Loss scaling, averaging over processes and clipping by the global norm multiply `g` and `dL/dgamma` alike and cancel;
clipping by value or per filter (AGC) does not.

Pure functions of tensors, in float64 on their device, without a host synchronisation.
"""

from torch import Tensor


def batch_variance(before: Tensor, after: Tensor, kept: Tensor | float, count: int | None = None) -> Tensor:
    """Recovers the biased variance of a batch from batch norm's running variance around its forward pass.

    Inverts `after = kept before + (1 - kept) var count / (count - 1)`. After n forward passes with momentum m (gradient
    accumulation) `kept` is `(1 - m)^n`, and the result is the mean of the n variances, the last weighted most.

    Args:
        before: `running_var` before the forward pass, shape (channels,).
        after: `running_var` after it.
        kept: Share of `before` that is left in `after`, a number or (channels,). 1 means no forward pass and gives nan.
        count: Values per channel in the batch, batch x height x width; None means that it is large.
    """
    fresh = (after.double() - kept * before.double()) / (1 - (kept.double() if isinstance(kept, Tensor) else kept))
    return fresh if count is None else fresh * ((count - 1) / count)


def eps_radial_derivative(gamma: Tensor, gamma_grad: Tensor, variance: Tensor, eps: Tensor | float) -> Tensor:
    """Returns the radial derivative `<w_c, g_c>` that eps alone leaves, per channel.

    Args:
        gamma: The scale of the responsible batch norm with which the gradient was computed, shape (channels,).
        gamma_grad: Its gradient.
        variance: Biased variance of the batch, shape (channels,).
        eps: Of the batch norm, a number or (channels,).
    """
    return eps / (variance.double() + eps) * gamma.double() * gamma_grad.double()
