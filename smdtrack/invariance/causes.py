"""What makes a parameter invariant, and which normalisation module accounts for it."""

from collections.abc import Iterable

from smdtrack.invariance.constant_variance import ConstantVariance, responsible_module
from smdtrack.invariance.evidence import Limits, ParameterEvidence, Proposal
from smdtrack.invariance.gradient_statistics import radial_derivatives
from smdtrack.invariance.trial_model import TrialModel


def hold_batch_variance_constant(trial: TrialModel, evidence: dict[str, ParameterEvidence]) -> ConstantVariance:
    """Runs one backward pass in which batch norm's variance is a constant, and notes what each parameter shows.

    It runs before the decisions because it also tells parameters that batch norm silences from unused ones.
    """
    mode = ConstantVariance(trial.settings)
    with mode.following(trial.model):
        trial.backward(mode)
    statistics = trial.statistics()
    largest = max(entry.energy for entry in statistics.values())
    for name, known in evidence.items():
        known.constant_variance_cosine = statistics[name].cosine
        known.constant_variance_energy = statistics[name].energy / largest if largest > 0 else 0.0
        if known.proposal is not Proposal.SENSITIVE:
            known.radial = radial_derivatives(trial.parameters[name], known.filter_dims(trial.limits))
    # The forward passes that follow keep copies of the weights: gradients beside them would be the peak of memory.
    trial.drop_gradients()
    return mode


def attribute(trial: TrialModel, evidence: dict[str, ParameterEvidence], batch_norm: ConstantVariance) -> None:
    """Sets cause and responsible module of the invariant and degenerate parameters.

    With the variance of batch norm held constant, a parameter that batch norm made invariant gets a radial derivative.
    """
    limits = trial.limits
    scale_free = [known for known in evidence.values() if known.verdict in ("invariant", "degenerate")]
    for known in scale_free:
        radial = known.constant_variance_cosine > limits.cosine and known.constant_variance_energy > limits.zero_energy
        known.cause = "batch_norm" if radial and not known.gradient_is_wrong else "other"
    _set_norms([known for known in scale_free if known.cause == "batch_norm"], batch_norm, limits)
    others = {name: known for name, known in evidence.items() if known.cause == "other" and not known.gradient_is_wrong}
    if others:
        mode = ConstantVariance(trial.settings, every_norm=True)
        with mode.following(trial.model):
            trial.backward(mode)
        for name, known in others.items():
            known.radial = radial_derivatives(trial.parameters[name], known.filter_dims(trial.limits))
        trial.drop_gradients()
        _set_norms(others.values(), mode, limits)


def _set_norms(parameters: Iterable[ParameterEvidence], mode: ConstantVariance, limits: Limits) -> None:
    for known in parameters:
        if known.radial is None:
            continue
        by_filter = known.filter_dim is not None or known.verdict == "degenerate"
        radial = known.radial.by_slice[known.filter_dim or 0] if by_filter else known.radial.whole
        if float(radial.abs().sum()) > limits.cosine * known.radial.energy:
            known.norm = responsible_module(radial, mode.derivatives)
