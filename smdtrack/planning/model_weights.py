"""The decayed weights of a timm model as the recipe's optimizer groups them, with their shapes and initial norms."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from smdtrack.notices import SmdtrackError, first_line
from smdtrack.planning.matching import equilibrium_rms
from smdtrack.planning.recipe import Recipe
from smdtrack.theory.family import identify
from smdtrack.theory.line import Line


@dataclass(frozen=True)
class WeightGroup:
    """All decayed weights of a model that share one learning rate.

    Attributes:
        lr_scale: their learning rate over the recipe's; 1 without layer decay.
        weights: how many there are.
        parameters: number of their elements.
        line: at the recipe's learning rate, for the shape of the largest of them.
        start_norms: initial norm of each over its equilibrium norm; empty if that depends on unknown gradients.
    """

    lr_scale: float
    weights: int
    parameters: int
    line: Line
    start_norms: tuple[float, ...]


def group_weights(model: nn.Module, recipe: Recipe, effective_gradient: float | None = None) -> list[WeightGroup]:
    """Returns the groups of a model's decayed weights with two dimensions or more, early layers first.

    The classifier is left out. It is never scale-invariant.

    Args:
        model: a timm model with its initial weights.
        recipe: optimizer, weight decay and layer decay.
        effective_gradient: `||g|| ||w||` to assume for SGD-like optimizers, whose equilibrium norm depends on it.

    Raises:
        SmdtrackError: The optimizer refuses its settings, or no weight is decayed.
    """
    from timm.optim import create_optimizer_v2, optimizer_kwargs

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer = create_optimizer_v2(model, **optimizer_kwargs(recipe), **recipe.opt_kwargs)
    except (TypeError, ValueError, AssertionError, ImportError, ArithmeticError, LookupError) as error:
        raise SmdtrackError(f"optimizer {recipe.opt!r} refuses these settings: {first_line(error)}") from error
    family = identify(optimizer)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_scale: dict[float, list[tuple[nn.Parameter, dict[str, object]]]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.ndim >= 2 and group["weight_decay"] > 0 and not _in_classifier(model, names[id(parameter)]):
                by_scale.setdefault(float(group.get("lr_scale", 1.0)), []).append((parameter, group))
    if not by_scale:
        raise SmdtrackError("no weight of this model is decayed under this recipe")
    found = []
    for lr_scale, members in sorted(by_scale.items()):
        largest, group = max(members, key=lambda member: member[0].numel())
        lr = recipe.lr * lr_scale
        line = family.line({**group, "lr": lr}, tuple(largest.shape))
        scaled = replace(recipe, lr=lr, min_lr=min(recipe.min_lr, lr))
        norms = [_start_norm(parameter, line, scaled, effective_gradient) for parameter, _ in members]
        known = tuple(norm for norm in norms if norm is not None)
        found.append(WeightGroup(lr_scale, len(members), sum(p.numel() for p, _ in members), line, known))
    return found


def _in_classifier(model: nn.Module, name: str) -> bool:
    classifiers = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    return any(name.startswith(f"{classifier}.") for classifier in classifiers)


def _start_norm(weight: nn.Parameter, line: Line, recipe: Recipe, effective_gradient: float | None) -> float | None:
    """Returns a weight's norm over its equilibrium norm; None if the equilibrium norm is not known."""
    norm = float(weight.detach().norm())
    shape = tuple(weight.shape)
    rms = equilibrium_rms(line, recipe, shape)
    equilibrium = None if rms is None else rms * math.sqrt(math.prod(shape))
    if equilibrium is None and effective_gradient is not None:
        equilibrium = line.equilibrium_norm(norm, None, effective_gradient)
    return norm / equilibrium if equilibrium else None


def spread(groups: Sequence[WeightGroup]) -> tuple[float, float, float] | None:
    """Returns the 10 %, 50 % and 90 % quantiles of the groups' initial norms over equilibrium; None if unknown."""
    norms = [norm for group in groups for norm in group.start_norms]
    if not norms:
        return None
    low, middle, high = np.quantile(norms, (0.1, 0.5, 0.9)).tolist()
    return low, middle, high
