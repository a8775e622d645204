"""Schedules of learning rate, momentum, weight decay and batch size, for the third table of the theory.

The angle of each window of 100 steps is compared with the drift-corrected line at the window's mean settings. Left out
are the windows in which a setting jumps and those in which the optimizer's memory fills again afterwards.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from smdtrack.theory.finite_decay import angle_over_window
from tests.theory.conditions import USUAL
from tests.theory.simulator import Simulation, at_equilibrium

#: Steps of a window, of a run, and of the optimizers' memory, which must fill after a jump.
WINDOW, STEPS, FILL = 100, 4000, 200
#: By hyper-parameter, what multiplies it at a share of the run from 0 to 1; "batch" is a batch size over the usual one.
Factors = Mapping[str, float]
Schedule = Callable[[float], Factors]


def cosine_to_zero(share: float) -> Factors:
    """The learning rate follows a cosine down to 0."""
    return {"lr": 0.5 * (1 + math.cos(math.pi * share))}


def tenfold_drop(share: float) -> Factors:
    """The learning rate is divided by 10 half-way."""
    return {"lr": 1.0 if share < 0.5 else 0.1}


def one_cycle(share: float) -> Factors:
    """The learning rate rises from a tenth and falls back, and the momentum does the opposite (.95 to .85 to .95)."""
    rising = 1 - abs(2 * share - 1)
    return {"lr": 0.1 + 0.9 * rising, "momentum": (0.95 - 0.1 * rising) / 0.9}


def decay_off_and_on(share: float) -> Factors:
    """Weight decay is switched off for the second quarter of the run."""
    return {"weight_decay": 0.0 if 0.25 <= share < 0.5 else 1.0}


def fourfold_batch(share: float) -> Factors:
    """The batch is four times as large from the middle on, so that gradient noise is half as large."""
    return {"batch": 1.0 if share < 0.5 else 4.0}


SCHEDULES: dict[str, Schedule] = {
    "cosine to 0": cosine_to_zero,
    "lr / 10": tenfold_drop,
    "OneCycle": one_cycle,
    "decay off and on": decay_off_and_on,
    "batch x 4": fourfold_batch,
}
OPTIMIZERS = ("momentum", "sgd", "sgdw", "adamw", "nadamw", "adam", "lion")


@dataclass(frozen=True)
class Windows:
    """Measured over predicted angle of the windows of one run.

    Attributes:
        ratios: One per window.
        seconds: That the run took.
    """

    ratios: Sequence[float]
    seconds: float

    @property
    def mean(self) -> float:
        """Mean ratio."""
        return sum(self.ratios) / len(self.ratios)

    @property
    def within(self) -> float:
        """Share of the windows within 5 %."""
        return sum(abs(ratio - 1) <= 0.05 for ratio in self.ratios) / len(self.ratios)


def windows_of(optimizer: str, schedule: Schedule, seed: int = 0) -> Windows:
    """Runs an optimizer under a schedule, from equilibrium at its first settings."""
    began = time.perf_counter()
    simulation = Simulation(USUAL[optimizer](), (48, 48), seed=seed)
    usual, scale = dict(simulation.group), simulation.scale

    def apply(step: int) -> Factors:
        factors = schedule(step / STEPS)
        simulation.group.update(_scaled(usual, factors))
        simulation.scale = scale * factors.get("batch", 1.0) ** -0.5
        return factors

    before = apply(0)
    at_equilibrium(simulation)
    simulation.run(1000, sample=0)
    ratios, jumped = [], -FILL
    for first in range(0, STEPS, WINDOW):
        angle2, lines = 0.0, []
        for step in range(first, first + WINDOW):
            factors = apply(step)
            jumped = step if _jumps(before, factors) else jumped
            before = factors
            lines.append(simulation.line())
            trace = simulation.run(1, sample=0)
            angle2 += trace.angle2[0] / WINDOW
            if step == first:
                norm2 = trace.norm2[0]
        drift = math.log(float(simulation.weight.detach().square().sum()) / norm2) / WINDOW
        if jumped >= 0 and first < jumped + FILL:
            continue
        squared = sum((line.angular_update or 0.0) ** 2 for line in lines) / len(lines)
        memory = sum(line.drift_memory or math.nan for line in lines) / len(lines)
        expected = angle_over_window(squared, drift, memory)
        ratios.append(math.sqrt(angle2) / expected if expected else math.inf)
    return Windows(ratios, time.perf_counter() - began)


def _scaled(usual: Mapping[str, object], factors: Factors) -> dict[str, object]:
    """Returns the group's entries for these factors; the momentum of Adam-like optimizers is their first beta."""
    entries: dict[str, object] = {}
    for name, factor in factors.items():
        if name == "momentum" and "betas" in usual:
            first, *others = usual["betas"]  # type: ignore[misc]
            entries["betas"] = (first * factor, *others)
        elif name != "batch":
            entries[name] = usual[name] * factor  # type: ignore[operator]
    return entries


def _jumps(before: Factors, after: Factors) -> bool:
    return any(abs(after[name] - before[name]) > 0.2 * max(after[name], before[name]) for name in after)
