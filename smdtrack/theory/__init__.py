"""Reference lines: what theory says of a scale-invariant weight under any optimizer."""

from smdtrack.theory.line import Line
from smdtrack.theory.registry import Family, identify, reference
from smdtrack.theory.rescaling import declare_invariant, rescale_factor, rescale_weight_norms

__all__ = [
    "Family",
    "Line",
    "declare_invariant",
    "identify",
    "reference",
    "rescale_factor",
    "rescale_weight_norms",
]
