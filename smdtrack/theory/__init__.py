"""Reference lines: what theory says of a scale-invariant weight under any optimizer."""

from smdtrack.theory.line import Line
from smdtrack.theory.registry import Family, identify, reference

__all__ = ["Family", "Line", "identify", "reference"]
