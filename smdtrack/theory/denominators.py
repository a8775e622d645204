"""The denominators by which adaptive optimizers divide the gradient, read from their state.

Each function returns one new tensor per state, in fp32 or wider, on the device of the state. It uses fused kernels over
many tensors and never waits for the device. Factors that depend on the step count (bias correction, rectification) are
included, so that the decay rate is `gamma = lr wd H <w, w/denom>/<w, w>` without further factors.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from smdtrack.geometry import wide

Group = Mapping[str, Any]
State = Mapping[str, Any]
Denominators = Callable[[Sequence[State], Group], list[Tensor]]


def adam(states: Sequence[State], group: Group) -> list[Tensor]:
    """Adam, NAdam and apex FusedAdam: sqrt(v) / sqrt(1 - b2^t) + eps, with the running maximum of v for AMSGrad."""
    entry = "max_exp_avg_sq" if group.get("amsgrad", False) else "exp_avg_sq"
    return _corrected([state[entry] for state in states], _steps(states), group)


def adabelief(states: Sequence[State], group: Group) -> list[Tensor]:
    """timm AdaBelief: as Adam, with the variance of the gradient instead of its square."""
    entry = "max_exp_avg_var" if group.get("amsgrad", False) else "exp_avg_var"
    return _corrected([state[entry] for state in states], _steps(states), group)


def _corrected(moments: Sequence[Tensor], steps: Tensor, group: Group) -> list[Tensor]:
    roots = _rooted(moments)
    torch._foreach_div_(roots, _factors((1 - group["betas"][1] ** steps).sqrt()))
    torch._foreach_add_(roots, group["eps"])
    return roots


def radam(states: Sequence[State], group: Group) -> list[Tensor]:
    """torch RAdam: Adam's denominator over the rectification of Liu et al., 1908.03265; 1 while that is not defined."""
    beta2, steps = group["betas"][1], _steps(states)
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * steps * beta2**steps / (1 - beta2**steps)
    rectification = ((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)).sqrt()
    denominators = adam(states, group)
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


def adamax(states: Sequence[State], group: Group) -> list[Tensor]:
    """torch Adamax: the decaying maximum of |g|."""
    return wide([state["exp_inf"] for state in states])


def adopt(states: Sequence[State], group: Group) -> list[Tensor]:
    """timm Adopt: sqrt(v), at least eps."""
    roots = _rooted([state["exp_avg_sq"] for state in states])
    torch._foreach_clamp_min_(roots, group["eps"])
    return roots


def adagrad(states: Sequence[State], group: Group) -> list[Tensor]:
    """torch Adagrad: the root of the sum of squares plus eps, times the divisor of its learning rate decay."""
    roots = _rooted([state["sum"] for state in states])
    torch._foreach_add_(roots, group["eps"])
    torch._foreach_mul_(roots, _factors(1 + (_steps(states) - 1) * float(group.get("lr_decay", 0.0))))
    return roots


def rmsprop(states: Sequence[State], group: Group) -> list[Tensor]:
    """torch RMSprop: sqrt(v) + eps."""
    roots = _rooted(_mean_squares(states, group))
    torch._foreach_add_(roots, group["eps"])
    return roots


def rmsprop_tf(states: Sequence[State], group: Group) -> list[Tensor]:
    """timm RMSpropTF: sqrt(v + eps)."""
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
    """Returns the step counts as float64, on the host or, for capturable optimizers, on the device that has them."""
    counts = [state["step"] for state in states]
    if any(isinstance(count, Tensor) and count.device.type != "cpu" for count in counts):
        return torch.stack([count.detach().view(()) for count in counts]).double()
    return torch.tensor([float(count) for count in counts], dtype=torch.float64, device="cpu")


def _factors(values: Tensor) -> Any:
    """Returns one factor per tensor in the form that fused kernels take: floats, or 0-d tensors on the device."""
    return values.tolist() if values.device.type == "cpu" else list(values.unbind())
