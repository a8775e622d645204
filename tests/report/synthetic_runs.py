"""Records of runs that behave as theory says, made without a training."""

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from smdtrack.record import LocalStore, RunInfo, Sample, TrackedWeight, read_run, summarize
from smdtrack.record.store import RUN_FILE

#: Effective gradient of every weight, and the factor between a start's norm and the equilibrium norm.
NAMES = ("conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.conv2")


def make_record(
    folder: Path,
    *,
    lr: float = 0.1,
    decay: float = 5e-3,
    momentum: float = 0.9,
    steps: int = 900,
    every: int = 3,
    start: float | Sequence[float] = 1.0,
    names: Sequence[str] = NAMES,
    lags: Sequence[int] = (),
    schedule: Callable[[int], float] = lambda step: 1.0,
    seed: int = 0,
    noise: float = 0.05,
    params: dict[str, str | int | float | bool] | None = None,
    status: str = "finished",
    created: float | None = None,
    nan_from: int | None = None,
) -> Path:
    """Writes the record of heavy-ball SGD on weights with a constant effective gradient.

    The squared norm follows `r+ = r (1 - 2 gamma) + (lr H)^2 C^2 / r`. The angle is that of the drift-corrected line,
    times a scatter of `noise`. An angle over k steps is that of gradients uncorrelated in time.

    Args:
        start: Norm at the start over the equilibrium norm at the full rate, of all weights or of each.
        schedule: Factor on lr at a step.
        status: `running` leaves the record as a killed process would.
        nan_from: Step from which on the measured values are NaN.
    """
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    count = len(names)
    memory = (1 + momentum) / (1 - momentum)
    effective = np.linspace(0.3, 0.9, count)
    gain, gamma_full = 1 / (1 - momentum), lr * decay / (1 - momentum)
    energy = 1 / (1 - momentum**2)
    norm_eq_full = ((lr * gain * effective) ** 2 / (2 * gamma_full)) ** 0.25
    squared = (norm_eq_full * np.broadcast_to(np.asarray(start, dtype=np.float64), (count,))) ** 2
    weights = tuple(
        TrackedWeight(f"{name}.weight", name, (16, 16, 3, 3), line_kind="closed form", line_formula="2 lr wd / (1+a)")
        for name in names
    )
    known = {
        "model": "net",
        "optimizer": "SGD",
        "lr": lr,
        "weight_decay": decay,
        "momentum": momentum,
        **(params or {}),
    }
    made = time.time() if created is None else created
    info = RunInfo(folder.name, folder.name, folder, made, weights, known)
    store = LocalStore(info)
    samples = []
    for step in range(1, steps + 1):
        rate = lr * schedule(step)
        gamma = rate * decay / (1 - momentum)
        before = squared
        squared = squared * (1 - 2 * gamma) + (rate * gain * effective) ** 2 / squared
        if step % every:
            continue
        equilibrium = np.full(count, math.sqrt(2 * gamma / memory))
        predicted = rate * math.sqrt(energy) * effective / before
        angle = predicted * (1 + noise * random.standard_normal(count))
        norm_eq = ((rate * gain * effective) ** 2 / (2 * gamma)) ** 0.25
        values = {
            "angle": angle,
            "angle_pred": predicted,
            "angle_eq": equilibrium,
            "norm": np.sqrt(squared),
            "norm_eq": norm_eq,
            "effective_grad": effective * (1 + noise * random.standard_normal(count)),
            "growth": angle**2 * memory,
            "decay": np.full(count, 2 * gamma),
            "memory": np.full(count, 1.0),
            "line_memory": np.full(count, memory),
            "time_constant": np.full(count, 1 / (4 * gamma)),
        }
        for lag in lags:
            over = lag * memory - 2 * momentum * (1 - momentum**lag) / (1 - momentum) ** 2
            values[f"angle_k{lag}"] = predicted * math.sqrt(over) * (1 + noise * random.standard_normal(count))
        if nan_from is not None and step >= nan_from:
            values = {family: np.full(count, np.nan) for family in values}
        ratio = angle / equilibrium
        overview = {
            "smd/theory": 1.0,
            "smd/angle_ratio_p10": float(np.percentile(ratio, 10)),
            "smd/angle_ratio_p50": float(np.percentile(ratio, 50)),
            "smd/angle_ratio_p90": float(np.percentile(ratio, 90)),
            "smd/in_equilibrium": float(np.mean(np.abs(predicted / equilibrium - 1) < 0.1)),
        }
        samples.append(Sample(step, made + 0.1 * step, values, overview))
    store.append(samples)
    if status != "running":
        summary = summarize(read_run(folder))
        store.close(status, summary.to_json() if summary is not None else None)
    return folder


def change_head(folder: Path, **changes: object) -> None:
    """Changes entries of a record's head."""
    path = folder / RUN_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
