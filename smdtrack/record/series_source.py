"""A `Run` put together from the metric series that a tracker returns."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smdtrack.notices import SmdtrackError
from smdtrack.record.run import REFERENCE_FAMILIES, Floats, Run, RunInfo, TrackedWeight
from smdtrack.record.summary import WeightSummary

OVERVIEW = "smd/"
_ANGLE = "angle/"


@dataclass(frozen=True)
class Series:
    """One metric: (n,) increasing steps, values, and seconds since the epoch."""

    steps: npt.NDArray[np.int64]
    values: Floats
    times: Floats


@dataclass(frozen=True)
class TrackerRun:
    """What a tracker knows of a run.

    Attributes:
        series: By key, those of smdtrack and of the script.
        params: Of smdtrack's own.
        table: The logged summary: `columns` and `data`; None if the run has none.
        verdict: The logged verdict; None if the run has none.
    """

    id: str
    name: str
    place: str
    created: float
    status: str
    series: Mapping[str, Series]
    params: Mapping[str, Any] = field(default_factory=dict)
    table: Mapping[str, Any] | None = None
    verdict: str | None = None


def run_of(tracked: TrackerRun) -> Run:
    """Returns the run. A reference line is logged when it moves: between its points it is interpolated.

    Raises:
        SmdtrackError: If the tracker's run has no data of smdtrack.
    """
    logged = [key.removeprefix(_ANGLE) for key in tracked.series if key.startswith(_ANGLE)]
    if not logged:
        raise SmdtrackError(f"{tracked.place} has no data of smdtrack: it has no metric angle/<weight>")
    rows = _rows(tracked.table)
    ordered = [row["key"] for row in rows if row["key"] in logged]
    names = [*ordered, *sorted(set(logged) - set(ordered), key=_natural)]
    steps, times = _time_axis([tracked.series[_ANGLE + name] for name in names])
    by_key = {row["key"]: row for row in rows}
    values = {
        family: np.stack([_column(tracked.series.get(f"{family}/{name}"), steps, family) for name in names], axis=1)
        for family in _families(tracked.series, names)
    }
    overview = {
        key: _column(series, steps, "angle_eq" if key == "smd/theory" else "smd")
        for key, series in tracked.series.items()
        if key.startswith(OVERVIEW) and key != "smd/step"
    }
    weights = tuple(_weight(name, by_key.get(name, {})) for name in names)
    info = RunInfo(tracked.id, tracked.name, Path(tracked.place), tracked.created, weights, dict(tracked.params))
    run = Run(info, steps, times, values, overview, tracked.status)
    return replace(run, summary=_summary(rows, tracked.verdict, run)) if rows else run


def is_ours(key: str, weights: Sequence[str]) -> bool:
    """Whether a metric was logged by smdtrack, given the names of the weights."""
    family, _, name = key.partition("/")
    return key.startswith(OVERVIEW) or (name in weights and bool(family))


def _families(series: Mapping[str, Series], names: Sequence[str]) -> list[str]:
    known = set(names)
    return list(dict.fromkeys(key.partition("/")[0] for key in series if key.partition("/")[2] in known))


def _time_axis(angles: Sequence[Series]) -> tuple[npt.NDArray[np.int64], Floats]:
    steps = np.unique(np.concatenate([series.steps for series in angles]))
    times = np.full(len(steps), np.nan)
    for series in angles:
        times[np.searchsorted(steps, series.steps)] = series.times
    return steps, times


def _column(series: Series | None, steps: npt.NDArray[np.int64], family: str) -> Floats:
    column = np.full(len(steps), np.nan)
    if series is None or not len(series.steps):
        return column
    if family in REFERENCE_FAMILIES:
        inside = (steps >= series.steps[0]) & (steps <= series.steps[-1])
        column[inside] = np.interp(steps[inside], series.steps, series.values)
        return column
    there = np.isin(series.steps, steps)
    column[np.searchsorted(steps, series.steps[there])] = series.values[there]
    return column


def _rows(table: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if not table or "columns" not in table or "data" not in table:
        return []
    rows = [dict(zip(table["columns"], row, strict=False)) for row in table["data"]]
    return [row for row in rows if isinstance(row.get("key"), str)]


def _weight(name: str, row: Mapping[str, Any]) -> TrackedWeight:
    reason = row.get("line_reason")
    kind = str(row.get("line_kind") or "unknown")
    return TrackedWeight(name, name, (), line_kind=kind, line_reason=None if reason is None else str(reason))


def _summary(rows: Sequence[Mapping[str, Any]], verdict: str | None, run: Run) -> dict[str, Any]:
    columns = [column.name for column in fields(WeightSummary)]
    start = min(len(run.steps) - 1, 2 * len(run.steps) // 3)
    return {
        "first_step": int(run.steps[start]),
        "last_step": int(run.steps[-1]),
        "weights": [{column: row.get(column) for column in columns} for row in rows],
        "verdict": verdict or "",
    }


def read_table(path: Path) -> dict[str, Any] | None:
    """Returns a logged table, or None if the file holds none."""
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return table if isinstance(table, dict) else None


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts layer10 behind layer2."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]
