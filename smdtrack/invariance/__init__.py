"""Which parameters of a network are scale-invariant, with evidence."""

from smdtrack.invariance.audit_model import audit
from smdtrack.invariance.results import VERDICTS, Audit, Weight

__all__ = ["VERDICTS", "Audit", "Weight", "audit"]
