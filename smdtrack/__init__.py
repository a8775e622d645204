"""smdtrack: the angular update of scale-invariant weights beside the line that theory predicts."""

from typing import TYPE_CHECKING, Any

from smdtrack.notices import SmdtrackError, SmdtrackWarning

if TYPE_CHECKING:
    from smdtrack.invariance import audit
    from smdtrack.record import read_run
    from smdtrack.theory import equilibrium_lines, rescale_weight_norms
    from smdtrack.tracking import Tracker, watch

__version__ = "0.1.0"

__all__ = [
    "SmdtrackError",
    "SmdtrackWarning",
    "Tracker",
    "__version__",
    "audit",
    "equilibrium_lines",
    "read_run",
    "rescale_weight_norms",
    "watch",
]

# Imported when first used: `smdtrack --help` needs no torch.
_HOMES = {
    "Tracker": "smdtrack.tracking",
    "audit": "smdtrack.invariance",
    "read_run": "smdtrack.record",
    "equilibrium_lines": "smdtrack.theory",
    "rescale_weight_norms": "smdtrack.theory",
    "watch": "smdtrack.tracking",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
