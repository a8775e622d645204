"""Settings and gradients beyond the usual ones, for the second table of the theory: what a line assumes, and what not.

The line of white gradients is compared with the angle, and so is the line with the memory measured over the half of the
run before. Where the first fails and the second holds, correlated gradients are the cause, and the ratio of the two
memories says by how much.
"""

import itertools
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import timm.optim
import torch

from tests.theory.noise import NOISES
from tests.theory.simulator import Build, Simulation, Trace, at_equilibrium


@dataclass(frozen=True)
class Condition:
    """One row: an optimizer under settings and gradients.

    Attributes:
        label: What is special about it.
        optimizer: Name in the table.
        build: Makes the optimizer.
        noise: Name in `NOISES`.
        settle: Steps before the measurement.
        steps: Of each of the two halves of the measurement.
    """

    label: str
    optimizer: str
    build: Build
    noise: str = "white"
    shape: tuple[int, ...] = (48, 48)
    settle: int = 1000
    steps: int = 1500


@dataclass(frozen=True)
class Outcome:
    """What a condition gave, for the second half of the measurement.

    Attributes:
        kind: Of the line.
        ratio: Measured angle over the drift-corrected line of white gradients.
        memory: Measured memory over that of white gradients.
        with_memory: Measured angle over the drift-corrected line with the memory of the first half.
        seconds: That it took.
    """

    kind: str
    ratio: float
    memory: float
    with_memory: float
    seconds: float


def maker(name: str, **arguments: Any) -> Build:
    """Returns a function that makes an optimizer by timm's registry, or one of torch's for a name "torch.X"."""

    def make(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if name.startswith("torch."):
                made: torch.optim.Optimizer = getattr(torch.optim, name.removeprefix("torch."))(parameters, **arguments)
                return made
            return timm.optim.create_optimizer_v2(parameters, name, **arguments)

    return make


BETAS = {"betas": (0.9, 0.99)}
USUAL: dict[str, Callable[[], Build]] = {
    "momentum": lambda: maker("momentum", lr=0.1, weight_decay=1e-3),
    "sgd": lambda: maker("sgd", lr=0.1, weight_decay=1e-3),
    "sgdw": lambda: maker("sgdw", lr=0.1, weight_decay=1e-2),
    "adamw": lambda: maker("adamw", lr=1e-3, weight_decay=1.0, **BETAS),
    "nadamw": lambda: maker("nadamw", lr=1e-3, weight_decay=1.0, **BETAS),
    "adam": lambda: maker("adam", lr=1e-3, weight_decay=0.04, **BETAS),
    "lion": lambda: maker("lion", lr=1e-3, weight_decay=0.5),
    "muon": lambda: maker("muon", lr=1e-3, weight_decay=0.5),
}


def _settings() -> list[Condition]:
    rows = [
        Condition(f"betas {betas}", "adamw", maker("torch.AdamW", lr=1e-3, weight_decay=1.0, betas=betas))
        for betas in ((0.9, 0.95), (0.95, 0.98), (0.0, 0.99), (0.9, 0.9), (0.95, 0.95))
    ]
    rows += [
        Condition(f"lr wd {10.0 * lr:g}", "adamw", maker("adamw", lr=lr, weight_decay=10.0, **BETAS), settle=600)
        for lr in (1e-3, 1e-2)
    ]
    rows += [Condition("lr wd .06", "sgdw", maker("sgdw", lr=0.1, weight_decay=0.6), settle=400)]
    rows += [Condition("lr wd .002", "lion", maker("lion", lr=1e-3, weight_decay=2.0), steps=2500)]
    sgd = {"lr": 0.1, "weight_decay": 1e-3}
    rows += [Condition("momentum 0", "sgd", maker("torch.SGD", **sgd), settle=3000, steps=2500)]
    for momentum, lr in ((0.5, 0.1), (0.99, 0.02), (0.999, 0.002)):
        for nesterov in (False, True):
            arguments = {**sgd, "lr": lr, "momentum": momentum, "nesterov": nesterov}
            rows.append(
                Condition(
                    f"momentum {momentum:g}",
                    "nesterov" if nesterov else "momentum",
                    maker("torch.SGD", **arguments),
                    settle=3000,
                    steps=4000,
                )
            )
    rows += [Condition("dampening .5", "momentum", maker("torch.SGD", **sgd, momentum=0.9, dampening=0.5))]
    adamw = {"lr": 1e-3, "weight_decay": 1.0, **BETAS}
    rows += [Condition("AMSGrad", "adamw", maker("torch.AdamW", **adamw, amsgrad=True))]
    rows += [Condition("fused", "adamw", maker("torch.AdamW", **adamw, fused=True))]
    rows += [Condition("lr is a tensor", "adamw", maker("torch.AdamW", **{**adamw, "lr": torch.tensor(1e-3)}))]
    rows += [Condition("eps 1e-3", "rmsproptf", maker("rmsproptf", lr=1e-4, weight_decay=0.04, eps=1e-3))]
    decoupled = {"lr": 1e-3, "weight_decay": 1.0, "decoupled_weight_decay": True, **BETAS}
    rows += [Condition("decoupled", "nadam", maker("torch.NAdam", **decoupled))]
    return rows


#: Under these the norm itself fluctuates over thousands of steps, so that shorter halves are not comparable.
LONG = {"bursts": 6000, "bursts, AR(.95)": 8000, "unequal rows": 10000}


def _gradients() -> list[Condition]:
    rows = []
    for noise in NOISES:
        for name, make in USUAL.items():
            if name == "muon" and noise not in ("white", "AR(0.5)", "rank 8"):
                continue
            steps, settle = LONG.get(noise, 1500), 500 if name == "muon" else 1000
            shape = (32, 32) if name == "muon" else (48, 48)
            rows.append(Condition(noise, name, make(), noise, shape, settle, steps))
    return rows


#: Points at which the line is read during a half.
_CHUNKS = 20
CONDITIONS = [*_settings(), *_gradients()]


def outcome(condition: Condition, seed: int = 0) -> Outcome:
    """Simulates a condition and compares its angle with both lines."""
    began = time.perf_counter()
    simulation = Simulation(condition.build, condition.shape, noise=NOISES[condition.noise], seed=seed)
    at_equilibrium(simulation)
    simulation.run(condition.settle, sample=0)
    memory, _, _ = _half(simulation, condition.steps, 1.0)
    _, white, with_memory = _half(simulation, condition.steps, memory)
    return Outcome(simulation.line().kind, white, memory, with_memory, time.perf_counter() - began)


def _half(simulation: Simulation, steps: int, memory: float) -> tuple[float, float, float]:
    """Runs on; returns measured memory / expected, and the angle over the line and the line with a memory ratio.

    The line changes on the way if NAdam's momentum grows or Adam's denominators fluctuate, so that it is averaged.
    """
    traces, lines = [], []
    for _ in range(_CHUNKS):
        traces.append(simulation.run(steps // _CHUNKS, sample=0))
        lines.append(simulation.line())
    columns = zip(*(vars(trace).values() for trace in traces), strict=True)
    whole = Trace(*(list(itertools.chain(*parts)) for parts in columns))
    expected = [line.expected_memory or math.nan for line in lines]
    measured = [whole.memory(line) for line in lines]
    ratio = sum(measured) / sum(expected)
    white = _rms([line.drift_corrected(whole.drift) for line in lines])
    pairs = zip(lines, expected, strict=True)
    with_memory = _rms([line.with_memory(memory * value).drift_corrected(whole.drift) for line, value in pairs])
    return ratio, whole.angle / white, whole.angle / with_memory


def _rms(values: Sequence[float | None]) -> float:
    return math.sqrt(sum((value or math.nan) ** 2 for value in values) / len(values))
