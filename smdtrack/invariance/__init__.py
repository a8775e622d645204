"""Which parameters of a network are scale-invariant, with evidence."""

from smdtrack.invariance.ladder import audit
from smdtrack.invariance.verdicts import VERDICTS, Audit, Weight

__all__ = ["VERDICTS", "Audit", "Weight", "audit"]
