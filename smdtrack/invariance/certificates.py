"""Rungs 4 and 5: forward passes decide what the gradients left open, and certify what they proposed."""

from collections.abc import Callable

from torch import Tensor

from smdtrack.invariance.findings import (
    FAINT_ENERGY,
    UNCHANGED,
    UNCHANGED_ALONE,
    UNTOUCHED,
    ZERO_ENERGY,
    Finding,
    named,
)
from smdtrack.invariance.trial_model import Bench


def culprits(names: list[str], unchanged: Callable[[list[str]], bool]) -> list[str]:
    """Finds by halving the tensors of a group whose change is felt."""
    if not names or unchanged(names):
        return []
    if len(names) == 1:
        return names
    middle = len(names) // 2
    found = culprits(names[:middle], unchanged) + culprits(names[middle:], unchanged)
    return found or names


def asleep(bench: Bench, base: Tensor, findings: dict[str, Finding]) -> list[str]:
    """Returns tensors of a part of the network that sleeps at this point, and looks invariant though it is not.

    The units of a small gate may be dead for the whole batch. Its tensors have no gradient, not even with the variance
    of batch norm held constant, and yet the function depends on them.
    """
    silent = [name for name in named(findings, "silent") if findings[name].evidence["frozen_energy"] <= ZERO_ENERGY]
    return silent if silent and bench.deviation(base, silent, bench.anything_else) > UNTOUCHED else []


def settle_silent(bench: Bench, base: Tensor, findings: dict[str, Finding]) -> None:
    """Rung 4: of the tensors without a gradient, one forward pass changes all; what is felt is looked into."""
    silent = named(findings, "silent")
    if not silent:
        return
    deviation = bench.deviation(base, silent, bench.anything_else)
    if deviation <= UNTOUCHED:
        for name in silent:
            findings[name].verdict = "unused"
            findings[name].evidence["unused_deviation"] = deviation
        return
    felt = set(culprits(silent, lambda group: bench.deviation(base, group, bench.element_factors) <= UNCHANGED))
    quiet = [name for name in silent if name not in felt]
    sign_only = [name for name in quiet if findings[name].evidence["frozen_energy"] > ZERO_ENERGY]
    unread = [name for name in quiet if findings[name].evidence["frozen_energy"] <= ZERO_ENERGY]
    felt |= set(culprits(unread, lambda group: bench.deviation(base, group, bench.anything_else) <= UNTOUCHED))
    for name in sign_only:
        findings[name].verdict = "degenerate"
    for name in unread:
        findings[name].verdict = "unused"
    for name in felt:
        judge_alone(bench, base, name, findings[name])


def settle_doubtful(bench: Bench, base: Tensor, findings: dict[str, Finding]) -> None:
    """Rung 4: tensors of which the gradients say too little are judged by the function."""
    for name in named(findings, "doubtful"):
        judge_alone(bench, base, name, findings[name])


def judge_alone(bench: Bench, base: Tensor, name: str, finding: Finding) -> None:
    """Decides one tensor by forward passes: other values, a common factor, a factor per element."""
    anything = bench.deviation(base, [name], bench.anything_else)
    limit = max(UNCHANGED_ALONE * anything, 1e-12)
    scaled = bench.deviation(base, [name], lambda _, value: 2.3 * value)
    flipped = bench.deviation(base, [name], lambda _, value: -value)
    elements = bench.deviation(base, [name], bench.element_factors)
    finding.evidence["alone"] = {"anything": anything, "k=2.3": scaled, "k=-1": flipped, "elements": elements}
    if anything <= UNTOUCHED and flipped <= UNTOUCHED and finding.energy <= FAINT_ENERGY:
        finding.verdict = "unused"
    elif elements <= limit:
        finding.verdict = "degenerate"
    else:
        finding.verdict = "invariant" if scaled <= limit else "sensitive"


def certify(bench: Bench, base: Tensor, findings: dict[str, Finding]) -> dict[str, float | None]:
    """Rung 5: all invariant tensors scaled at once, per tensor and then per filter; what fails is judged alone."""
    positive = [name for name, finding in findings.items() if finding.verdict == "invariant"]
    if not positive:
        return {"tensor": None, "filter": None}
    deviation = bench.deviation(base, positive, bench.one_factor)
    if deviation > UNCHANGED:
        for name in culprits(positive, lambda group: bench.deviation(base, group, bench.one_factor) <= UNCHANGED):
            judge_alone(bench, base, name, findings[name])
        positive = [name for name in positive if findings[name].verdict == "invariant"]
        deviation = bench.deviation(base, positive, bench.one_factor)
    for name in positive:
        findings[name].evidence["group_deviation"] = deviation
    by_filter = _certify_filters(bench, base, {name: findings[name] for name in positive})
    return {"tensor": deviation, "filter": by_filter}


def _certify_filters(bench: Bench, base: Tensor, positive: dict[str, Finding]) -> float | None:
    for name, finding in positive.items():
        dims = [dim for dim in finding.filter_dims if bench.parameters[name].dim() > 1]
        finding.scope = "filter" if dims else "tensor"
        finding.filter_dim = dims[0] if dims else None

    def change(name: str, value: Tensor) -> Tensor:
        return bench.slice_factors(positive[name].filter_dim or 0)(name, value)

    filters = [name for name, finding in positive.items() if finding.scope == "filter"]
    if not filters:
        return None
    deviation = bench.deviation(base, filters, change)
    if deviation > UNCHANGED:
        for name in culprits(filters, lambda group: bench.deviation(base, group, change) <= UNCHANGED):
            positive[name].scope, positive[name].filter_dim = "tensor", None
        filters = [name for name in filters if positive[name].scope == "filter"]
        deviation = bench.deviation(base, filters, change)
    for name in filters:
        positive[name].evidence["filter_deviation"] = deviation
    return deviation
