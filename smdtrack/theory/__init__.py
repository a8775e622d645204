"""Reference lines: what theory predicts for scale-invariant weights under any optimizer."""

from smdtrack.theory.family import Family, identify
from smdtrack.theory.group_lines import equilibrium_lines
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
