"""Selects the weights to track: scale-invariant matrices and kernels that the globs select."""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from smdtrack.invariance import Audit, audit
from smdtrack.names import canonical_name, selected, short_weight_name, unmatched_globs
from smdtrack.notices import WrongOptionError
from smdtrack.optimizers import parameters_of
from smdtrack.tracking.attach.model_discovery import held_by_others, other_optimizers
from smdtrack.tracking.attach.sharded_audit import audit_sharded, is_sharded

#: Largest |cos| between weight and gradient that counts as orthogonal, measured by the audit with batch norm's eps
#: removed. The smallest one observed for a weight that is not invariant was 1.5e-4.
_ORTHOGONAL = 1e-5


@dataclass(frozen=True)
class SelectedWeight:
    """A weight to track, by its canonical name; scope, filter dimension and norm are those of the audit."""

    name: str
    key: str
    shape: tuple[int, ...]
    scope: str
    filter_dim: int | None
    norm: str | None


@dataclass(frozen=True)
class Selection:
    """The weights of a model to track, with their parameters in the same order.

    They include weights that the optimizer does not hold yet: a part that is unfrozen later is measured from then on.

    Attributes:
        share_of_parameters: Number of elements of the weights that the optimizer holds now, divided by the number of
            elements of all parameters of the model.
        candidates: Number of scale-invariant weights before globs were applied.
        model: The model itself.
        norms: Per weight the one normalisation module that makes it scale-invariant, with one channel per filter; None
            if there is no such module.
    """

    model_name: str
    weights: tuple[SelectedWeight, ...]
    parameters: Sequence[nn.Parameter]
    share_of_parameters: float
    candidates: int
    norms: Sequence[nn.Module | None] = ()
    model: "weakref.ref[nn.Module] | None" = None

    @classmethod
    def empty(cls, model: nn.Module) -> "Selection":
        """Returns the selection of a process that does not measure: it has no weights."""
        return cls(model_name(model), (), (), 0.0, 0)


def select_weights(
    model: nn.Module,
    optimizer: Optimizer,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    example_input: Any = None,
    *,
    leave_to_others: bool = True,
) -> Selection:
    """Audits a model and selects among its scale-invariant weights of two dimensions and more.

    Args:
        model: Whose weights are selected.
        optimizer: That trains the model, or a part of it.
        include: Globs of weights to select; none selects all.
        exclude: Globs of weights to leave out.
        example_input: For the audit.
        leave_to_others: Whether to leave out the weights that other optimizers hold.

    Raises:
        SmdtrackError: If the model cannot be audited, or a glob matches no scale-invariant weight.
    """
    parameters = dict(model.named_parameters())
    elsewhere = held_by_others(optimizer) if leave_to_others else set()
    found = []
    for weight in _audit_once(model, example_input).weights:
        parameter = parameters[weight.name]
        # The theory assumes an orthogonal gradient; straight-through estimators give invariant weights another one.
        orthogonal = weight.cosine is None or weight.cosine < _ORTHOGONAL
        if weight.verdict == "invariant" and orthogonal and parameter.ndim >= 2 and id(parameter) not in elsewhere:
            name = canonical_name(weight.name)
            chosen = SelectedWeight(
                name, short_weight_name(name), weight.shape, weight.scope or "tensor", weight.filter_dim, weight.norm
            )
            found.append((chosen, parameter))
    names = [chosen.name for chosen, _ in found]
    for option, globs in (("include", include), ("exclude", exclude)):
        for glob in unmatched_globs(globs, names) if names else ():
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise WrongOptionError(f"{option} {glob!r} matches no scale-invariant weight; there are {shown}")
    kept = [(chosen, parameter) for chosen, parameter in found if selected(chosen.name, include, exclude)]
    others = [] if leave_to_others else other_optimizers(optimizer)
    stepped = {id(parameter) for one in (optimizer, *others) for parameter in parameters_of(one)}
    if not any(id(parameter) in stepped for _, parameter in kept):
        kept = []
    total = sum(parameter.numel() for parameter in parameters.values())
    modules = {canonical_name(name): module for name, module in model.named_modules()}
    return Selection(
        model_name=model_name(model),
        weights=tuple(chosen for chosen, _ in kept),
        parameters=tuple(parameter for _, parameter in kept),
        share_of_parameters=sum(p.numel() for _, p in kept if id(p) in stepped) / max(total, 1),
        candidates=len(found),
        norms=tuple(_norm_of(chosen, modules) for chosen, _ in kept),
        model=weakref.ref(model),
    )


def joined(selections: Sequence[Selection]) -> Selection:
    """Returns the selections of several models that one optimizer trains as one.

    The names begin with the model's, numbered if two models have the same one: `net1.conv1.weight`.
    """
    if len(selections) == 1:
        return selections[0]
    names = [selection.model_name for selection in selections]
    prefixes = [
        f"{name}{names[: index + 1].count(name)}" if names.count(name) > 1 else name for index, name in enumerate(names)
    ]
    return Selection(
        model_name="+".join(prefixes),
        weights=tuple(
            replace(weight, name=f"{prefix}.{weight.name}", key=f"{prefix}.{weight.key}")
            for prefix, selection in zip(prefixes, selections, strict=True)
            for weight in selection.weights
        ),
        parameters=tuple(parameter for selection in selections for parameter in selection.parameters),
        share_of_parameters=sum(selection.share_of_parameters for selection in selections) / len(selections),
        candidates=sum(selection.candidates for selection in selections),
        norms=tuple(norm for selection in selections for norm in selection.norms),
    )


def _norm_of(chosen: SelectedWeight, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """Returns the module that the audit named; None if it has more channels than the weight has filters."""
    norm = modules.get(chosen.norm) if chosen.norm is not None else None
    channels = getattr(norm, "num_features", None)
    if chosen.filter_dim is not None and channels != chosen.shape[chosen.filter_dim]:
        return None
    return norm


def model_name(model: nn.Module) -> str:
    """Returns timm's name of a model's architecture, or its class's name in lower case."""
    config = getattr(model, "pretrained_cfg", None) or {}
    name = config.get("architecture") if isinstance(config, dict) else getattr(config, "architecture", None)
    return str(name or type(model).__name__.lower())


_audits: "weakref.WeakKeyDictionary[nn.Module, tuple[Any, Audit]]" = weakref.WeakKeyDictionary()


def _audit_once(model: nn.Module, example_input: Any) -> Audit:
    """Returns the audit of a model; audits again only if its modules, their modes or its parameters have changed."""
    state = tuple((type(module).__name__, module.training) for module in model.modules())
    seen = (state, tuple((name, id(parameter)) for name, parameter in model.named_parameters()))
    known = _audits.get(model)
    if known is not None and known[0] == seen:
        return known[1]
    result = audit_sharded(model, example_input) if is_sharded(model) else audit(model, example_input)
    _audits[model] = (seen, result)
    return result
