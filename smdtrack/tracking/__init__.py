"""Tracking a training: `watch` returns a `Tracker`, which measures sampled optimizer steps."""

from smdtrack.tracking.attach.options import Options
from smdtrack.tracking.attach.tracker import Tracker
from smdtrack.tracking.attach.watch import watch

__all__ = ["Options", "Tracker", "watch"]
