"""smdtrack: tracks the angular update of scale-invariant weights beside the value that theory predicts."""

import importlib
from typing import TYPE_CHECKING, Any

from smdtrack.notices import SmdtrackError

if TYPE_CHECKING:
    from smdtrack.invariance import Audit, Weight, audit
    from smdtrack.record import Run, Summary, WeightSummary, read_run
    from smdtrack.sinks.memory import MemorySink
    from smdtrack.sinks.protocol import Sink
    from smdtrack.theory import Line, equilibrium_lines, rescale_factor, rescale_weight_norms
    from smdtrack.tracking import Tracker, watch

__version__ = "0.1.0"

__all__ = [
    "Audit",
    "Line",
    "MemorySink",
    "Run",
    "Sink",
    "SmdtrackError",
    "Summary",
    "Tracker",
    "Weight",
    "WeightSummary",
    "__version__",
    "audit",
    "equilibrium_lines",
    "read_run",
    "rescale_factor",
    "rescale_weight_norms",
    "watch",
]

# The module of each public name. It is imported when the name is first used, so `smdtrack --help` needs no torch.
_MODULES = {
    "Audit": "smdtrack.invariance",
    "Line": "smdtrack.theory",
    "MemorySink": "smdtrack.sinks.memory",
    "Run": "smdtrack.record",
    "Sink": "smdtrack.sinks.protocol",
    "Summary": "smdtrack.record",
    "Tracker": "smdtrack.tracking",
    "Weight": "smdtrack.invariance",
    "WeightSummary": "smdtrack.record",
    "audit": "smdtrack.invariance",
    "equilibrium_lines": "smdtrack.theory",
    "read_run": "smdtrack.record",
    "rescale_factor": "smdtrack.theory",
    "rescale_weight_norms": "smdtrack.theory",
    "watch": "smdtrack.tracking",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
