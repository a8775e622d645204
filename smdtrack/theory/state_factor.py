"""The state's factor: what weight decay inside an adaptive gradient amounts to.

`<w^2/denom>/<w^2>`, read from the optimizer's state on the weights' own device, in fused kernels for many weights at a
time and without synchronisation. All that multiplies the step by a number of the step count (bias correction,
rectification) is in it, so that gamma = lr wd H factor.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from smdtrack.geometry import wide

Group = Mapping[str, Any]
State = Mapping[str, Any]
#: One denominator per state, each a new tensor in fp32 or more.
Denominators = Callable[[Sequence[State], Group], list[Tensor]]

#: Elements of denominators and squares that are held at a time.
BATCH = 4_000_000


def _bias_corrected(states: Sequence[State], group: Group) -> list[Tensor]:
    entry = "max_exp_avg_sq" if group.get("amsgrad", False) else "exp_avg_sq"
    return _corrected([state[entry] for state in states], _steps(states), group)


def _belief(states: Sequence[State], group: Group) -> list[Tensor]:
    entry = "max_exp_avg_var" if group.get("amsgrad", False) else "exp_avg_var"
    return _corrected([state[entry] for state in states], _steps(states), group)


def _corrected(moments: Sequence[Tensor], steps: Tensor, group: Group) -> list[Tensor]:
    roots = _rooted(moments)
    torch._foreach_div_(roots, _factors((1 - group["betas"][1] ** steps).sqrt()))
    torch._foreach_add_(roots, group["eps"])
    return roots


def _rectified(states: Sequence[State], group: Group) -> list[Tensor]:
    """torch RAdam: denom / rect, rect as in Liu et al., 1908.03265 (1 while the variance is not tractable)."""
    beta2, steps = group["betas"][1], _steps(states)
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * steps * beta2**steps / (1 - beta2**steps)
    rectification = ((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)).sqrt()
    denominators = _bias_corrected(states, group)
    torch._foreach_div_(denominators, _factors(rectification))
    tractable = length > 5
    if tractable.device.type == "cpu":
        return [
            denominator if there else torch.ones_like(denominator)
            for denominator, there in zip(denominators, tractable.tolist(), strict=True)
        ]
    one = torch.ones((), device=steps.device)
    return [
        torch.where(there, denominator, one.to(denominator.dtype))
        for denominator, there in zip(denominators, tractable.unbind(), strict=True)
    ]


def _adamax(states: Sequence[State], group: Group) -> list[Tensor]:
    return wide([state["exp_inf"] for state in states])


def _adopt(states: Sequence[State], group: Group) -> list[Tensor]:
    roots = _rooted([state["exp_avg_sq"] for state in states])
    torch._foreach_clamp_min_(roots, group["eps"])
    return roots


def _adagrad(states: Sequence[State], group: Group) -> list[Tensor]:
    roots = _rooted([state["sum"] for state in states])
    torch._foreach_add_(roots, group["eps"])
    torch._foreach_mul_(roots, _factors(1 + (_steps(states) - 1) * float(group.get("lr_decay", 0.0))))
    return roots


def _rmsprop(states: Sequence[State], group: Group) -> list[Tensor]:
    roots = _rooted(_mean_squares(states, group))
    torch._foreach_add_(roots, group["eps"])
    return roots


def _rmsprop_tf(states: Sequence[State], group: Group) -> list[Tensor]:
    return _rooted(torch._foreach_add(_mean_squares(states, group), group["eps"]))


def _mean_squares(states: Sequence[State], group: Group) -> list[Tensor]:
    moments = wide([state["square_avg"] for state in states])
    if not group.get("centered", False):
        return moments
    means = wide([state["grad_avg"] for state in states])
    return list(torch._foreach_sub(moments, torch._foreach_mul(means, means)))


def _rooted(moments: Sequence[Tensor]) -> list[Tensor]:
    return list(torch._foreach_sqrt(wide(moments)))


def _steps(states: Sequence[State]) -> Tensor:
    """The step counts, float64, on the host, or on the device if they are kept there (capturable optimizers)."""
    counts = [state["step"] for state in states]
    if any(isinstance(count, Tensor) and count.device.type != "cpu" for count in counts):
        return torch.stack([count.detach().view(()) for count in counts]).double()
    return torch.tensor([float(count) for count in counts], dtype=torch.float64, device="cpu")


def _factors(values: Tensor) -> Any:
    """One number a tensor, as fused kernels take them: of the host's, or 0-d tensors of the device."""
    return values.tolist() if values.device.type == "cpu" else list(values.unbind())


DENOMINATORS: dict[str, Denominators] = {
    "torch.Adam": _bias_corrected,
    "torch.AdamW": _bias_corrected,
    "torch.NAdam": _bias_corrected,
    "torch.RAdam": _rectified,
    "torch.Adamax": _adamax,
    "torch.Adagrad": _adagrad,
    "torch.RMSprop": _rmsprop,
    "timm.RMSpropTF": _rmsprop_tf,
    "timm.NAdamLegacy": _bias_corrected,
    "timm.Adopt": _adopt,
    "timm.AdaBelief": _belief,
    "apex.FusedAdam": _bias_corrected,
}


@torch.no_grad()
def state_factors(
    key: str,
    parameters: Sequence[Tensor],
    states: Sequence[State],
    group: Group,
) -> list[Tensor] | None:
    """`<w^2/denom>/<w^2>` per weight, 0-d float64 on the weights' device; None for an optimizer without a denominator.

    Args:
        key: the optimizer's class, as in `registry`.
        parameters: the weights, all on one device.
        states: the optimizer's state for each, after at least one step.
        group: their parameter group.
    """
    denominators = DENOMINATORS.get(key)
    if denominators is None:
        return None
    factors: list[Tensor] = []
    for some in _batches(parameters):
        weights = wide([parameter.detach() for parameter in parameters[some]])
        shares = torch._foreach_mul(weights, weights)
        torch._foreach_div_(shares, denominators(states[some], group))
        # The norms in float64 are the fused sums: of squares, and of what is nowhere negative.
        sums = torch.stack(torch._foreach_norm(shares, 1, dtype=torch.float64))
        squares = torch.stack(torch._foreach_norm(weights, 2, dtype=torch.float64)).square()
        factors += (sums / squares).unbind()
    return factors


def _batches(parameters: Sequence[Tensor]) -> Iterator[slice]:
    first, room = 0, BATCH
    for place, parameter in enumerate(parameters):
        if parameter.numel() > room and place > first:
            yield slice(first, place)
            first, room = place, BATCH
        room -= parameter.numel()
    if parameters:
        yield slice(first, len(parameters))
