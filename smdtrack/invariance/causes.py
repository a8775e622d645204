"""Rung 6: what makes a weight invariant, and which normalisation answers for it."""

from collections.abc import Iterable

from smdtrack.invariance.attribution import FrozenVariance, responsible
from smdtrack.invariance.findings import INVARIANT_COSINE, ZERO_ENERGY, Finding
from smdtrack.invariance.trial_model import Bench


def freeze_batch_variance(bench: Bench, findings: dict[str, Finding]) -> FrozenVariance:
    """Rung 6, run early because it also tells tensors that batch norm silences from those that nothing reads."""
    mode = FrozenVariance()
    with mode.watching(bench.model):
        bench.backward(mode)
    readings = {name: bench.reading(name) for name in findings}
    most = max(reading.energy for reading in readings.values())
    for name, finding in findings.items():
        finding.evidence["frozen_cosine"] = readings[name].cosine
        finding.evidence["frozen_energy"] = readings[name].energy / most if most > 0 else 0.0
        if finding.evidence["proposed"] != "sensitive":
            finding.radial = bench.radial_derivatives(name, finding.filter_dims)
    # The forward passes that follow keep copies of the weights: gradients beside them would be the peak of memory.
    bench.release()
    return mode


def attribute(bench: Bench, findings: dict[str, Finding], frozen: FrozenVariance) -> None:
    """Rung 6: with the variance of batch norm held constant, what batch norm made invariant is so no more."""
    caused = {name: finding for name, finding in findings.items() if finding.verdict in ("invariant", "degenerate")}
    for finding in caused.values():
        radial = finding.evidence["frozen_cosine"] > INVARIANT_COSINE
        by_batch = radial and finding.evidence["frozen_energy"] > ZERO_ENERGY
        finding.cause = "batch_norm" if by_batch and "straight_through" not in finding.evidence else "other"
    _name_norms([finding for finding in caused.values() if finding.cause == "batch_norm"], frozen)
    others = {
        key: value
        for key, value in caused.items()
        if value.cause == "other" and "straight_through" not in value.evidence
    }
    if others:
        mode = FrozenVariance(everything=True)
        with mode.watching(bench.model):
            bench.backward(mode)
        for name, finding in others.items():
            finding.radial = bench.radial_derivatives(name, finding.filter_dims)
        bench.release()
        _name_norms(others.values(), mode)


def _name_norms(findings: Iterable[Finding], mode: FrozenVariance) -> None:
    for finding in findings:
        if finding.radial is None:
            continue
        by_filter = finding.filter_dim is not None or finding.verdict == "degenerate"
        radial = finding.radial.by_slice[finding.filter_dim or 0] if by_filter else finding.radial.whole
        if float(radial.abs().sum()) > INVARIANT_COSINE * finding.radial.energy:
            finding.norm = responsible(radial, mode.signatures)
