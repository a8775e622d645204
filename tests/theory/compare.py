"""Prediction against simulation for one case."""

import math
import time
import warnings
from dataclasses import dataclass

import timm.optim.kron
import torch

from smdtrack.theory import Line
from tests.theory.cases import Case
from tests.theory.simulator import Simulation, Trace, at_equilibrium


@dataclass(frozen=True)
class Row:
    """The result of one comparison.

    Attributes:
        ratio: Measured / equilibrium line, RMS over steps; NaN without an equilibrium.
        corrected: Measured / drift-corrected line.
    """

    case: Case
    line: Line
    measured: float
    ratio: float
    corrected: float
    drift: float
    seconds: float

    @property
    def deviation(self) -> float:
        """|measured / predicted - 1|, for the line that the case names in `against`."""
        return abs((self.corrected if self.case.against == "drift" else self.ratio) - 1)


def build(case: Case):
    """Returns a function that makes the case's optimizer from a list of parameters, by timm's registry."""
    from timm.optim import create_optimizer_v2

    def make(parameters):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer = create_optimizer_v2(
                parameters, case.name, lr=case.lr, weight_decay=case.weight_decay, **case.arguments
            )
        if case.name.startswith("kron"):
            uncompile(optimizer)
        return optimizer

    return make


def uncompile(kron) -> None:
    """Replaces the four functions that Kron compiles by the uncompiled ones, which need no compiler."""
    for name in ("_calc_A_and_conjB", "_q_terms", "_precond_grad", "_balance_Q"):
        setattr(kron, name, getattr(timm.optim.kron, name))


def compare(case: Case, seed: int = 0) -> Row:
    """Simulates a case and compares the measured angle with its line."""
    began = time.perf_counter()
    # Kron draws from the global generator
    torch.manual_seed(seed)
    simulation = Simulation(build(case), case.shape, norm=case.norm, seed=seed)
    at_equilibrium(simulation)
    simulation.run(case.settle, sample=0)
    trace = simulation.run(case.steps)
    line = simulation.line()
    corrected = _corrected(line, trace)
    return Row(
        case,
        line,
        trace.angle,
        trace.angle / trace.line if trace.line and not math.isnan(trace.line) else math.nan,
        trace.angle / corrected if corrected else math.nan,
        trace.drift,
        time.perf_counter() - began,
    )


def _corrected(line: Line, trace: Trace) -> float | None:
    """Returns the drift-corrected line over the trace, for the mean line if the line itself moves (NAdam, Adagrad)."""
    if line.trust is not None or not line.angular_update or math.isnan(trace.line):
        return line.drift_corrected(trace.drift)
    relative = (line.drift_corrected(trace.drift) or 0.0) / line.angular_update
    return trace.line * relative
