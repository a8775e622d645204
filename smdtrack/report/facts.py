"""What comparison and page need of a run: its summary over a window, how far its weights turned, its settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from smdtrack.record.opened_run import OpenedRun, Setting
from smdtrack.record.run import Floats, Run, TrackedWeight
from smdtrack.record.summary import EQUILIBRIUM_BAND, Summary, WeightSummary, diverged_at, summarize
from smdtrack.report.forces import growth_and_decay, line_memory, measured_memory
from smdtrack.report.settings import number, settings_of, steps_per_epoch


@dataclass(frozen=True)
class Travel:
    """How far one weight turned.

    Attributes:
        turned: Sum of the angles of all steps up to the last sample, in radian.
        per_step: Mean angle of a step, in radian.
        time_constants: Sum over the steps of 1 / time constant; None where theory has no time constant.
    """

    turned: float
    per_step: float
    time_constants: float | None


@dataclass(frozen=True)
class RunFacts:
    """A run reduced to what is compared and printed.

    Attributes:
        letter: A, B, ... in the order in which the runs were given.
        status: As in `Run`, or `diverged` where the measured values stopped being finite.
        settings: Of smdtrack and of the script, merged; the learning rate is the script's, if it is known.
        seen_lr: The learning rate that smdtrack noted; in older records the first of a warm-up.
        travel: By weight.
        window: What explains the angle, over the summary's window and by weight, as far as the source has it: RMS of
            `effective_grad`, means of `growth`, `decay` and `memory` (measured over that of white gradients).
        steps_per_epoch: None if the run does not say how long an epoch is.
        overview: Last value of each metric of the whole network (`smd/...`).
        diverged_at: First step whose measured values are not finite; None if there is none.
    """

    letter: str
    name: str
    source: str
    place: str
    status: str
    created: float
    ended: float | None
    notes: tuple[str, ...]
    metrics: Mapping[str, float]
    settings: Mapping[str, Setting]
    seen_lr: Setting | None
    weights: tuple[TrackedWeight, ...]
    summary: Summary | None
    travel: Mapping[str, Travel]
    window: Mapping[str, Mapping[str, float]]
    samples: int
    first_step: int
    last_step: int
    steps_per_epoch: float | None
    diverged_at: int | None
    overview: Mapping[str, float]

    @property
    def rows(self) -> tuple[WeightSummary, ...]:
        """The summary's rows; none if nothing was measured."""
        return self.summary.weights if self.summary is not None else ()


def facts_of(opened: OpenedRun, letter: str = "A", globs: Sequence[str] = (), until: float | None = None) -> RunFacts:
    """Returns what is compared of a run.

    Args:
        globs: Weights to keep; all if there are none.
        until: Last step to look at; the run's last if None. The window is the last third of what is left.
    """
    run = only(opened.run, globs)
    run = run if until is None else until_step(run, until)
    diverged = diverged_at(run)
    if diverged is not None:
        run = until_step(run, diverged - 1)
    summary = summary_of(run)
    return RunFacts(
        letter=letter,
        name=run.info.name,
        source=opened.source,
        place=opened.place,
        status="diverged" if diverged is not None else run.status,
        created=run.info.created,
        ended=opened.ended,
        notes=opened.notes,
        metrics=opened.metrics,
        settings=settings_of(run.info.params, opened.settings),
        seen_lr=run.info.params.get("lr") if number(opened.settings, "lr") is not None else None,
        weights=run.info.weights,
        summary=summary,
        travel=_travel(run, summary),
        window=_window(run, summary),
        samples=len(run.steps),
        first_step=int(run.steps[0]) if len(run.steps) else 0,
        last_step=int(run.steps[-1]) if len(run.steps) else 0,
        steps_per_epoch=steps_per_epoch(opened),
        diverged_at=diverged,
        overview=_last_values(run),
    )


def only(run: Run, globs: Sequence[str]) -> Run:
    """Returns the run with the weights whose names match one of the globs; the whole run if there are no globs."""
    if not globs:
        return run
    kept = [
        index
        for index, weight in enumerate(run.info.weights)
        if any(fnmatchcase(weight.key, glob) or fnmatchcase(weight.name, glob) for glob in globs)
    ]
    keys = {run.info.weights[index].key for index in kept}
    summary = run.summary
    if summary is not None:
        summary = {**summary, "weights": [row for row in summary.get("weights", ()) if row.get("key") in keys]}
    return replace(
        run,
        info=replace(run.info, weights=tuple(run.info.weights[index] for index in kept)),
        values={family: table[:, kept] for family, table in run.values.items()},
        summary=summary,
    )


def until_step(run: Run, last: float) -> Run:
    """Returns the run without the samples behind a step."""
    kept = int(np.searchsorted(run.steps, last, side="right"))
    if kept == len(run.steps):
        return run
    return replace(
        run,
        steps=run.steps[:kept],
        times=run.times[:kept],
        values={family: table[:kept] for family, table in run.values.items()},
        overview={key: column[:kept] for key, column in run.overview.items()},
        summary=None,
    )


def summary_of(run: Run) -> Summary | None:
    """Returns the summary: computed from the samples, or the stored one where a tracker lacks what it takes."""
    if run.summary is not None and line_memory(run) is None and run.summary.get("weights"):
        return _stored(run.summary)
    return summarize(run)


def is_settled(row: WeightSummary) -> bool | None:
    """Whether a weight is in equilibrium; None where it has no equilibrium line."""
    return None if row.angle_ratio is None else abs(row.angle_ratio - 1) <= EQUILIBRIUM_BAND


def time_constants(run: Run) -> Floats | None:
    """Returns the time constant of each weight at each sample, (T, W) in steps; None where theory has none.

    A tracker has only the one at the run's end. It goes with 1/decay per step and so with 1/angle_eq^2, if the line's
    memory stays the same: that gives the earlier ones.
    """
    if "time_constant" in run.values:
        return run.values["time_constant"]
    lines = run.values.get("angle_eq")
    if run.summary is None or lines is None:
        return None
    at_end = {row.get("key"): row.get("time_constant") for row in run.summary.get("weights", ())}
    table = np.full_like(lines, np.nan)
    for index, weight in enumerate(run.info.weights):
        known = np.flatnonzero(lines[:, index] > 0)
        end = at_end.get(weight.key)
        if len(known) and end:
            table[known, index] = end * (lines[known[-1], index] / lines[known, index]) ** 2
    return table


def step_weights(run: Run) -> Floats:
    """Returns for how many steps each sample stands, (T,): half the way to its neighbours on both sides."""
    steps = run.steps.astype(np.float64)
    if len(steps) < 2:
        return np.ones(len(steps))
    gaps = np.diff(steps)
    widths: Floats = (np.concatenate([gaps[:1], gaps]) + np.concatenate([gaps, gaps[-1:]])) / 2
    return widths


def _last_values(run: Run) -> dict[str, float]:
    finite = {key: column[np.isfinite(column)] for key, column in run.overview.items()}
    return {key: float(values[-1]) for key, values in finite.items() if len(values)}


def _travel(run: Run, summary: Summary | None) -> dict[str, Travel]:
    if summary is None:
        return {}
    widths, angles, constants = step_weights(run), run.values["angle"], time_constants(run)
    found = {}
    for index, weight in enumerate(run.info.weights):
        there = np.isfinite(angles[:, index])
        if not there.any():
            continue
        # Samples without an angle (skipped steps, frozen batch norm) count as the mean of the others.
        per_step = float(np.average(angles[there, index], weights=widths[there]))
        passed = None
        if constants is not None:
            known = constants[:, index] > 0
            passed = float((widths[known] / constants[known, index]).sum()) if known.any() else None
        found[weight.key] = Travel(per_step * float(widths.sum()), per_step, passed)
    return found


def _window(run: Run, summary: Summary | None) -> dict[str, dict[str, float]]:
    if summary is None:
        return {}
    inside = (run.steps >= summary.first_step) & (run.steps <= summary.last_step)
    found = {}
    if "effective_grad" in run.values:
        squares = _means(run, run.values["effective_grad"][inside] ** 2)
        found["effective_grad"] = {key: float(np.sqrt(value)) for key, value in squares.items()}
    forces, memory = growth_and_decay(run), measured_memory(run)
    if forces is not None:
        found |= {"growth": _means(run, forces[0][inside]), "decay": _means(run, forces[1][inside])}
    if memory is not None:
        found["memory"] = _means(run, memory[inside])
    return found


def _means(run: Run, table: Floats) -> dict[str, float]:
    """Returns the mean of each weight's finite values."""
    columns = {weight.key: table[:, index] for index, weight in enumerate(run.info.weights)}
    finite = {key: column[np.isfinite(column)] for key, column in columns.items()}
    return {key: float(column.mean()) for key, column in finite.items() if len(column)}


def _stored(document: Mapping[str, Any]) -> Summary:
    columns = [column.name for column in fields(WeightSummary)]
    rows = tuple(WeightSummary(**{name: row.get(name) for name in columns}) for row in document["weights"])
    names = {column.name for column in fields(Summary)} - {"weights"}
    return Summary(weights=rows, **{name: document[name] for name in names if name in document})
