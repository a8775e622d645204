"""Decisions by forward passes: change parameters and see whether the outputs change."""

from collections.abc import Callable

from torch import Tensor

from smdtrack.invariance.evidence import (
    FAINT_ENERGY,
    UNCHANGED,
    UNCHANGED_ALONE,
    UNTOUCHED,
    ZERO_ENERGY,
    OutputChanges,
    ParameterEvidence,
    Proposal,
    names_with,
)
from smdtrack.invariance.trial_model import TrialModel

#: Changes of the outputs below this are float64 rounding, however little other values of the parameter change them.
_ROUNDING = 1e-12


def members_that_fail(names: list[str], passes: Callable[[list[str]], bool]) -> list[str]:
    """Finds the members of a group that make a test fail, by testing halves.

    Args:
        names: The group.
        passes: Tests a group.

    Returns:
        The members that fail alone; the whole group where it fails only jointly.
    """
    if not names or passes(names):
        return []
    if len(names) == 1:
        return names
    middle = len(names) // 2
    found = members_that_fail(names[:middle], passes) + members_that_fail(names[middle:], passes)
    return found or names


def inactive_parameters(trial: TrialModel, base: Tensor, evidence: dict[str, ParameterEvidence]) -> list[str]:
    """Returns parameters without a gradient if they matter at other values: their part is inactive at this point.

    All units of a small gate may be dead for a whole batch. Its parameters then have no gradient, not even with the
    variance of batch norm held constant, and yet the function depends on them.
    """
    names = [
        name
        for name in names_with(evidence, Proposal.NO_GRADIENT)
        if evidence[name].constant_variance_energy <= ZERO_ENERGY
    ]
    return names if names and trial.deviation(base, names, trial.other_values) > UNTOUCHED else []


def decide_without_gradient(trial: TrialModel, base: Tensor, evidence: dict[str, ParameterEvidence]) -> None:
    """Decides the parameters without a gradient: one forward pass changes all, and only what matters is looked into."""
    names = names_with(evidence, Proposal.NO_GRADIENT)
    if not names:
        return
    deviation = trial.deviation(base, names, trial.other_values)
    if deviation <= UNTOUCHED:
        for name in names:
            evidence[name].verdict = "unused"
            evidence[name].unused_deviation = deviation
        return
    felt = set(members_that_fail(names, lambda group: trial.deviation(base, group, trial.element_factors) <= UNCHANGED))
    unfelt = [name for name in names if name not in felt]
    only_signs_matter = [name for name in unfelt if evidence[name].constant_variance_energy > ZERO_ENERGY]
    rest = [name for name in unfelt if evidence[name].constant_variance_energy <= ZERO_ENERGY]
    felt |= set(members_that_fail(rest, lambda group: trial.deviation(base, group, trial.other_values) <= UNTOUCHED))
    for name in only_signs_matter:
        evidence[name].verdict = "degenerate"
    for name in rest:
        evidence[name].verdict = "unused"
    for name in felt:
        decide_alone(trial, base, name, evidence[name])


def decide_unclear(trial: TrialModel, base: Tensor, evidence: dict[str, ParameterEvidence]) -> None:
    """Decides the parameters about which the gradients say too little."""
    for name in names_with(evidence, Proposal.UNCLEAR):
        decide_alone(trial, base, name, evidence[name])


def decide_alone(trial: TrialModel, base: Tensor, name: str, known: ParameterEvidence) -> None:
    """Decides one parameter by four forward passes in which it alone is changed."""
    changes = OutputChanges(
        other_values=trial.deviation(base, [name], trial.other_values),
        scaled=trial.deviation(base, [name], lambda _, value: 2.3 * value),
        sign_flipped=trial.deviation(base, [name], lambda _, value: -value),
        element_factors=trial.deviation(base, [name], trial.element_factors),
    )
    known.changes = changes
    limit = max(UNCHANGED_ALONE * changes.other_values, _ROUNDING)
    unfelt = changes.other_values <= UNTOUCHED and changes.sign_flipped <= UNTOUCHED
    if unfelt and known.energy <= FAINT_ENERGY:
        known.verdict = "unused"
    elif changes.element_factors <= limit:
        known.verdict = "degenerate"
    else:
        known.verdict = "invariant" if changes.scaled <= limit else "sensitive"


def certify(trial: TrialModel, base: Tensor, evidence: dict[str, ParameterEvidence]) -> dict[str, float | None]:
    """Scales all invariant parameters at once, per tensor and then per filter; decides alone those that fail.

    Returns:
        Relative change of the outputs with a factor per `tensor` and per `filter`; None where nothing was scaled.
    """
    names = [name for name, known in evidence.items() if known.verdict == "invariant"]
    if not names:
        return {"tensor": None, "filter": None}
    deviation = trial.deviation(base, names, trial.one_factor)
    if deviation > UNCHANGED:
        failing = members_that_fail(names, lambda group: trial.deviation(base, group, trial.one_factor) <= UNCHANGED)
        for name in failing:
            decide_alone(trial, base, name, evidence[name])
        names = [name for name in names if evidence[name].verdict == "invariant"]
        deviation = trial.deviation(base, names, trial.one_factor)
    for name in names:
        evidence[name].group_deviation = deviation
    by_filter = _certify_filters(trial, base, {name: evidence[name] for name in names})
    return {"tensor": deviation, "filter": by_filter}


def _certify_filters(trial: TrialModel, base: Tensor, invariant: dict[str, ParameterEvidence]) -> float | None:
    """Sets the scope of invariant parameters, and scales every filter of those that have one by its own factor."""
    for name, known in invariant.items():
        dims = [dim for dim in known.filter_dims if trial.parameters[name].dim() > 1]
        known.scope = "filter" if dims else "tensor"
        known.filter_dim = dims[0] if dims else None

    def change(name: str, value: Tensor) -> Tensor:
        return trial.slice_factors(invariant[name].filter_dim or 0)(name, value)

    names = [name for name, known in invariant.items() if known.scope == "filter"]
    if not names:
        return None
    deviation = trial.deviation(base, names, change)
    if deviation > UNCHANGED:
        for name in members_that_fail(names, lambda group: trial.deviation(base, group, change) <= UNCHANGED):
            invariant[name].scope, invariant[name].filter_dim = "tensor", None
        names = [name for name in names if invariant[name].scope == "filter"]
        deviation = trial.deviation(base, names, change)
    for name in names:
        invariant[name].filter_deviation = deviation
    return deviation
