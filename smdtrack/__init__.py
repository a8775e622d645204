"""smdtrack: the angular update of scale-invariant weights beside the line that theory predicts."""

from smdtrack.notices import SmdtrackError, SmdtrackWarning

__version__ = "0.1.0"

__all__ = ["SmdtrackError", "SmdtrackWarning", "__version__"]
