"""What the audit knows about each parameter while it runs, and the limits by which it decides."""

from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from smdtrack.invariance.gradient_statistics import ORTHOGONAL_COSINE, GradientStatistics, RadialDerivatives
from smdtrack.invariance.results import Cause, Scope, Verdict

# Energies `||w|| ||g||`, relative to the largest of all parameters. All values were chosen on 115 timm models in
# float64, where energies of parameters without influence were below 1e-13.
#: At or below this the parameter counts as having no gradient.
ZERO_ENERGY = 1e-10
#: At or below this a large cosine is not trusted: it may be rounding.
FAINT_ENERGY = 1e-7
#: At or below this a small cosine is not trusted either.
FAINT_INVARIANT_ENERGY = 1e-5

#: Below this |cos| the gradient proposes "invariant".
INVARIANT_COSINE = ORTHOGONAL_COSINE
#: Above this |cos| the gradient proves "sensitive". In between, forward passes decide.
RADIAL_COSINE = 1e-5

# Changes of the outputs, relative to the outputs, that count as no change. Eps is 1e-20 and the arithmetic float64.
#: When many parameters are changed at once.
UNCHANGED = 1e-6
#: When one parameter is scaled, relative to the change that other values of it make.
UNCHANGED_ALONE = 1e-5
#: When parameters that seem unused get other values.
UNTOUCHED = 1e-8


class Proposal(Enum):
    """What the gradients of all draws say about one parameter."""

    INVARIANT = "invariant"
    SENSITIVE = "sensitive"
    NO_GRADIENT = "no gradient"
    UNCLEAR = "unclear"


@dataclass(frozen=True)
class OutputChanges:
    """Relative changes of the outputs when one parameter alone is changed.

    Attributes:
        other_values: Random values of the same magnitude are put in.
        scaled: All elements are multiplied by 2.3.
        sign_flipped: All elements are multiplied by -1.
        element_factors: Each element is multiplied by its own positive random factor.
    """

    other_values: float
    scaled: float
    sign_flipped: float
    element_factors: float


@dataclass
class ParameterEvidence:
    """What is known about one parameter; filled in as the audit proceeds.

    Attributes:
        gradients: Statistics of each draw's backward pass.
        energy: Largest `||w|| ||g||` over the draws, relative to the largest of all parameters in the same draw.
        proposal: What the gradients say.
        verdict: The decision; None until it is made.
        scope: Whether each filter or only the whole tensor may be scaled.
        filter_dim: Dimension of the filters.
        cause: What makes the parameter invariant or degenerate.
        norm: Dotted name of the normalisation module that alone accounts for it.
        constant_variance_cosine: |cos| with the variance of batch norm held constant in the backward pass.
        constant_variance_energy: Relative energy in that pass.
        radial: Radial derivatives in that pass.
        unused_deviation: Change of the outputs when all parameters without a gradient got other values.
        changes: Changes of the outputs when this parameter alone was changed, if that was needed.
        group_deviation: Change of the outputs when all invariant parameters were scaled at once.
        filter_deviation: The same with one factor per filter.
        gradient_is_wrong: Whether autograd's radial derivative is not the derivative of the function.
    """

    gradients: list[GradientStatistics] = field(default_factory=list)
    energy: float = 0.0
    proposal: Proposal = Proposal.UNCLEAR
    verdict: Verdict | None = None
    scope: Scope | None = None
    filter_dim: int | None = None
    cause: Cause | None = None
    norm: str | None = None
    constant_variance_cosine: float = 0.0
    constant_variance_energy: float = 0.0
    radial: RadialDerivatives | None = None
    unused_deviation: float | None = None
    changes: OutputChanges | None = None
    group_deviation: float | None = None
    filter_deviation: float | None = None
    gradient_is_wrong: bool = False

    @property
    def cosine(self) -> float:
        """Largest |cos| between the parameter and its gradient over the draws."""
        return max((statistics.cosine for statistics in self.gradients), default=0.0)

    @property
    def filter_dims(self) -> list[int]:
        """Dimensions along which every slice was orthogonal to its gradient in all draws."""
        seen = [statistics.slice_cosines for statistics in self.gradients]
        dims = set.intersection(*(set(slices) for slices in seen)) if seen else set()
        return sorted(dim for dim in dims if all(slices[dim] < INVARIANT_COSINE for slices in seen))

    def numbers(self) -> dict[str, Any]:
        """Returns the evidence as plain numbers for people to read; nothing in the audit reads it."""
        slices = self.gradients[-1].slice_cosines if self.gradients else {}
        return {
            "cosines": [statistics.cosine for statistics in self.gradients],
            "energy": self.energy,
            "slice_cosines": {str(dim): value for dim, value in slices.items()},
            "proposal": self.proposal.value,
            "constant_variance_cosine": self.constant_variance_cosine,
            "constant_variance_energy": self.constant_variance_energy,
            "unused_deviation": self.unused_deviation,
            "changes": None if self.changes is None else asdict(self.changes),
            "group_deviation": self.group_deviation,
            "filter_deviation": self.filter_deviation,
            "gradient_is_wrong": self.gradient_is_wrong,
        }


def names_with(evidence: dict[str, ParameterEvidence], proposal: Proposal) -> list[str]:
    """Returns the names of the parameters for which the gradients made one proposal."""
    return [name for name, known in evidence.items() if known.proposal is proposal]
