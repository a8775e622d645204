"""Rescaling the norms of scale-invariant weights, so that an lr drop reaches its new equilibrium at once."""

import math
from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor
from torch.optim import Optimizer

from smdtrack.notices import SmdtrackError, notify
from smdtrack.optimizers import inner_optimizer
from smdtrack.theory.line import Line
from smdtrack.theory.registry import Family, identify

_GRADIENTS = -1
_SQUARES = -2
_WEIGHTS = 1
_SCALE_FREE = 0

# How a state tensor goes with the weight's norm, gradients going as 1/||w||.
_POWERS: dict[str, int] = {
    "momentum_buffer": _GRADIENTS,
    "momentum": _GRADIENTS,
    "exp_avg": _GRADIENTS,
    "grad_avg": _GRADIENTS,
    "exp_avg_diff": _GRADIENTS,
    "neg_pre_grad": _GRADIENTS,
    "last_grad": _GRADIENTS,
    "exp_inf": _GRADIENTS,
    "exp_avg_sq": _SQUARES,
    "max_exp_avg_sq": _SQUARES,
    "exp_avg_var": _SQUARES,
    "max_exp_avg_var": _SQUARES,
    "square_avg": _SQUARES,
    "sum": _SQUARES,
    "exp_avg_sq_row": _SQUARES,
    "exp_avg_sq_col": _SQUARES,
    "exp_avg_sq_r": _SQUARES,
    "exp_avg_sq_c": _SQUARES,
    "exp_avg_slow": _GRADIENTS,
    "lookahead_slow_buff": _WEIGHTS,
}
# What differs: buffers of updates that are already normalised do not know the norm; LARS's has a trust ratio in it.
_EXCEPTIONS: dict[str, dict[str, int]] = {
    "LaProp": {"exp_avg": _SCALE_FREE},
    "Adopt": {"exp_avg": _SCALE_FREE},
    "Adafactor": {"exp_avg": _SCALE_FREE},
    "AdafactorBigVision": {"exp_avg": _SCALE_FREE},
    "NvNovoGrad": {"exp_avg": _SCALE_FREE},
    "RMSprop": {"momentum_buffer": _SCALE_FREE},
    "RMSpropTF": {"momentum_buffer": _SCALE_FREE},
    "Lars": {"momentum_buffer": _WEIGHTS},
}
_UNKNOWN = ("MADGRAD", "Adadelta", "Kron", "Adahessian")

_declared: "WeakKeyDictionary[Optimizer, WeakSet[Tensor]]" = WeakKeyDictionary()


def declare_invariant(optimizer: Optimizer, weights: Iterable[Tensor]) -> None:
    """Notes which of an optimizer's weights an audit has found scale-invariant (`watch` does it)."""
    _declared[optimizer] = WeakSet(weights)


def rescale_factor(line: Line, drop: float) -> float:
    """What to multiply ||w|| by when the learning rate is divided by `drop`, to stand on the new line at once.

    Derived here: at equilibrium ||w||^(2(1+p)) goes as lr^2/gamma, hence as lr: `drop^(-1/(2(1+p)))`, which is
    drop^(-1/4) for SGD (Wan et al., 2006.08419) and drop^(-1/2) for AdamW; 1 under a corrected decay
    (gamma ~ lr^2) has to be asked for as such.
    """
    if line.norm_exponent is None or line.norm_exponent <= -1 or drop <= 0:
        raise SmdtrackError(f"no rescaling for {line.optimizer} at a drop by {drop}: its norm does not set its angle")
    return float(drop ** (-1 / (2 * (1 + line.norm_exponent))))


def rescale_weight_norms(
    optimizer: Optimizer,
    factor: float,
    weights: Iterable[Tensor] | None = None,
) -> int:
    """Multiplies the norms of scale-invariant weights by `factor`, and the optimizer's state to match.

    The function that the network computes does not change; its gradients grow by 1/factor, so momentum buffers are
    multiplied by 1/factor and second moments by 1/factor^2. After dividing the learning rate by k, a factor of k^(-1/4)
    (SGD) or k^(-1/2) (AdamW), see `rescale_factor`, puts the angular update on its new line at once instead of after
    thousands of steps.

    Args:
        optimizer: any with tensors of gradients or squared gradients as state; timm's Lookahead is looked through.
        factor: positive.
        weights: the scale-invariant ones. None takes those that `smdtrack.watch` found; without a watch, all with two
            dimensions or more whose present gradient is orthogonal to them, with a warning.

    Returns:
        How many weights were rescaled.

    Raises:
        SmdtrackError: a factor that is not positive, or an optimizer whose state does not scale.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise SmdtrackError(f"factor is {factor!r}; it must be a positive number")
    family = identify(optimizer)
    inner = inner_optimizer(optimizer)
    name = type(inner).__name__
    if name in _UNKNOWN:
        raise SmdtrackError(f"{name} keeps a state that does not follow the weights' norm: it cannot be rescaled")
    chosen = _chosen(optimizer, inner, weights)
    changed = 0
    with torch.no_grad():
        for group in inner.param_groups:
            for weight in group["params"]:
                if id(weight) not in chosen:
                    continue
                weight.mul_(factor)
                _rescale_state(inner.state.get(weight, {}), name, factor, weight, family)
                if weight.grad is not None:
                    weight.grad.div_(factor)
                changed += 1
    return changed


def _chosen(optimizer: Optimizer, inner: Optimizer, weights: Iterable[Tensor] | None) -> set[int]:
    if weights is None:
        weights = _declared.get(optimizer) or _declared.get(inner)
    if weights is not None:
        return {id(weight) for weight in weights}
    found = {
        id(weight)
        for group in inner.param_groups
        for weight in group["params"]
        if weight.ndim >= 2 and _may_be_invariant(weight)
    }
    notify(
        f"rescale_weight_norms: no weights named and none watched, so all {len(found)} with two dimensions or more are "
        "rescaled; name the scale-invariant ones with weights=",
        stacklevel=4,
    )
    return found


def _may_be_invariant(weight: Tensor) -> bool:
    """A gradient along the weight rules invariance out (a necessary sign only: `smdtrack.audit` decides)."""
    if weight.grad is None:
        return True
    one, other = weight.detach().double(), weight.grad.detach().double()
    return bool((one * other).sum().abs() <= 1e-2 * one.norm() * other.norm())


def _rescale_state(state: Mapping[str, Any], name: str, factor: float, weight: Tensor, family: Family) -> None:
    exceptions = _EXCEPTIONS.get(name, {})
    if name == "Muon" and state.get("use_muon"):
        exceptions = {"exp_avg_sq": _SCALE_FREE}
    for key, value in state.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or key == "step":
            continue
        power = exceptions.get(key, _POWERS.get(key))
        if power is None:
            if value.shape == weight.shape:
                raise SmdtrackError(f"{family.name} keeps a state {key!r} that smdtrack does not know how to rescale")
            continue
        if power:
            value.mul_(factor**power)
