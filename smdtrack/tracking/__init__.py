"""The only code inside somebody's training loop: hooks, probe, tracker."""

from smdtrack.tracking.options import Options
from smdtrack.tracking.tracker import Tracker
from smdtrack.tracking.watching import watch

__all__ = ["Options", "Tracker", "watch"]
