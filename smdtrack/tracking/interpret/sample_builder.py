"""Joins what the probe measured with the lines of theory, off the training thread: from moments to a `Sample`."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from smdtrack.geometry import angle_from_moments
from smdtrack.notices import notify
from smdtrack.optimizers import numbers_of
from smdtrack.record.run import Floats, Sample, TrackedWeight
from smdtrack.record.summary import EQUILIBRIUM_BAND, ROLLING_SAMPLES
from smdtrack.theory import Line
from smdtrack.tracking.interpret.clipping import MEANING, Clipping, clipping_seen
from smdtrack.tracking.interpret.live_check import LiveCheck, orthogonality_residual
from smdtrack.tracking.measure.measurement import Measurement
from smdtrack.tracking.measure.probe import Moments

#: A floor worth telling of: that of fp32 (1e-6) lies far below any angle at which training goes on.
_TOLD_FLOOR = 1e-4
#: For what changes slowly and must not flicker: how update and momentum buffer are aligned, and whether a weight is in
#: equilibrium, about which its angle swings together with all others'.
_SLOW_SAMPLES = 5 * ROLLING_SAMPLES


class SampleBuilder:
    """Makes samples of measurements, in the order of their steps.

    State through time is what needs more than one step: rolling means of the noisy single-step values, and the norms
    from which the drift comes.
    """

    def __init__(self, weights: Sequence[TrackedWeight]) -> None:
        self._weights = list(weights)
        self._sizes = np.array([float(np.prod(weight.shape)) for weight in weights])
        self._norms: deque[tuple[int, Floats, Floats]] = deque(maxlen=ROLLING_SAMPLES)
        self._recent: deque[tuple[Floats, Floats, Floats]] = deque(maxlen=ROLLING_SAMPLES)
        self._momentum: deque[tuple[Floats, Floats]] = deque(maxlen=_SLOW_SAMPLES)
        self._settling: deque[tuple[Floats, Floats]] = deque(maxlen=_SLOW_SAMPLES)
        self._live = LiveCheck(weights, self._tell)
        self._clipping: Clipping | None = None
        self._told: set[str] = set()

    def __call__(self, measurement: Measurement) -> Sample | None:
        """Returns the sample, or None where the optimizer skipped the step for an overflow."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._sample(measurement)

    def _sample(self, measurement: Measurement) -> Sample | None:
        table = measurement.reading.numpy()
        if measurement.skipped is not None and float(measurement.skipped) != 0:
            return None
        moments = Moments(*table[:5])
        if not np.isfinite(moments.weight_squared).any():
            self._tell("nothing could be measured in another process (its warning says why)")
            return None
        extra = dict(zip(measurement.extra, table[5:], strict=True))
        angle = _angles(moments)
        norm_before = np.sqrt(moments.weight_squared)
        norm = np.sqrt(moments.weight_squared + 2 * moments.weight_change + moments.change_squared)
        gradient = np.where(moments.gradient_squared > 0, np.sqrt(moments.gradient_squared) * norm_before, np.nan)
        alignment = self._alignment(measurement, moments, extra.get("change_along_momentum"))
        pulls = extra.get("decay_pull")
        lines = self._lines(measurement, None if pulls is None else pulls / np.square(norm), alignment)
        self._look_for_clipping(extra)
        residual = self._residual_of(measurement, moments, extra.get("eps_radial"))
        frozen = self._live.frozen(measurement.frozen, extra.get("eps_radial"))
        lines = [None if stopped else line for line, stopped in zip(lines, frozen, strict=True)]
        angle_eq = _column(None if line is None else line.angular_update for line in lines)
        if self._clipping == "adaptive":
            angle_eq = np.full_like(angle_eq, np.nan)
        angle_eq = np.where(np.isfinite(angle), angle_eq, np.nan)
        self._forget_across_a_jump(angle_eq)
        drift = self._drift(measurement.step, norm, lines)
        angle_pred = _column(
            None if line is None or not np.isfinite(value) else line.drift_corrected(value)
            for line, value in zip(lines, drift, strict=True)
        )
        self._norms.append((measurement.step, norm, angle_eq))
        self._recent.append((angle, angle_eq, gradient))
        self._settling.append((angle, angle_eq))
        rolling_angle, _, rolling_gradient = (_rms_columns(rows) for rows in zip(*self._recent, strict=True))
        norm_eq = _column(
            None if line is None else line.equilibrium_norm(size, _or_none(turn), _or_none(pull))
            for line, size, turn, pull in zip(lines, norm, rolling_angle, rolling_gradient, strict=True)
        )
        values = {
            "angle": angle,
            "angle_pred": angle_pred,
            "angle_eq": angle_eq,
            "norm": norm,
            "norm_eq": np.where(np.isfinite(angle_eq), norm_eq, np.nan),
            "effective_grad": gradient,
            # Where a trust ratio ties the step to the norm, the angle does not follow from drift and memory alone.
            "memory": _column(None if line is None or line.trust is not None else line.memory for line in lines),
            "time_constant": _column(None if line is None else line.time_constant for line in lines),
            "orthogonality_residual": residual,
        }
        for lag, reading in measurement.lags.items():
            values[f"angle_k{lag}"] = _angles(reading.moments())
        settled = _overview(values, *(_rms_columns(rows) for rows in zip(*self._settling, strict=True)))
        overview = settled | self._flags(angle, measurement.floors)
        strayed = (frozen | self._live.broken(residual))[np.isfinite(angle)]
        if strayed.any():
            overview["smd/not_invariant"] = float(np.mean(strayed))
        return Sample(measurement.step, measurement.time, values, overview)

    def _residual_of(self, measurement: Measurement, moments: Moments, eps_radial: Floats | None) -> Floats:
        if not measurement.has_gradients_of_the_step:
            return np.full_like(moments.weight_squared, np.nan)
        # Clipping by element or by filter treats a weight and its batch norm's scale differently.
        return orthogonality_residual(moments, eps_radial if self._clipping is None else None)

    def _look_for_clipping(self, extra: Mapping[str, Floats]) -> None:
        if "tied_elements" not in extra:
            return
        seen = clipping_seen(extra["tied_elements"], extra["tied_filters"], self._sizes)
        if seen is not None and self._clipping != "adaptive":
            self._clipping = seen
            self._tell(MEANING[seen])

    def _flags(self, angle: Floats, floors: Sequence[float]) -> dict[str, float]:
        """What a reader must know before believing the numbers; absent where there is nothing to know."""
        flags = {}
        if self._clipping is not None:
            flags["smd/clipped"] = 1.0 if self._clipping == "value" else 2.0
        if len(floors) and max(floors) >= _TOLD_FLOOR:
            below = np.less(angle, floors)[np.isfinite(angle)]
            flags["smd/below_floor"] = float(np.mean(below)) if len(below) else 0.0
            if below.any():
                self._tell(
                    f"weights in low precision: angles below {max(floors):g} rad a step are mostly rounding"
                    " (smd/below_floor is the share of such weights)"
                )
        return flags

    def _tell(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            notify(message)

    def _alignment(self, measurement: Measurement, moments: Moments, along: Floats | None) -> Floats:
        """`<u, b>/|u|^2` of update and momentum buffer, of means over the last samples; NaN where it is not known.

        With the change `d = -lr u` of a step it is `-lr <d, b>/<d, d>`.
        """
        if along is None:
            return np.full_like(moments.change_squared, np.nan)
        rates = np.array(
            [np.nan if group is None else float(measurement.groups[group]["lr"]) for group in measurement.group_of]
        )
        self._momentum.append((-along / rates, moments.change_squared / rates**2))
        update_buffer, update_squared = (np.mean(rows, axis=0) for rows in zip(*self._momentum, strict=True))
        result: Floats = update_buffer / update_squared
        return result

    def _lines(
        self,
        measurement: Measurement,
        factors: Floats | None,
        alignment: Floats,
    ) -> list[Line | None]:
        groups = [numbers_of(group) for group in measurement.groups]
        lines: list[Line | None] = []
        for index, (weight, group) in enumerate(zip(self._weights, measurement.group_of, strict=True)):
            factor = None if factors is None else _or_none(factors[index])
            if group is None:
                lines.append(None)
            else:
                lines.append(
                    measurement.family.line(
                        groups[group], weight.shape, state_factor=factor, alignment=_or_none(alignment[index])
                    )
                )
        return lines

    def _forget_across_a_jump(self, angle_eq: Floats) -> None:
        """Means over a jump of the learning rate are means of two regimes: start anew behind it."""
        if not self._norms:
            return
        moved = np.abs(np.log(angle_eq / self._norms[-1][2]))
        if np.any(moved > np.log(1.5)):
            self._norms = deque([self._norms[-1]], self._norms.maxlen)
            self._recent.clear()
            self._settling.clear()

    def _drift(self, step: int, norm: Floats, lines: Sequence[Line | None]) -> Floats:
        """Rate of change of ln ||w||^2 a step, over half a time constant but at most the last ten samples.

        Over one step the rate scatters far more than it drifts; over more than a time constant it would lag behind.
        """
        drift = np.zeros(len(norm))
        if not self._norms:
            return np.full(len(norm), np.nan)
        for index, line in enumerate(lines):
            reach = ((line.time_constant if line else None) or np.inf) / 2
            then, before = self._norms[-1][:2]
            for earlier, norms, _ in reversed(self._norms):
                if step - earlier > reach:
                    break
                then, before = earlier, norms
            drift[index] = 2 * np.log(norm[index] / before[index]) / (step - then)
        return drift


def _angles(moments: Moments) -> Floats:
    rows = (
        torch.from_numpy(row.copy()) for row in (moments.weight_squared, moments.weight_change, moments.change_squared)
    )
    result: Floats = angle_from_moments(*rows).numpy()
    return result


def _overview(values: Mapping[str, Floats], rolling_angle: Floats, rolling_eq: Floats) -> dict[str, float]:
    to_equilibrium = _finite(values["angle"] / values["angle_eq"])
    to_drift_corrected = _finite(values["angle"] / values["angle_pred"])
    settled = _finite(rolling_angle / rolling_eq)
    overview = {"smd/theory": 1.0}
    if len(to_equilibrium):
        p10, p50, p90 = np.percentile(to_equilibrium, [10, 50, 90]).tolist()
        overview |= {"smd/angle_ratio_p10": p10, "smd/angle_ratio_p50": p50, "smd/angle_ratio_p90": p90}
    if len(to_drift_corrected):
        overview["smd/pred_ratio_p50"] = float(np.median(to_drift_corrected))
    if len(settled):
        overview["smd/in_equilibrium"] = float(np.mean(np.abs(settled - 1) <= EQUILIBRIUM_BAND))
    residual = _finite(values["orthogonality_residual"])
    if len(residual):
        overview["smd/orthogonality_residual"] = float(residual.max())
    return overview


def _finite(values: Floats) -> Floats:
    return values[np.isfinite(values)]


def _column(values: Any) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _rms_columns(rows: Sequence[Floats]) -> Floats:
    """RMS over the rows that have a value, per weight; NaN where none has."""
    squared = np.square(rows)
    there = np.isfinite(squared)
    result: Floats = np.sqrt(np.where(there, squared, 0).sum(axis=0) / there.sum(axis=0))
    return result
