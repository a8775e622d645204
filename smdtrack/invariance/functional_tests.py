"""Decisions by forward passes: change parameters and see whether the outputs change."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from smdtrack.invariance.evidence import OutputChanges, ParameterEvidence, Proposal, names_with
from smdtrack.invariance.outputs import Baseline
from smdtrack.invariance.trial_model import TrialModel


class Certificate(NamedTuple):
    """Relative change of the outputs when all invariant parameters are scaled at once; None if nothing was scaled.

    Attributes:
        tensor: With one random factor per parameter.
        filter: With one random factor per filter.
    """

    tensor: float | None = None
    filter: float | None = None


def members_that_fail(names: list[str], passes: Callable[[list[str]], bool]) -> list[str]:
    """Finds the members of a group that make a test fail, by testing halves.

    Args:
        names: The group.
        passes: Tests a group.

    Returns:
        The members that fail alone; the whole group if it fails only jointly.
    """
    if not names or passes(names):
        return []
    if len(names) == 1:
        return names
    middle = len(names) // 2
    found = members_that_fail(names[:middle], passes) + members_that_fail(names[middle:], passes)
    return found or names


def without_influence(names: list[str], evidence: dict[str, ParameterEvidence], zero_energy: float) -> list[str]:
    """Returns those parameters that have no gradient even with the variance of batch norm held constant."""
    return [name for name in names if evidence[name].constant_variance_energy <= zero_energy]


def decide_without_gradient(
    trial: TrialModel, base: Baseline, evidence: dict[str, ParameterEvidence], unread_deviation: float
) -> list[str]:
    """Decides parameters without a gradient: unused ones, and those of which only the signs matter.

    Args:
        trial: The model.
        base: Its outputs at the present point.
        evidence: What is known.
        unread_deviation: Change of the outputs when all parameters `without_influence` get other values.

    Returns:
        The parameters on whose magnitude the outputs depend although they have no gradient.
    """
    limits = trial.limits
    names = names_with(evidence, Proposal.NO_GRADIENT)
    unread = set(without_influence(names, evidence, limits.zero_energy))
    if unread_deviation <= limits.untouched:
        for name in unread:
            evidence[name].verdict = "unused"
            evidence[name].unused_deviation = unread_deviation
        names = [name for name in names if name not in unread]

    def unscaled(group: list[str]) -> bool:
        return trial.deviation(base, group, trial.element_factors) <= limits.unchanged

    def untouched(group: list[str]) -> bool:
        return trial.deviation(base, group, trial.other_values) <= limits.untouched

    # With detached paths most of them may be felt, as all of a target network: halving would take two passes for each.
    one_by_one = not trial.uses_detach
    felt = members_that_fail(names, unscaled) if one_by_one else [*names] if names and not unscaled(names) else []
    rest = [name for name in names if name not in set(felt)]
    with_signs = set(members_that_fail(rest, untouched))
    for name in rest:
        evidence[name].verdict = "degenerate" if name in with_signs else "unused"
    return felt


def decide_unclear(trial: TrialModel, base: Baseline, evidence: dict[str, ParameterEvidence]) -> None:
    """Decides the parameters about which the gradients say too little."""
    for name in names_with(evidence, Proposal.UNCLEAR):
        decide_alone(trial, base, name, evidence[name])


def decide_alone(trial: TrialModel, base: Baseline, name: str, known: ParameterEvidence) -> None:
    """Decides one parameter by at most four forward passes in which it alone is changed."""
    limits = trial.limits
    changes = OutputChanges(
        other_values=trial.deviation(base, [name], trial.other_values),
        scaled=trial.deviation(base, [name], lambda _, value: 2.3 * value),
        sign_flipped=trial.deviation(base, [name], lambda _, value: -value),
        element_factors=trial.deviation(base, [name], trial.element_factors),
    )
    known.changes = changes
    limit = max(limits.unchanged_alone * min(changes.other_values, 1.0), limits.rounding)
    unfelt = changes.other_values <= limits.untouched and changes.sign_flipped <= limits.untouched
    if unfelt and known.energy <= limits.faint_energy:
        known.verdict = "unused"
    elif changes.element_factors <= limit:
        known.verdict = "degenerate"
    else:
        known.verdict = "invariant" if changes.scaled <= limit else "sensitive"


def certify(trial: TrialModel, base: Baseline, evidence: dict[str, ParameterEvidence]) -> Certificate:
    """Scales all invariant parameters at once, by a factor per filter where the gradients say so, else per tensor.

    If the outputs change, it scales per tensor and per filter one after the other. The parameters that change the
    outputs are found by halving and decided alone. Those that still change them together are not called invariant. So
    the certificate never contradicts the verdicts.
    """
    limits = trial.limits
    invariant = {name: known for name, known in evidence.items() if known.verdict == "invariant"}
    for name, known in invariant.items():
        dims = [dim for dim in known.filter_dims(limits) if trial.parameters[name].dim() > 1]
        known.scope = "filter" if dims else "tensor"
        known.filter_dim = dims[0] if dims else None
    if not invariant:
        return Certificate()

    def by_scope(name: str, value: Tensor) -> Tensor:
        dim = invariant[name].filter_dim
        return trial.one_factor(name, value) if dim is None else trial.slice_factors(dim)(name, value)

    deviation = trial.deviation(base, invariant, by_scope)
    if deviation > limits.unchanged:
        return _certify_separately(trial, base, invariant)
    for known in invariant.values():
        known.group_deviation = deviation
    return Certificate(deviation, deviation if any(k.scope == "filter" for k in invariant.values()) else None)


def _certify_separately(trial: TrialModel, base: Baseline, invariant: dict[str, ParameterEvidence]) -> Certificate:
    limits = trial.limits

    def change_per_filter(name: str, value: Tensor) -> Tensor:
        return trial.slice_factors(invariant[name].filter_dim or 0)(name, value)

    def unchanged(group: list[str]) -> bool:
        return trial.deviation(base, group, trial.one_factor) <= limits.unchanged

    def unchanged_per_filter(group: list[str]) -> bool:
        return trial.deviation(base, group, change_per_filter) <= limits.unchanged

    for name in members_that_fail(list(invariant), unchanged):
        decide_alone(trial, base, name, invariant[name])
    names = [name for name, known in invariant.items() if known.verdict == "invariant"]
    deviation = trial.deviation(base, names, trial.one_factor) if names else None
    if deviation is not None and deviation > limits.unchanged:
        for name in names:
            invariant[name].verdict = "sensitive"
        names, deviation = [], None
    for known in invariant.values():
        if known.verdict != "invariant":
            known.scope, known.filter_dim = None, None
        else:
            known.group_deviation = deviation
    filters = [name for name in names if invariant[name].scope == "filter"]
    by_filter = trial.deviation(base, filters, change_per_filter) if filters else None
    while by_filter is not None and by_filter > limits.unchanged:
        for name in members_that_fail(filters, unchanged_per_filter) or filters:
            invariant[name].scope, invariant[name].filter_dim = "tensor", None
        filters = [name for name in filters if invariant[name].scope == "filter"]
        by_filter = trial.deviation(base, filters, change_per_filter) if filters else None
    return Certificate(deviation, by_filter)
