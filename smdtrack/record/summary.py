"""The summary of a run: per weight, the measured angle beside the predicted ones, over the last samples."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from smdtrack.record.equilibrium import EQUILIBRIUM_BAND, ROLLING_SAMPLES, equilibrium_step
from smdtrack.record.run import Floats, Run
from smdtrack.record.sampling_error import sampling_error_of_rms

__all__ = ["EQUILIBRIUM_BAND", "ROLLING_SAMPLES", "Summary", "WeightSummary", "diverged_at", "summarize"]

#: Fewest samples to summarise after a jump of the learning rate; with fewer, the samples before it are included.
_MIN_SAMPLES = 5
#: A change of the equilibrium line by more than this factor from one sample to the next counts as a jump.
_JUMP = 1.5
_SUMMARISED_FAMILIES = frozenset(
    {"angle", "angle_pred", "angle_eq", "norm", "norm_eq", "line_memory", "memory", "time_constant"}
)


@dataclass(frozen=True)
class WeightSummary:
    """One weight over the window. Angles are RMS values in radian per optimizer step. None: there is no such value.

    Attributes:
        key: The weight's name in metric keys.
        samples: Number of samples in which the weight was measured.
        angle: Measured angle.
        angle_pred: Drift-corrected line: theory at the rate at which the norm changed over the window.
        angle_eq: Equilibrium line.
        pred_ratio: angle / angle_pred.
        angle_ratio: angle / angle_eq.
        ratio_error: Relative standard error of the two ratios that comes from sampling only some of the steps.
        norm: Weight norm.
        norm_eq: Norm at which the weight would neither grow nor shrink.
        time_constant: Optimizer steps in which the distance of the squared norm from equilibrium falls to 1 / e.
        equilibrium_step: Step from which on the running RMS angle stays within 10 % of the equilibrium line.
        line_kind: As in `TrackedWeight`.
        line_reason: As in `TrackedWeight`.
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
    """The table of a run and its verdict in one line.

    Attributes:
        first_step, last_step: The window: the last third of the samples, but only those after the last jump of the
            learning rate.
        weights: One row per weight that was measured.
        verdict: How many weights turn as theory predicts, or why nothing can be compared.
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

    The drift-corrected line over the window is computed from the norms at its two ends. With `r = ||w||^2`, `R` the
    memory of the line, and `<>` the mean over the window,

        angle_pred^2 = <angle_eq^2> + (ln r_last - ln r_first) / (steps R)

    Source: derived here. The drift-corrected line of one step is `(2 gamma + d ln r/dt) / R` with `gamma` the relative
    shrinking by weight decay. In the mean over the window the sum of the second term is the difference of its ends, so
    that the result does not depend on how the samples are spaced. `R` is assumed to be constant in the window.
    """
    if not len(run.steps) or "angle" not in run.values:
        return None
    diverged = diverged_at(run)
    if diverged is not None:
        run = _until(run, diverged)
        if not len(run.steps):
            return Summary.empty(f"the training diverged at step {diverged}, before a step was measured")
    start = _window_start(run)
    # One row per weight: a weight's values then lie side by side in memory, which makes long runs several times faster.
    by_weight = {
        family: np.ascontiguousarray(table.T) for family, table in run.values.items() if family in _SUMMARISED_FAMILIES
    }
    rows = tuple(
        _weight_summary(run, index, {family: table[index] for family, table in by_weight.items()}, start)
        for index in range(len(run.info.weights))
        if np.isfinite(by_weight["angle"][index]).any()
    )
    verdict = _verdict(rows)
    if diverged is not None:
        verdict = f"the training diverged at step {diverged}; before that, {verdict}"
    return Summary(int(run.steps[start]), int(run.steps[-1]), rows, verdict)


def diverged_at(run: Run) -> int | None:
    """Returns the first step from which on no weight's angle and norm are finite; None if the last sample has some."""
    angles, norms = run.values.get("angle"), run.values.get("norm")
    if angles is None or norms is None or not len(run.steps) or not angles.shape[1]:
        return None
    finite: npt.NDArray[np.bool_] = np.logical_and(np.isfinite(norms).any(axis=1), np.isfinite(angles).any(axis=1))
    if finite[-1]:
        return None
    last = int(np.flatnonzero(finite)[-1]) if finite.any() else -1
    return int(run.steps[last + 1])


def _until(run: Run, step: int) -> Run:
    """Returns the samples of a run before a step."""
    rows = run.steps < step
    return replace(
        run,
        steps=run.steps[rows],
        times=run.times[rows],
        values={family: table[rows] for family, table in run.values.items()},
        overview={key: column[rows] for key, column in run.overview.items()},
    )


def _window_start(run: Run) -> int:
    count = len(run.steps)
    start = min(count - 1, 2 * count // 3)
    lines = run.values.get("angle_eq")
    if lines is not None and count - start > _MIN_SAMPLES:
        # Just before and after a jump of the learning rate, the angle and its lines belong to different regimes.
        with np.errstate(divide="ignore", invalid="ignore"):
            jumps = np.abs(np.diff(np.log(lines[start:]), axis=0)) > np.log(_JUMP)
        jump_rows = np.flatnonzero(jumps.any(axis=1))
        if len(jump_rows) and count - (start + jump_rows[-1] + 1) >= _MIN_SAMPLES:
            start += int(jump_rows[-1]) + 1
    return start


def _weight_summary(run: Run, index: int, column: Mapping[str, Floats], start: int) -> WeightSummary:
    weight = run.info.weights[index]
    measured = np.isfinite(column["angle"][start:])
    angle = _rms(column["angle"][start:])
    angle_eq = _rms(_get(column, "angle_eq")[start:])
    angle_pred = _drift_corrected(run, column, start)
    # The line is absent while batch norm is in eval mode: compare only the samples that have it.
    with_line = column["angle"][start:][np.isfinite(_get(column, "angle_eq")[start:])]
    compared_angle = (_rms(with_line) if len(with_line) else None) or angle
    return WeightSummary(
        key=weight.key,
        samples=int(measured.sum()),
        angle=angle,
        angle_pred=angle_pred,
        angle_eq=angle_eq,
        pred_ratio=_ratio(compared_angle, angle_pred),
        angle_ratio=_ratio(compared_angle, angle_eq),
        ratio_error=sampling_error_of_rms(_relative_angles(column, start), _share_sampled(run, start)),
        norm=_rms(_get(column, "norm")[start:]),
        norm_eq=_rms(_get(column, "norm_eq")[start:]),
        time_constant=_rms(_get(column, "time_constant")[-1:]),
        equilibrium_step=equilibrium_step(run.steps, column["angle"], _get(column, "angle_eq")),
        line_kind=weight.line_kind,
        line_reason=weight.line_reason,
    )


def _relative_angles(column: Mapping[str, Floats], start: int) -> Floats:
    """Returns angle / line per sample, or the angle if there is no line: a changing learning rate is not noise."""
    angle, line = column["angle"][start:], _get(column, "angle_eq")[start:]
    return angle / line if np.isfinite(line).any() and (line[np.isfinite(line)] > 0).all() else angle


def _share_sampled(run: Run, start: int) -> float:
    return (len(run.steps) - 1 - start) / max(int(run.steps[-1] - run.steps[start]), 1)


def _drift_corrected(run: Run, column: Mapping[str, Floats], start: int) -> float | None:
    norm = _get(column, "norm")
    measured = np.flatnonzero(np.isfinite(norm[start:]) & np.isfinite(column["angle"][start:])) + start
    memory = _rms(_get(column, "line_memory")[start:])
    angle_eq = _rms(_get(column, "angle_eq")[start:])
    if memory is None or angle_eq is None or len(measured) < 2:
        return _rms(_get(column, "angle_pred")[start:])
    first, last = measured[0], measured[-1]
    growth = 2 * np.log(norm[last] / norm[first])
    squared = angle_eq**2 + growth / ((run.steps[last] - run.steps[first]) * memory)
    return float(np.sqrt(squared)) if squared > 0 else None


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
        f" (measured / drift-corrected line {drift[0]:.3f} to {drift[-1]:.3f}{_typical_error(rows)})"
    )
    if not with_line:
        return f"{line}; no weight has an equilibrium"
    if settled == len(rows):
        return f"{line}; all are in equilibrium"
    return f"{line}; {settled} of {len(rows)} are in equilibrium"


def _typical_error(rows: tuple[WeightSummary, ...]) -> str:
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
