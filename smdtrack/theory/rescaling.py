"""Rescaling the norms of scale-invariant weights, so that their angles reach a new equilibrium without delay."""

import math
from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor
from torch.optim import Optimizer

from smdtrack.notices import SmdtrackError, notify
from smdtrack.optimizers import inner_optimizer
from smdtrack.theory.family import identify
from smdtrack.theory.line import Line
from smdtrack.theory.optimizer_info import GRADIENT, SQUARED_GRADIENT, WEIGHT, OptimizerInfo, StatePowers

#: Entries of the state by their usual names, for optimizers without a record.
_USUAL_POWERS: StatePowers = {
    "momentum_buffer": GRADIENT,
    "momentum": GRADIENT,
    "exp_avg": GRADIENT,
    "grad_avg": GRADIENT,
    "exp_inf": GRADIENT,
    "exp_avg_slow": GRADIENT,
    "exp_avg_sq": SQUARED_GRADIENT,
    "max_exp_avg_sq": SQUARED_GRADIENT,
    "square_avg": SQUARED_GRADIENT,
    "sum": SQUARED_GRADIENT,
}
#: What timm's Lookahead keeps in the state of the optimizer inside it: the slow weights.
_LOOKAHEAD_POWERS: StatePowers = {"lookahead_slow_buff": WEIGHT}
#: Largest cosine between weight and gradient that may still be rounding; a larger one rules scale invariance out.
_LARGEST_COSINE = 1e-2

_declared: "WeakKeyDictionary[Optimizer, WeakSet[Tensor]]" = WeakKeyDictionary()


def declare_invariant(optimizer: Optimizer, weights: Iterable[Tensor]) -> None:
    """Notes which of an optimizer's weights are scale-invariant; `smdtrack.watch` calls it after its audit."""
    _declared[optimizer] = WeakSet(weights)


def rescale_factor(line: Line, drop: float) -> float:
    """Returns the factor for ||w|| that puts a weight on its new line when the learning rate is divided by `drop`.

    Derived here: at equilibrium ||w||^(2(1+p)) is proportional to lr^2/gamma, hence to lr. This gives
    `drop^(-1/(2(1+p)))`: drop^(-1/4) for SGD (Wan et al., 2006.08419) and drop^(-1/2) for AdamW. With a corrected decay
    (gamma ~ lr^2) no rescaling is needed; this function does not know it.

    Raises:
        SmdtrackError: If the norm does not set the angle (trust ratios), or `drop` is not positive.
    """
    if line.norm_exponent is None or line.norm_exponent <= -1 or drop <= 0:
        raise SmdtrackError(f"no rescaling for {line.optimizer} at a drop by {drop}: its norm does not set its angle")
    return float(drop ** (-1 / (2 * (1 + line.norm_exponent))))


def rescale_weight_norms(
    optimizer: Optimizer,
    factor: float,
    weights: Iterable[Tensor] | None = None,
    *,
    clipped: bool = False,
) -> int:
    """Multiplies the norms of scale-invariant weights by `factor` and adapts the optimizer's state.

    The network computes the same function afterwards. Its gradients become larger by 1/factor, so momentum buffers are
    multiplied by 1/factor and second moments by 1/factor^2. After the learning rate was divided by k, a factor of
    k^(-1/4) (SGD) or k^(-1/2) (AdamW), see `rescale_factor`, brings the angular update to its new line without the
    thousands of steps that it takes otherwise.

    Args:
        optimizer: Of the weights. With timm's Lookahead, the inner optimizer's state and the slow weights follow.
        factor: Positive.
        weights: The scale-invariant ones. None takes those that `smdtrack.watch` found. Without a watch it takes all
            with two dimensions or more whose present gradient is orthogonal to them, with a warning.
        clipped: Whether gradients are clipped to the same norm at every step. The optimizer's state then does not
            depend on ||w|| and stays as it is. The factor is k^(-1/2) for SGD, too: `rescale_factor` of
            `line.with_constant_gradient_norm()`.

    Returns:
        The number of weights that were rescaled.

    Raises:
        SmdtrackError: If the factor is not positive, or the optimizer's state does not follow the norm in a known way.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise SmdtrackError(f"factor is {factor!r}; it must be a positive number")
    family = identify(optimizer)
    inner = inner_optimizer(optimizer)
    if family.info.state_powers is None:
        raise SmdtrackError(
            f"{type(inner).__name__} keeps a state that does not follow the weights' norm: it cannot be rescaled"
        )
    chosen = _chosen(optimizer, inner, weights)
    changed = 0
    with torch.no_grad():
        for group in inner.param_groups:
            for weight in group["params"]:
                if id(weight) not in chosen:
                    continue
                state = inner.state.get(weight, {})
                weight.mul_(factor)
                powers = _LOOKAHEAD_POWERS if clipped else _powers_of(family.info, family.known, state)
                _rescale_state(state, powers, factor, weight, None if clipped else family.name)
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
    )
    return found


def _may_be_invariant(weight: Tensor) -> bool:
    """Whether the present gradient is orthogonal to the weight: necessary for scale invariance, not sufficient."""
    if weight.grad is None:
        return True
    one, other = weight.detach().double(), weight.grad.detach().double()
    return bool((one * other).sum().abs() <= _LARGEST_COSINE * one.norm() * other.norm())


def _powers_of(info: OptimizerInfo, known: bool, state: Mapping[str, Any]) -> StatePowers:
    powers = info.state_powers(state) if callable(info.state_powers) else info.state_powers
    return {**((powers or {}) if known else _USUAL_POWERS), **_LOOKAHEAD_POWERS}


def _rescale_state(
    state: Mapping[str, Any], powers: StatePowers, factor: float, weight: Tensor, name: str | None
) -> None:
    """Multiplies the tensors of a state; one without a power is an error if `name` is given, and stays otherwise."""
    for key, value in state.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or key == "step":
            continue
        power = powers.get(key)
        if power is None:
            if name is not None and value.shape == weight.shape:
                raise SmdtrackError(f"{name} keeps a state {key!r} that smdtrack does not know how to rescale")
            continue
        if power:
            value.mul_(factor**power)
