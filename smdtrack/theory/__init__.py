"""Reference lines: what theory predicts for scale-invariant weights under any optimizer."""

from smdtrack.theory.family import Family, equilibrium_lines, identify
from smdtrack.theory.line import Line, LineDescription
from smdtrack.theory.rescaling import declare_invariant, rescale_factor, rescale_weight_norms

__all__ = [
    "Family",
    "Line",
    "LineDescription",
    "declare_invariant",
    "equilibrium_lines",
    "identify",
    "rescale_factor",
    "rescale_weight_norms",
]
