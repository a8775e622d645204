"""The only code inside somebody's training loop: hooks, probe, tracker."""

from smdtrack.tracking.tracker import Options, Tracker, watch

__all__ = ["Options", "Tracker", "watch"]
