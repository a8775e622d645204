"""Parameters whose gradient is not the derivative of the function: detached paths and straight-through estimators.

Their radial derivative proves nothing. They are decided by the derivative through `detach` and `no_grad`, and by a few
forward passes where that is not the whole story.
"""

from dataclasses import dataclass

import torch

from smdtrack.invariance.computation_mode import ComputationMode
from smdtrack.invariance.evidence import ParameterEvidence, Proposal, names_with
from smdtrack.invariance.functional_tests import decide_alone, members_that_fail
from smdtrack.invariance.gradient_evidence import PointSettings, proposal
from smdtrack.invariance.gradient_statistics import GradientStatistics
from smdtrack.invariance.outputs import Baseline
from smdtrack.invariance.trial_model import NotFiniteError, TrialModel

#: Forward passes that may be spent beyond those of a model without detached paths.
MOST_PASSES = 16
_PASSES_ALONE = 4

#: Relative steps of the difference quotient. Three, because a kink of the function may lie within one of them.
_STEPS = (1e-8, 1e-7, 1e-9)
#: Relative error of the difference quotient that counts as none.
_TOLERANCE = 1e-6


@dataclass
class PassBudget:
    """Counts forward passes down, so that a model with detached paths does not cost many times more than others."""

    left: int = MOST_PASSES

    def take(self, passes: int = 1) -> bool:
        """Takes some passes if so many are left."""
        if self.left < passes:
            return False
        self.left -= passes
        return True


def gradients_are_right(
    trial: TrialModel, radial: dict[str, float], names: list[str], budget: PassBudget | None = None
) -> bool:
    """Whether the radial derivatives of some parameters are those of the function, in a random combination.

    A difference quotient along random radial directions of all of them at once must equal the sum that they give. True
    if the budget is used up.
    """
    directions = {name: 1.5 - float(torch.rand((), generator=trial.generator, device="cpu")) for name in names}
    here = trial.loss_here()
    noise = 1e-14 * max(1.0, abs(here))
    claimed = sum(directions[name] * radial[name] for name in names)
    size = sum(abs(directions[name] * radial[name]) for name in names)

    def loss_at(step: float) -> float:
        with trial.changed(names, lambda name, value: value * (1 + step * directions[name])):
            return trial.loss()

    for step in _STEPS:
        limit = _TOLERANCE * size + noise / step
        if budget is not None and not budget.take(2):
            return True
        ahead = loss_at(step)
        if abs((ahead - here) / step - claimed) <= limit:
            return True
        if abs((ahead - loss_at(-step)) / (2 * step) - claimed) <= limit:
            return True
    return False


def check_gradients(
    trial: TrialModel, settings: PointSettings, evidence: dict[str, ParameterEvidence], felt: list[str]
) -> bool:
    """Decides parameters whose gradient is not the derivative of the function.

    Args:
        trial: The model, at the point of the last plain backward pass.
        settings: How points are drawn.
        evidence: What is known; verdicts are set.
        felt: Parameters without a gradient on which the outputs depend.

    Returns:
        Whether there are such parameters.
    """
    if trial.settings.dtype != torch.float64:
        # The difference quotient needs float64. A radial derivative then counts as a proof, and what has no gradient
        # but matters is decided alone.
        budget = PassBudget()
        for name in felt:
            evidence[name].verdict = "sensitive"
            if budget.take(_PASSES_ALONE):
                decide_alone(trial, trial.baseline(), name, evidence[name])
        return bool(felt)
    sensitive = names_with(evidence, Proposal.SENSITIVE)
    radial = {name: evidence[name].gradients[-1].inner for name in sensitive}
    wrong = bool(sensitive) and not gradients_are_right(trial, radial, sensitive)
    if not wrong and not felt:
        return False
    budget = PassBudget()
    affected = [*felt, *(sensitive if wrong else [])]
    draws = _statistics_through_detach(trial, settings)
    if draws is None:
        _decide_by_halving(trial, evidence, affected, radial, budget)
        return True
    _decide_by_draws(trial, evidence, affected, draws, budget)
    return True


def _statistics_through_detach(
    trial: TrialModel, settings: PointSettings
) -> list[dict[str, GradientStatistics]] | None:
    """Takes gradients through `detach` and `no_grad` at this point and at a new one; None if that is impossible."""
    first = _through_detach_here(trial)
    if first is None:
        return None
    trial.move(settings.distance, settings.template)
    second = _through_detach_here(trial)
    return [first] if second is None else [first, second]


def _through_detach_here(trial: TrialModel) -> dict[str, GradientStatistics] | None:
    try:
        trial.backward(ComputationMode(trial.settings, through_detach=True))
        return trial.statistics()
    except (NotFiniteError, RuntimeError, TypeError, ValueError):
        # Among others, a leaf that requires a gradient is changed in place under `no_grad`.
        return None
    finally:
        trial.drop_gradients()


def _decide_by_draws(
    trial: TrialModel,
    evidence: dict[str, ParameterEvidence],
    names: list[str],
    draws: list[dict[str, GradientStatistics]],
    budget: PassBudget,
) -> None:
    limits = trial.limits
    largest = [max(entry.energy for entry in draw.values()) or 1.0 for draw in draws]
    # A pass through `detach` draws a loss over more outputs; the loss of the plain pass is gone.
    base = trial.baseline()
    unclear = []
    for name in names:
        known = evidence[name]
        entries = [draw[name] for draw in draws]
        known.through_detach = entries
        energy = max(entry.energy / size for entry, size in zip(entries, largest, strict=True))
        suggested = proposal(max(entry.cosine for entry in entries), energy, limits)
        if suggested is Proposal.INVARIANT:
            known.verdict = "invariant"
            known.gradient_is_wrong = known.proposal is not Proposal.NO_GRADIENT
        elif suggested is Proposal.SENSITIVE:
            known.verdict = "sensitive"
        else:
            known.verdict = "sensitive"
            unclear.append(name)
    _decide_groups(trial, base, evidence, unclear, budget)


def _decide_groups(
    trial: TrialModel, base: Baseline, evidence: dict[str, ParameterEvidence], names: list[str], budget: PassBudget
) -> None:
    """Decides parameters without any derivative, as of a sign: all at once, then alone while passes are left."""
    limits = trial.limits
    if not names or not budget.take(2):
        return
    # Behind a batch norm of tiny variance rounding errors reach 1e-7: a parameter that matters changes far more.
    if trial.deviation(base, names, trial.other_values) <= limits.unchanged:
        for name in names:
            evidence[name].verdict = "unused"
        return
    if trial.deviation(base, names, trial.element_factors) <= limits.unchanged:

        def untouched(group: list[str]) -> bool:
            return not budget.take() or trial.deviation(base, group, trial.other_values) <= limits.unchanged

        for name in members_that_fail(names, untouched):
            evidence[name].verdict = "degenerate"
            evidence[name].gradient_is_wrong = evidence[name].proposal is not Proposal.NO_GRADIENT
        for name in names:
            if evidence[name].verdict != "degenerate":
                evidence[name].verdict = "unused"
        return
    for name in names:
        if not budget.take(_PASSES_ALONE):
            return
        decide_alone(trial, base, name, evidence[name])
        evidence[name].gradient_is_wrong = evidence[name].proposal is not Proposal.NO_GRADIENT


def _decide_by_halving(
    trial: TrialModel,
    evidence: dict[str, ParameterEvidence],
    names: list[str],
    radial: dict[str, float],
    budget: PassBudget,
) -> None:
    """Finds wrong derivatives by halving while passes are left; what is not looked into counts as sensitive."""
    with_gradient = [name for name in names if name in radial]
    for name in names:
        evidence[name].verdict = "sensitive"
    trial.backward()
    radial = {name: entry.inner for name, entry in trial.statistics().items() if name in radial}
    trial.drop_gradients()
    found = members_that_fail(with_gradient, lambda group: gradients_are_right(trial, radial, group, budget))
    base = trial.baseline()
    for name in [*found, *(name for name in names if name not in radial)]:
        if not budget.take(_PASSES_ALONE):
            return
        decide_alone(trial, base, name, evidence[name])
        evidence[name].gradient_is_wrong = name in radial
