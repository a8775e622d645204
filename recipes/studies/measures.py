"""What the studies read from a run, and how they write tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from smdtrack.record import Run

Floats = npt.NDArray[np.float64]


def rms(run: Run, family: str, start: float = 2 / 3, end: float = 1.0) -> Floats:
    """Returns the RMS of a family of values, (W,), over a part of the run's steps.

    Args:
        run: The run.
        family: `angle`, `angle_eq`, `norm`, `angle_k4` and so on.
        start: Where the part begins, as a share of the run.
        end: Where it ends.
    """
    first, last = run.steps[-1] * start, run.steps[-1] * end
    part = (run.steps > first) & (run.steps <= last)
    squares: Floats = np.nanmean(run.values[family][part] ** 2, axis=0)
    return np.sqrt(squares)


def uncorrelated_memory(momentum: float, steps: int) -> float:
    """Returns R_k = 1 + 2 sum_{j<k} (1 - j/k) a^j of SGD with momentum a under uncorrelated gradients."""
    lags = np.arange(1, steps)
    return float(1 + 2 * np.sum((1 - lags / steps) * momentum**lags))


def measured_memory(run: Run, steps: int, start: float, end: float) -> Floats:
    """Returns the same per weight as measured: the squared angle over k steps / k squared angles of one step.

    An angle over many steps is made straight first: `theta^2 = -2 ln cos`, since a walk on the sphere that has gone
    theta keeps a cosine of exp(-theta^2/2).
    """
    over_many = rms(run, f"angle_k{steps}", start, end)
    return -2 * np.log(np.cos(over_many)) / (steps * rms(run, "angle", start, end) ** 2)


def spread(values: Floats, digits: int = 2) -> str:
    """Returns median and range over the weights, as in `1.02 (0.98 to 1.05)`."""
    low, middle, high = (f"{value:.{digits}f}" for value in (values.min(), np.median(values), values.max()))
    return f"{middle} ({low} to {high})"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
