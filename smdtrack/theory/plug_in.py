"""The state's factor: what weight decay inside an adaptive gradient amounts to.

`<w^2/denom>/<w^2>`, read from the optimizer's state on the weight's own device: a 0-d tensor, no synchronisation. All
that multiplies the step by a number of the step count (bias correction, rectification) is in it, so that
gamma = lr wd H factor.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Group = Mapping[str, Any]
State = Mapping[str, Any]
Denominator = Callable[[State, Group], Tensor]


def _bias_corrected(state: State, group: Group) -> Tensor:
    beta2 = group["betas"][1]
    moment: Tensor = state["max_exp_avg_sq"] if group.get("amsgrad", False) else state["exp_avg_sq"]
    correction = 1 - beta2 ** state["step"]
    root = correction.to(moment.device, non_blocking=True).sqrt() if isinstance(correction, Tensor) else (
        math.sqrt(correction))
    return (moment.sqrt() / root).add_(group["eps"])


def _belief(state: State, group: Group) -> Tensor:
    renamed = {"exp_avg_sq": state["exp_avg_var"], "max_exp_avg_sq": state.get("max_exp_avg_var"),
               "step": state["step"]}
    return _bias_corrected(renamed, group)


def _rectified(state: State, group: Group) -> Tensor:
    """torch RAdam: denom / rect, rect as in Liu et al., 1908.03265 (1 while the variance is not tractable)."""
    beta2, step = group["betas"][1], float(state["step"])
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * beta2**step / (1 - beta2**step)
    if length <= 5:
        return torch.ones_like(state["exp_avg_sq"])
    rectification = math.sqrt(
        (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
    return _bias_corrected(state, group) / rectification


def _adamax(state: State, group: Group) -> Tensor:
    norm: Tensor = state["exp_inf"]
    return norm


def _adopt(state: State, group: Group) -> Tensor:
    moment: Tensor = state["exp_avg_sq"]
    return moment.sqrt().clamp_min_(group["eps"])


def _adagrad(state: State, group: Group) -> Tensor:
    slowed = 1 + (float(state["step"]) - 1) * float(group.get("lr_decay", 0.0))
    total: Tensor = state["sum"]
    return total.sqrt().add_(group["eps"]).mul_(slowed)


def _rmsprop(state: State, group: Group) -> Tensor:
    moment: Tensor = state["square_avg"]
    if group.get("centered", False):
        moment = moment - state["grad_avg"].square()
    return moment.sqrt().add_(group["eps"])


def _rmsprop_tf(state: State, group: Group) -> Tensor:
    moment: Tensor = state["square_avg"]
    if group.get("centered", False):
        moment = moment - state["grad_avg"].square()
    return moment.add(group["eps"]).sqrt_()


DENOMINATORS: dict[str, Denominator] = {
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


def state_factor(key: str, parameter: Tensor, state: State, group: Group) -> Tensor | None:
    """`<w^2/denom>/<w^2>` as a 0-d tensor on the weight's device; None before the first step or without a denominator.

    Args:
        key: the optimizer's class, as in `registry`.
        parameter: the weight.
        state: the optimizer's state for it.
        group: its parameter group.
    """
    denominator = DENOMINATORS.get(key)
    if denominator is None or not state:
        return None
    with torch.no_grad():
        squared = parameter.detach().float().square() if parameter.dtype != torch.float64 else (
            parameter.detach().square())
        return (squared / denominator(state, group)).sum() / squared.sum()
