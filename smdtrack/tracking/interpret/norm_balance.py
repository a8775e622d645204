r"""Measures how a weight's norm grows by its updates, beside how weight decay shrinks it.

A step changes the weight w by `d = -g w - u`, where g is the relative shrinking by weight decay and u the update
without it. The squared norm `r = ||w||^2` then changes by

    r_after = (1 - g)^2 r + |u|^2 (1 + 2 (1 - g) A),        A = -<w, u> / |u|^2,

so that it grows per step by `growth - decay`, relative to r, with `decay = 2 g - g^2`, `growth = x (1 + 2 (1 - g) A)`
and `x = |u|^2 / r`. All of these follow from `<w, w>`, `<w, d>` and `<d, d>` (see `theory.measured_memory`).

If weight decay is part of the gradient (coupled), it passes through the momentum, and no single step tells decay and
update apart. Then `decay = 2 g`, `x = <d, d> / r` and `growth = x R`; the change of ln r counts with the factor
`Line.relaxation`.

The growth of a single step scatters, so it is averaged over a window of samples. The size of the updates changes within
the window with the learning rate s and the norm. For a line with the exponent p (see `Line.norm_exponent`), and
gradients whose effective size stays the same, it changes as `x = c s^2 r^-(1+p)`. Comparing the measured sum of the
growth over the window with the sum of this model gives c, and with it the growth at the present learning rate and norm.
So the window may contain a change of the learning rate, and the result does not lag behind.

After a fall of the learning rate, the updates before it still act through the momentum: the memory is
`1 + 2 sum_j rho_j s_{t-j} / s_t` for a while, which the sum of the model takes into account.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from smdtrack.record.run import Floats
from smdtrack.record.summary import ROLLING_SAMPLES
from smdtrack.theory import Line
from smdtrack.theory.measured_memory import decay_force
from smdtrack.tracking.interpret.arrays import array_of
from smdtrack.tracking.interpret.step_values import StepValues

#: Largest number of samples in a window.
WINDOW_SAMPLES = 5 * ROLLING_SAMPLES
#: Largest change of ln ||w||^2 over the window for the growth. Where updates are normalised by gradients of long ago,
#: the exponent p is not exact over short times. The norm of a weight of d elements may also change by this many times
#: 1/sqrt(d), because that is what it scatters by.
_MAX_NORM_CHANGE = 0.05
_MAX_NORM_SCATTER = 2.0
#: Number of earlier step sizes that are remembered, for the memory after a change of the learning rate.
_STEP_SIZES = 1000
#: A change of the norm between two sampled steps counts as made outside the optimizer's steps if it differs from that
#: inside the sampled steps by this many standard deviations of the latter.
_OUTSIDE_DEVIATIONS = 8.0
#: The same for the mean over all gaps of the window, in standard errors.
_OUTSIDE_STANDARD_ERRORS = 6.0
#: Gaps between samples from which on their mean is tested.
_MIN_GAPS = 10
#: If the step size changes by more than this factor between two sampled steps, it is not known at which step it did.
_JUMP = 1.5
#: Largest deviation from 1 of the transient factor of the memory at which a sample after unsampled steps counts.
_MAX_TRANSIENT = 0.2

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Balance:
    """The two forces on the norm of each weight at a step, (W,) each; NaN where they are not known.

    Attributes:
        growth: Relative growth of ||w||^2 per step by the updates, at the present learning rate and norm. NaN if a
            trust ratio ties the updates to the norm.
        decay: Relative shrinking of ||w||^2 per step by weight decay; NaN likewise.
        memory: Memory of the updates over the window, divided by that of the line: 1 for gradients that are
            uncorrelated in time. NaN likewise.
        drift: Rate of change of ln ||w||^2 per step that belongs to growth and decay.
    """

    growth: Floats
    decay: Floats
    memory: Floats
    drift: Floats


class NormBalance:
    """Measures growth and decay of the norms over the last samples.

    Args:
        sizes: Number of elements of each weight, (W,).
    """

    def __init__(self, sizes: Floats) -> None:
        self._history = _History(len(sizes))
        self._max_norm_change = np.maximum(_MAX_NORM_CHANGE, _MAX_NORM_SCATTER / np.sqrt(sizes))
        self._step_sizes: deque[tuple[int, Floats]] = deque(maxlen=_STEP_SIZES)
        self._samples_since_change = 0

    def add(self, step: int, values: StepValues, lines: Sequence[Line | None]) -> Balance:
        """Adds a sampled step, and returns the balance at it; growth and memory are NaN at the first one.

        Args:
            step: The optimizer step.
            values: What was measured of it.
            lines: The line of each weight; None for a weight without one.
        """
        rate = array_of(None if line is None else line.decay_rate for line in lines)
        coupled = np.array([line is not None and line.coupled for line in lines])
        overlap = array_of(None if line is None else line.overlap for line in lines)
        exponent = array_of(None if line is None else line.norm_exponent or 0.0 for line in lines)
        step_size = array_of(None if line is None else _step_size(line) for line in lines)
        log_factor = array_of(None if line is None else line.relaxation if line.coupled else 1.0 for line in lines)
        growth_memory = np.where(
            np.isfinite(overlap),
            1 + 2 * (1 - rate) * overlap,
            array_of(None if line is None else line.memory for line in lines),
        )
        decay = np.where(coupled, decay_force(rate, True), decay_force(rate, False))
        squared = values.weight_squared
        update = values.change_squared + 2 * rate * values.weight_change + rate**2 * squared
        changed = bool(self._step_sizes) and not np.array_equal(step_size, self._step_sizes[-1][1], equal_nan=True)
        self._samples_since_change = 0 if changed else self._samples_since_change + 1
        self._step_sizes.append((step, step_size))
        at_this_step, in_the_gap = self._transient(lines)
        norm_power = squared ** -(1 + exponent)
        self._history.add(
            step,
            log_before=np.log(squared),
            log_after=2 * np.log(values.norms_after()),
            log_factor=log_factor,
            update=np.where(coupled, values.change_squared, update) / squared,
            decay=decay,
            step_size=step_size,
            transient=at_this_step / step_size**2,
            model_update=step_size**2 * norm_power,
            model_growth=at_this_step * growth_memory * norm_power,
            model_growth_in_gap=in_the_gap * growth_memory * norm_power,
        )
        reach = np.array([((line.time_constant if line else None) or np.inf) / 2 for line in lines])
        growth_over_model, ratio = self._history.growth_and_memory(reach, self._max_norm_change)
        growth = growth_over_model * step_size**2 * norm_power * growth_memory
        # R = 1 + 2 A, from the growth's 1 + 2 (1 - g) A.
        memory = np.where(
            np.isfinite(overlap),
            (1 + (ratio * growth_memory - 1) / (1 - rate)) / (1 + 2 * overlap),
            ratio,
        )
        has_forces = np.array([line is not None and line.trust is None for line in lines])
        return Balance(
            np.where(has_forces, growth, np.nan),
            np.where(has_forces, decay, np.nan),
            np.where(has_forces, memory, np.nan),
            np.log1p(growth - decay) / log_factor,
        )

    def _transient(self, lines: Sequence[Line | None]) -> tuple[Floats, Floats]:
        """Returns `s_t^2 R_t / R` of this step, and its sum over the steps between the last sample and this one, (W,).

        R_t is the memory while the step size changes: the updates are `u_t = s_t v_t`, where v has the autocorrelation
        of the line. Between samples the step size is interpolated.
        """
        step, now = self._step_sizes[-1]
        gap = step - self._step_sizes[-2][0] - 1 if len(self._step_sizes) > 1 else 0
        result = np.square(now) * np.array([[1.0], [float(gap)]])
        if self._samples_since_change >= len(self._step_sizes):
            return result[0], result[1]
        steps = np.array([earlier for earlier, _ in self._step_sizes])
        sizes = np.stack([size for _, size in self._step_sizes])
        changed = np.flatnonzero(np.abs(sizes / now - 1).max(axis=0) > 1e-9)
        known: dict[tuple[int, bytes], Floats] = {}
        for weight in changed.tolist():
            line = lines[weight]
            if line is None or line.updates is None:
                continue
            rho = line.updates.autocorrelation.numpy()
            key = (id(line.updates.autocorrelation), sizes[:, weight].tobytes())
            if key not in known:
                there = np.isfinite(sizes[:, weight])
                wanted = np.arange(steps[-1] - gap - len(rho) + 1, steps[-1] + 1)
                size = np.interp(wanted, steps[there], sizes[there, weight])
                # For each step, sum_{j>=0} rho_j s_{t-j}; rho_0 = 1.
                summed = np.convolve(size, rho, mode="valid")
                own = size[len(rho) - 1 :]
                growth = own * (2 * summed - own) / (2 * rho.sum() - 1)
                known[key] = np.array([growth[-1], growth[:-1].sum()])
            result[:, weight] = known[key]
        return result[0], result[1]


def _step_size(line: Line) -> float:
    """Returns the size of an update over that of the (normalised) gradient, up to a constant."""
    energy = line.updates.energy if line.updates is not None else None
    return (line.step_size or 1.0) * math.sqrt(energy or 1.0)


class _History:
    """What was measured of the last sampled steps, in arrays of (samples, W), the present one last."""

    _NAMES = (
        *("log_before", "log_after", "log_factor", "update", "decay", "step_size"),
        *("model_update", "model_growth", "model_growth_in_gap", "transient"),
    )

    def __init__(self, width: int) -> None:
        self._steps = np.full(WINDOW_SAMPLES, np.nan)
        self._rows = {name: np.full((WINDOW_SAMPLES, width), np.nan) for name in self._NAMES}

    def add(self, step: int, **values: Floats) -> None:
        """Adds the values of a sampled step."""
        self._steps[:-1] = self._steps[1:]
        self._steps[-1] = step
        for name, rows in self._rows.items():
            rows[:-1] = rows[1:]
            rows[-1] = values[name]

    def growth_and_memory(self, reach: Floats, max_norm_change: Floats) -> tuple[Floats, Floats]:
        """Returns growth over model, and measured memory over that of the line, (W,) each.

        Between two samples, the growth is the change of the norm plus the decay, if the optimizer made that change (see
        `_made_by_steps`). Otherwise only the sampled steps count.

        Args:
            reach: Largest number of steps in the window for the growth, (W,); it has at least two samples.
            max_norm_change: Largest change of ln ||w||^2 in this window, (W,).
        """
        rows, first = self._rows, int(np.isnan(self._steps).sum())
        steps = self._steps[first:]
        if len(steps) < 2:
            nothing = np.full(len(reach), np.nan)
            return nothing, nothing
        before, after, decay, size = (rows[name][first:] for name in ("log_before", "log_after", "decay", "step_size"))
        inside, gap_steps, gap_change = after - before, np.diff(steps)[:, None] - 1, before[1:] - after[:-1]
        gap_before = np.concatenate([[[0.0]], gap_steps])
        counted = _made_by_steps(inside, gap_change, gap_steps, size, decay)
        factor, model = rows["log_factor"][first:], rows["model_growth"][first:].copy()
        growth = np.expm1(factor * inside) + decay
        per_step = np.expm1(factor[1:] * gap_change / np.maximum(gap_steps, 1)) + (decay[1:] + decay[:-1]) / 2
        growth[1:] += np.where(counted, gap_steps * per_step, 0.0)
        model[1:] += np.where(counted, rows["model_growth_in_gap"][first + 1 :], 0.0)
        # Between samples it is not known at which step the step size changed: leave out what depends on it too much.
        steady = (np.abs(rows["transient"][first:] - 1) <= _MAX_TRANSIENT) | (gap_before == 0)
        growth, model = np.where(steady, growth, 0.0), np.where(steady, model, 0.0)
        update, model_update = rows["update"][first:], rows["model_update"][first:]
        # From the present sample back to the last one without a value.
        known = np.logical_and.accumulate(np.isfinite(growth + model + update)[::-1], axis=0)[::-1]
        known &= known[-2]
        start = np.concatenate([[steps[0] - 1], steps[:-1]])[:, None]
        near = (steps[-1] - start <= reach) & (np.abs(after[-1] - before) <= max_norm_change)
        near = np.logical_and.accumulate(near[::-1], axis=0)[::-1]
        near[-2:] = True

        def total(values: Floats, chosen: Flags) -> Floats:
            result: Floats = np.where(chosen, values, 0.0).sum(axis=0)
            return result

        over_model = total(growth, known) / total(model, known)
        update_over_model = total(update, known) / total(model_update, known)
        near_model = total(model, known & near)
        near_over_model = np.where(near_model > 0, total(growth, known & near) / near_model, over_model)
        return near_over_model, over_model / update_over_model


def _made_by_steps(inside: Floats, gap_change: Floats, gap_steps: Floats, step_size: Floats, decay: Floats) -> Flags:
    """Returns (T - 1, W) bool: the gaps between samples in which the optimizer made the change of the norm.

    It did not if the weights were replaced, restored or clipped to a norm between two steps. With no step in the gap
    this is certain. Otherwise the change per step in the gap is compared with that inside the two sampled steps beside
    it, for each gap and in the mean over all of them. A gap in which the step size jumps is left out, too, because it
    is not known at which of its steps.

    Args:
        inside: Change of ln ||w||^2 inside each sampled step, (T, W).
        gap_change: Its change from the end of each sampled step to the beginning of the next, (T - 1, W).
        gap_steps: Number of steps between them, (T - 1, 1).
        step_size: Of each sampled step, (T, W).
        decay: Relative shrinking of ||w||^2 by weight decay at each sampled step, (T, W).
    """
    counted: Flags = (gap_steps > 0) & (np.abs(np.log(step_size[1:] / step_size[:-1])) <= math.log(_JUMP))
    if not counted.any():
        return counted
    difference = gap_change / np.maximum(gap_steps, 1) - (inside[1:] + inside[:-1]) / 2
    deviation = _deviation(inside, np.isfinite(inside))
    largest = np.maximum(np.abs(inside[1:]), np.abs(inside[:-1]))
    counted &= np.abs(difference) <= _OUTSIDE_DEVIATIONS * deviation + 2 * largest
    gaps = counted.sum(axis=0)
    if gaps.max() >= _MIN_GAPS:
        mean = np.where(counted, difference, 0.0).sum(axis=0) / np.maximum(gaps, 1)
        error = _deviation(difference, counted) / np.sqrt(np.maximum(gaps, 1))
        biased = (gaps >= _MIN_GAPS) & (np.abs(mean) > _OUTSIDE_STANDARD_ERRORS * error)
        # Sampled steps that alone would make the updates shrink the norm are not representative.
        counted &= ~(biased & ((inside + decay).sum(axis=0) > 0))
    return counted


def _deviation(values: Floats, chosen: Flags) -> Floats:
    """Returns the standard deviation of the chosen values of each column."""
    count = np.maximum(chosen.sum(axis=0), 1)
    mean = np.where(chosen, values, 0.0).sum(axis=0) / count
    result: Floats = np.sqrt(np.where(chosen, np.square(values - mean), 0.0).sum(axis=0) / count)
    return result
