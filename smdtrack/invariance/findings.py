"""What is known of each tensor while the ladder is being climbed, and the limits by which it is judged."""

from dataclasses import dataclass, field
from typing import Any

from smdtrack.invariance.results import Cause, Scope, Verdict
from smdtrack.invariance.trial_model import ORTHOGONAL, RadialDerivatives, Reading

#: Energies, relative to the largest tensor's: none at all; so faint that a cosine says nothing; so faint that even a
#: small cosine is looked into.
ZERO_ENERGY = 1e-10
FAINT_ENERGY = 1e-7
FAINT_INVARIANT_ENERGY = 1e-5
#: Cosines below and above which the gradients' word is taken; in between the function is asked.
INVARIANT_COSINE = ORTHOGONAL
RADIAL_COSINE = 1e-5
#: Relative changes of the outputs that count as none: of many tensors at once, of one, of one that nothing reads.
UNCHANGED = 1e-6
UNCHANGED_ALONE = 1e-5
UNTOUCHED = 1e-8


@dataclass
class Finding:
    """What is known of one tensor while the ladder is being climbed."""

    readings: list[Reading] = field(default_factory=list)
    energy: float = 0.0
    verdict: Verdict | None = None
    scope: Scope | None = None
    filter_dim: int | None = None
    cause: Cause | None = None
    norm: str | None = None
    radial: RadialDerivatives | None = None
    evidence: dict[str, Any] = field(default_factory=dict)

    @property
    def cosine(self) -> float:
        return max((reading.cosine for reading in self.readings), default=0.0)

    @property
    def filter_dims(self) -> list[int]:
        """Dimensions along which every slice had no radial derivative of its own, in all draws."""
        seen = [reading.slices for reading in self.readings]
        dims = set.intersection(*(set(slices) for slices in seen)) if seen else set()
        return sorted(dim for dim in dims if all(slices[dim] < INVARIANT_COSINE for slices in seen))


def named(findings: dict[str, Finding], proposed: str) -> list[str]:
    return [name for name, finding in findings.items() if finding.evidence["proposed"] == proposed]
