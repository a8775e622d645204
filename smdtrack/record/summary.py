"""What a run shows at its end: per weight, measured against predicted over the last samples."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from smdtrack.record.run import Floats, Run
from smdtrack.record.sampling_error import sampling_error_of_rms

#: A weight is in equilibrium when its RMS angle is within this share of the equilibrium line.
EQUILIBRIUM_BAND = 0.1
#: Samples of the rolling RMS by which equilibrium is judged; a single step's angle scatters too much.
ROLLING_SAMPLES = 10
_MIN_SAMPLES = 5


@dataclass(frozen=True)
class WeightSummary:
    """One weight over the window; angles are RMS, in radian per optimizer step; None where there is no such value.

    Attributes:
        angle: Measured.
        angle_pred: Drift-corrected line: theory at the rate at which the norm changed over the window.
        angle_eq: Equilibrium line.
        pred_ratio: angle / angle_pred.
        angle_ratio: angle / angle_eq.
        ratio_error: Standard error of the two ratios for want of the steps that were not sampled, as a share of them.
        time_constant: Steps in which the squared norm's distance from equilibrium falls by e, as theory has it.
        equilibrium_step: Step at which the rolling RMS angle came within 10 % of the equilibrium line, to stay there.
    """

    key: str
    samples: int
    angle: float | None
    angle_pred: float | None
    angle_eq: float | None
    pred_ratio: float | None
    angle_ratio: float | None
    ratio_error: float | None
    norm: float | None
    norm_eq: float | None
    time_constant: float | None
    equilibrium_step: int | None
    line_kind: str
    line_reason: str | None


@dataclass(frozen=True)
class Summary:
    """The table at the end of a run, and its one-line verdict.

    Attributes:
        first_step, last_step: The window: the last third of the run's samples, from the last jump of the lines on.
        reason: Why there are no weights, if nothing was measured.
    """

    first_step: int
    last_step: int
    weights: tuple[WeightSummary, ...]
    verdict: str
    reason: str | None = None

    @classmethod
    def empty(cls, reason: str) -> "Summary":
        """Returns the summary of a run in which nothing was measured.

        Args:
            reason: Why nothing was measured.
        """
        return cls(0, 0, (), f"nothing was measured: {reason}", reason)

    def to_json(self) -> dict[str, Any]:
        """Returns the summary as plain dictionaries and lists."""
        return asdict(self)


def summarize(run: Run) -> Summary | None:
    """Returns the summary of a run over the last third of its samples; None if nothing was measured.

    The drift-corrected line over a window is exact however the samples lie: with `r = ||w||^2`, and angles
    squared and averaged over the window,
    `angle_pred^2 = <angle_eq^2> + (ln r_last - ln r_first) / (steps * R)`, R the line's memory.
    Derived here: the mean of `(2 gamma + d ln r/dt) / R` over the window, whose second part telescopes.
    """
    if not len(run.steps) or "angle" not in run.values:
        return None
    start = _window_start(run)
    measured = np.flatnonzero(np.isfinite(run.values["angle"]).any(axis=0))
    rows = tuple(_weight_summary(run, int(index), start) for index in measured)
    return Summary(int(run.steps[start]), int(run.steps[-1]), rows, _verdict(rows))


def _window_start(run: Run) -> int:
    count = len(run.steps)
    start = min(count - 1, 2 * count // 3)
    lines = run.values.get("angle_eq")
    if lines is not None and count - start > _MIN_SAMPLES:
        # Across a jump of lr the angle and its lines are out of step for a while: start behind it.
        with np.errstate(divide="ignore", invalid="ignore"):
            jumps = np.abs(np.diff(np.log(lines[start:]), axis=0)) > np.log(1.5)
        behind = np.flatnonzero(jumps.any(axis=1))
        if len(behind) and count - (start + behind[-1] + 1) >= _MIN_SAMPLES:
            start += int(behind[-1]) + 1
    return start


def _weight_summary(run: Run, index: int, start: int) -> WeightSummary:
    weight = run.info.weights[index]
    column = {family: table[:, index] for family, table in run.values.items()}
    measured = np.isfinite(column["angle"][start:])
    angle = _rms(column["angle"][start:])
    angle_eq = _rms(_get(column, "angle_eq")[start:])
    angle_pred = _drift_corrected(run, column, start)
    # A line may be absent for a part of the window, while batch norm is in eval mode.
    with_line = column["angle"][start:][np.isfinite(_get(column, "angle_eq")[start:])]
    angle_beside = (_rms(with_line) if len(with_line) else None) or angle
    return WeightSummary(
        key=weight.key,
        samples=int(measured.sum()),
        angle=angle,
        angle_pred=angle_pred,
        angle_eq=angle_eq,
        pred_ratio=_ratio(angle_beside, angle_pred),
        angle_ratio=_ratio(angle_beside, angle_eq),
        ratio_error=sampling_error_of_rms(_of_its_line(column, start), _share_sampled(run, start)),
        norm=_rms(column["norm"][start:]),
        norm_eq=_rms(_get(column, "norm_eq")[start:]),
        time_constant=_rms(_get(column, "time_constant")[-1:]),
        equilibrium_step=_equilibrium_step(run, column),
        line_kind=weight.line_kind,
        line_reason=weight.line_reason,
    )


def _of_its_line(column: Mapping[str, Floats], start: int) -> Floats:
    """Each angle of the window as a share of its line, so that a schedule is no scatter; where there is none, as is."""
    angle, line = column["angle"][start:], _get(column, "angle_eq")[start:]
    return angle / line if np.isfinite(line).any() and (line[np.isfinite(line)] > 0).all() else angle


def _share_sampled(run: Run, start: int) -> float:
    return (len(run.steps) - 1 - start) / max(int(run.steps[-1] - run.steps[start]), 1)


def _drift_corrected(run: Run, column: Mapping[str, Floats], start: int) -> float | None:
    there = np.flatnonzero(np.isfinite(column["norm"][start:]) & np.isfinite(column["angle"][start:])) + start
    memory = _rms(_get(column, "line_memory")[start:])
    angle_eq = _rms(_get(column, "angle_eq")[start:])
    if memory is None or angle_eq is None or len(there) < 2:
        return _rms(_get(column, "angle_pred")[start:])
    first, last = there[0], there[-1]
    growth = 2 * np.log(column["norm"][last] / column["norm"][first])
    squared = angle_eq**2 + growth / ((run.steps[last] - run.steps[first]) * memory)
    return float(np.sqrt(squared)) if squared > 0 else None


def _equilibrium_step(run: Run, column: Mapping[str, Floats]) -> int | None:
    """First sample at which the rolling RMS ratio is in the band, and from which on the RMS ratio of all is."""
    angle, line = column["angle"], _get(column, "angle_eq")
    there = np.flatnonzero(np.isfinite(angle) & (line > 0))
    if not len(there):
        return None
    angle, line = angle[there], line[there]
    rolling = rolling_rms(angle) / rolling_rms(line)
    # The rest of the run from each sample on; a single rolling value leaves the band by chance now and then.
    rest = np.sqrt(np.cumsum(angle[::-1] ** 2)[::-1] / np.cumsum(line[::-1] ** 2)[::-1])
    settled = np.flatnonzero((np.abs(rolling - 1) <= EQUILIBRIUM_BAND) & (np.abs(rest - 1) <= EQUILIBRIUM_BAND))
    return int(run.steps[there[settled[0]]]) if len(settled) else None


def rolling_rms(values: Floats, samples: int = ROLLING_SAMPLES) -> Floats:
    """Returns the RMS over the last `samples` values (fewer at the beginning) at every value.

    Args:
        values: (T,), finite.
    """
    sums = np.concatenate([[0.0], np.cumsum(values**2)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - samples, 0)
    mean: Floats = (sums[ends] - sums[starts]) / (ends - starts)
    return np.sqrt(np.maximum(mean, 0))


def _verdict(rows: tuple[WeightSummary, ...]) -> str:
    with_line = [row.angle_ratio for row in rows if row.angle_ratio is not None]
    drift = sorted(row.pred_ratio for row in rows if row.pred_ratio is not None)
    if not drift:
        reasons = sorted({row.line_reason for row in rows if row.line_reason})
        return f"{len(rows)} weights measured; no line to compare with" + (f": {'; '.join(reasons)}" if reasons else "")
    settled = sum(abs(ratio - 1) <= EQUILIBRIUM_BAND for ratio in with_line)
    on_line = sum(abs(ratio - 1) <= EQUILIBRIUM_BAND for ratio in drift)
    line = (
        f"{on_line} of {len(rows)} weights turn as theory predicts"
        f" (measured / drift-corrected line {drift[0]:.3f} to {drift[-1]:.3f}{_give_or_take(rows)})"
    )
    if not with_line:
        return f"{line}; no weight has an equilibrium"
    if settled == len(rows):
        return f"{line}; all are in equilibrium"
    return f"{line}; {settled} of {len(rows)} are in equilibrium"


def _give_or_take(rows: tuple[WeightSummary, ...]) -> str:
    errors = [row.ratio_error for row in rows if row.ratio_error is not None]
    typical = float(np.median(errors)) if errors else 0.0
    return f", give or take {typical:.3f}" if typical >= 5e-4 else ""


def _get(column: Mapping[str, Floats], family: str) -> Floats:
    return column[family] if family in column else np.full_like(column["angle"], np.nan)


def _rms(values: Floats) -> float | None:
    values = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(values**2))) if len(values) else None


def _ratio(measured: float | None, line: float | None) -> float | None:
    return measured / line if measured is not None and line else None
