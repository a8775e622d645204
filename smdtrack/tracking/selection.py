"""Which weights are tracked: those that the audit proves invariant, that can turn, and that globs select."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from smdtrack.invariance import audit
from smdtrack.names import canonical_name, selected, short_weight_name, unmatched_globs
from smdtrack.notices import SmdtrackError
from smdtrack.tracking.discovery import parameters_of


@dataclass(frozen=True)
class Chosen:
    """A weight to track, by its canonical name; scope, dimension and norm as in the audit."""

    name: str
    key: str
    shape: tuple[int, ...]
    scope: str
    filter_dim: int | None
    norm: str | None


@dataclass(frozen=True)
class Selection:
    """The tracked weights of a model, with their parameters in the same order.

    Attributes:
        share_of_parameters: Elements of the tracked weights over elements of all of the model's parameters.
        candidates: So many scale-invariant weights could have been tracked, before globs.
    """

    model_name: str
    weights: tuple[Chosen, ...]
    parameters: tuple[nn.Parameter, ...]
    share_of_parameters: float
    candidates: int

    @classmethod
    def empty(cls, model: nn.Module) -> "Selection":
        """Returns the selection of a process that does not measure."""
        return cls(model_name(model), (), (), 0.0, 0)


def select_weights(
        model: nn.Module,
        optimizer: Optimizer,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        example_input: Any = None,
) -> Selection:
    """Audits a model and selects among its scale-invariant weights of two dimensions and more that the optimizer steps.

    Raises:
        SmdtrackError: If the model cannot be audited, or a glob matches no scale-invariant weight.
    """
    parameters = dict(model.named_parameters())
    stepped = {id(parameter) for parameter in parameters_of(optimizer)}
    found = []
    for weight in audit(model, example_input).weights:
        parameter = parameters[weight.name]
        if weight.verdict == "invariant" and parameter.ndim >= 2 and id(parameter) in stepped:
            name = canonical_name(weight.name)
            chosen = Chosen(
                name, short_weight_name(name), weight.shape, weight.scope or "tensor", weight.filter_dim, weight.norm
            )
            found.append((chosen, parameter))
    names = [chosen.name for chosen, _ in found]
    for option, globs in (("include", include), ("exclude", exclude)):
        for glob in unmatched_globs(globs, names) if names else ():
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise SmdtrackError(f"{option} {glob!r} matches no scale-invariant weight; there are {shown}")
    kept = [(chosen, parameter) for chosen, parameter in found if selected(chosen.name, include, exclude)]
    total = sum(parameter.numel() for parameter in parameters.values())
    return Selection(
        model_name=model_name(model),
        weights=tuple(chosen for chosen, _ in kept),
        parameters=tuple(parameter for _, parameter in kept),
        share_of_parameters=sum(parameter.numel() for _, parameter in kept) / max(total, 1),
        candidates=len(found),
    )


def model_name(model: nn.Module) -> str:
    """Returns timm's name of a model's architecture, or its class's name in lower case."""
    config = getattr(model, "pretrained_cfg", None) or {}
    name = config.get("architecture") if isinstance(config, dict) else getattr(config, "architecture", None)
    return str(name or type(model).__name__.lower())
