"""The only code inside somebody's training loop: hooks, probe, tracker."""

from smdtrack.tracking.attach.options import Options
from smdtrack.tracking.attach.tracker import Tracker
from smdtrack.tracking.attach.watch import watch

__all__ = ["Options", "Tracker", "watch"]
