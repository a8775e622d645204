"""Learning rate schedules for simulated runs, and the windows over which their angles are averaged."""

import math
from collections.abc import Callable, Iterator

from tests.theory.simulator import Simulation, Trace

WINDOW = 200


def constant(lr: float, steps: int) -> list[float]:
    """Returns a constant learning rate."""
    return [lr] * steps


def step(lr: float, steps: int) -> list[float]:
    """Returns a learning rate that is divided by ten half-way, between two windows."""
    half = steps // 2 // WINDOW * WINDOW
    return [lr] * half + [lr / 10] * (steps - half)


def cosine(lr: float, steps: int) -> list[float]:
    """Returns a cosine from the learning rate down to a twentieth of it."""
    return [lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * t / steps))) for t in range(steps)]


def warm_up(lr: float, steps: int) -> list[float]:
    """Returns a linear warm-up from a tenth over the first quarter of the run, then a constant."""
    ramp = steps // 4
    return [lr * (0.1 + 0.9 * min(1.0, t / ramp)) for t in range(steps)]


SCHEDULES: dict[str, Callable[[float, int], list[float]]] = {
    "constant": constant,
    "step": step,
    "cosine": cosine,
    "warm-up": warm_up,
}


def windows(simulation: Simulation, trace: Trace, skip: int = 1) -> Iterator[tuple[float, float]]:
    """Yields (measured, drift-corrected) RMS angles of the windows within which the learning rate does not jump."""
    for first in range(skip * WINDOW, len(trace.angle2) - WINDOW, WINDOW):
        rates = trace.learning_rate[first - 1 : first + WINDOW]
        if max(rates) > 2 * min(rates):
            continue
        measured = math.sqrt(sum(trace.angle2[first : first + WINDOW]) / WINDOW)
        drift = math.log(trace.norm2[first + WINDOW] / trace.norm2[first]) / WINDOW
        mean = sum(rates[1:]) / WINDOW
        line = simulation.family.line({**simulation.group, "lr": mean}, tuple(simulation.weight.shape))
        yield measured, line.drift_corrected(drift) or 0.0
