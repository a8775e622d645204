"""Joins the measurement of a step with the lines of theory into a `Sample`."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from smdtrack.notices import notify
from smdtrack.optimizers import numbers_of
from smdtrack.record.run import Floats, Sample, TrackedWeight
from smdtrack.record.summary import ROLLING_SAMPLES
from smdtrack.theory import Line
from smdtrack.tracking.interpret.arrays import array_of, number_or_none, rms
from smdtrack.tracking.interpret.clipping import MEANING, Clipping, find_clipping
from smdtrack.tracking.interpret.lag_angles import LagAngles
from smdtrack.tracking.interpret.live_check import LiveCheck, orthogonality_residual
from smdtrack.tracking.interpret.norm_balance import NormBalance
from smdtrack.tracking.interpret.overview import clipping_overview, precision_overview, ratios_overview
from smdtrack.tracking.interpret.step_values import StepValues, step_values
from smdtrack.tracking.measure.measurement import Measurement

#: Samples for means of what changes slowly: the alignment of update and momentum buffer, and whether a weight is in
#: equilibrium. The angles of all weights swing together, so that a short mean would flicker.
_LONG_MEAN_SAMPLES = 5 * ROLLING_SAMPLES
#: A change of the equilibrium line by more than this factor from one sample to the next ends all running means.
_JUMP = 1.5


class SampleBuilder:
    """Makes samples of measurements, in the order of their steps.

    It keeps what needs more than one step: the values of the last samples, for their running means, and the norms,
    from whose change the drift-corrected line is computed.

    Args:
        weights: The tracked weights.
    """

    def __init__(self, weights: Sequence[TrackedWeight]) -> None:
        self._weights = list(weights)
        self._sizes = np.array([float(np.prod(weight.shape)) for weight in weights])
        self._balance = NormBalance(self._sizes)
        self._lag_angles = LagAngles()
        self._last_angle_eq: Floats | None = None
        self._recent: deque[tuple[Floats, Floats]] = deque(maxlen=ROLLING_SAMPLES)
        self._recent_ratios: deque[tuple[Floats, Floats]] = deque(maxlen=_LONG_MEAN_SAMPLES)
        self._momentum: deque[tuple[Floats, Floats]] = deque(maxlen=_LONG_MEAN_SAMPLES)
        self._live_check = LiveCheck(weights, self._report)
        self._clipping: Clipping | None = None
        self._reported: set[str] = set()
        self._has_diverged = False

    def __call__(self, measurement: Measurement) -> Sample | None:
        """Returns the sample, or None if the optimizer skipped the step because of an overflow."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._sample(measurement)

    def _sample(self, measurement: Measurement) -> Sample | None:
        values = step_values(measurement.reading)
        if any(float(skipped) != 0 for skipped in measurement.skipped):
            return None
        if not np.isfinite(values.weight_squared).any():
            if measurement.sharded:
                self._report("nothing could be measured in another process; its own notice says why")
                return None
            return self._diverged(measurement)
        angle, norm, gradient = values.angles(), values.norms_after(), values.effective_gradients()
        lines = self._lines(measurement, values, self._alignment(measurement, values))
        self._search_for_clipping(values)
        residual = self._residual(measurement, values)
        in_eval_mode = self._live_check.in_eval_mode(measurement.norm_in_eval_mode, values.eps_radial)
        lines = [None if without_line else line for line, without_line in zip(lines, in_eval_mode, strict=True)]
        angle_eq = array_of(None if line is None else line.angular_update for line in lines)
        if self._clipping == "adaptive":
            angle_eq = np.full_like(angle_eq, np.nan)
        angle_eq = np.where(np.isfinite(angle), angle_eq, np.nan)
        self._forget_means_after_a_jump(angle_eq)
        balance = self._balance.add(measurement.step, values, lines)
        self._recent.append((angle, gradient))
        self._recent_ratios.append((angle, angle_eq))
        sample_values = {
            "angle": angle,
            "angle_pred": _drift_corrected(lines, balance.drift),
            "angle_eq": angle_eq,
            "norm": norm,
            "norm_eq": self._equilibrium_norms(lines, norm, angle_eq),
            "effective_grad": gradient,
            "growth": balance.growth,
            "decay": balance.decay,
            "memory": balance.memory,
            # With a trust ratio the angle does not follow from drift and memory.
            "line_memory": array_of(
                None if line is None or line.trust is not None else line.drift_memory for line in lines
            ),
            "time_constant": array_of(None if line is None else line.time_constant for line in lines),
            "orthogonality_residual": residual,
        }
        self._lag_angles.add(measurement.step, angle, sample_values["angle_pred"])
        sample_values |= self._lag_angles.values(measurement.lags, lines)
        overview = ratios_overview(sample_values, *(rms(rows) for rows in zip(*self._recent_ratios, strict=True)))
        overview |= clipping_overview(self._clipping)
        overview |= self._precision_overview(angle, measurement.smallest_angles)
        not_invariant = (in_eval_mode | self._live_check.no_longer_orthogonal(residual))[np.isfinite(angle)]
        if not_invariant.any():
            overview["smd/not_invariant"] = float(np.mean(not_invariant))
        return Sample(measurement.step, measurement.time, sample_values, overview)

    def _diverged(self, measurement: Measurement) -> Sample | None:
        """Returns a sample without values for the first step at which no weight is finite, None for later ones."""
        message = "the training diverged: at step {} no tracked weight is finite any more"
        if self._has_diverged:
            return None
        self._has_diverged = True
        self._report(message.format(measurement.step))
        nothing = np.full(len(self._weights), np.nan)
        return Sample(measurement.step, measurement.time, {"angle": nothing, "norm": nothing}, {})

    def _lines(self, measurement: Measurement, values: StepValues, alignment: Floats) -> list[Line | None]:
        factors = None if values.decay_pull is None else values.decay_pull / np.square(values.norms_after())
        groups = [numbers_of(group) for group in measurement.groups]
        lines: list[Line | None] = []
        for index, (weight, group) in enumerate(zip(self._weights, measurement.group_of, strict=True)):
            factor = None if factors is None else number_or_none(factors[index])
            if group is None:
                lines.append(None)
            else:
                lines.append(
                    measurement.families[group].line(
                        groups[group], weight.shape, state_factor=factor, alignment=number_or_none(alignment[index])
                    )
                )
        return lines

    def _alignment(self, measurement: Measurement, values: StepValues) -> Floats:
        """Returns `<u, v> / |u|^2` of update u and momentum buffer v, (W,); NaN where it is not known.

        With the change `d = -lr u` of a step it is `-lr <d, v> / <d, d>`, with means of both products over the last
        samples.
        """
        if values.change_momentum is None:
            return np.full_like(values.change_squared, np.nan)
        rates = array_of(
            None if group is None else float(measurement.groups[group]["lr"]) for group in measurement.group_of
        )
        self._momentum.append((-values.change_momentum / rates, values.change_squared / rates**2))
        update_momentum, update_squared = (np.mean(rows, axis=0) for rows in zip(*self._momentum, strict=True))
        result: Floats = update_momentum / update_squared
        return result

    def _equilibrium_norms(self, lines: Sequence[Line | None], norm: Floats, angle_eq: Floats) -> Floats:
        rolling_angle, rolling_gradient = (rms(rows) for rows in zip(*self._recent, strict=True))
        norm_eq = array_of(
            None
            if line is None
            else line.equilibrium_norm(size, number_or_none(turn), number_or_none(effective_gradient))
            for line, size, turn, effective_gradient in zip(lines, norm, rolling_angle, rolling_gradient, strict=True)
        )
        return np.where(np.isfinite(angle_eq), norm_eq, np.nan)

    def _forget_means_after_a_jump(self, angle_eq: Floats) -> None:
        """Starts all running means anew after a jump of the learning rate, so that none spans two regimes."""
        if self._last_angle_eq is not None and np.any(np.abs(np.log(angle_eq / self._last_angle_eq)) > np.log(_JUMP)):
            self._recent.clear()
            self._recent_ratios.clear()
        self._last_angle_eq = angle_eq

    def _residual(self, measurement: Measurement, values: StepValues) -> Floats:
        if not measurement.has_gradients_of_the_step:
            return np.full_like(values.weight_squared, np.nan)
        return orthogonality_residual(values, subtract_eps=self._clipping is None)

    def _search_for_clipping(self, values: StepValues) -> None:
        if values.tied_elements is None or values.tied_filters is None:
            return
        found = find_clipping(values.tied_elements, values.tied_filters, self._sizes)
        if found is not None and self._clipping != "adaptive":
            self._clipping = found
            self._report(MEANING[found])

    def _precision_overview(self, angle: Floats, smallest_angles: Sequence[float]) -> dict[str, float]:
        overview = precision_overview(angle, smallest_angles)
        if overview.get("smd/below_floor"):
            self._report(
                f"weights in low precision: angles below {max(smallest_angles):g} rad a step are mostly rounding"
                " (smd/below_floor is the share of such weights)"
            )
        return overview

    def _report(self, message: str) -> None:
        """Shows a line to the user, the first time only."""
        if message not in self._reported:
            self._reported.add(message)
            notify(message)


def _drift_corrected(lines: Sequence[Line | None], drift: Floats) -> Floats:
    return array_of(
        None if line is None or not np.isfinite(value) else line.drift_corrected(value)
        for line, value in zip(lines, drift, strict=True)
    )
