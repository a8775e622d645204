"""Reference lines: what theory says of a scale-invariant weight under any optimizer."""

from smdtrack.theory.line import Line
from smdtrack.theory.registry import Family, equilibrium_lines, identify
from smdtrack.theory.rescaling import declare_invariant, rescale_factor, rescale_weight_norms

__all__ = [
    "Family",
    "Line",
    "declare_invariant",
    "equilibrium_lines",
    "identify",
    "rescale_factor",
    "rescale_weight_norms",
]
