"""Runs as frozen records, their local store, the reader and the summary."""

from smdtrack.record.reader import read_run
from smdtrack.record.run import Point, Run, RunInfo, Sample, TrackedWeight
from smdtrack.record.store import LocalStore
from smdtrack.record.summary import Summary, WeightSummary, summarize

__all__ = [
    "LocalStore",
    "Point",
    "Run",
    "RunInfo",
    "Sample",
    "Summary",
    "TrackedWeight",
    "WeightSummary",
    "read_run",
    "summarize",
]
