"""Runs to store, read and summarise in tests."""

from pathlib import Path

import numpy as np

from smdtrack.record import Run, RunInfo, Sample, TrackedWeight

WEIGHTS = (
    TrackedWeight("conv1.weight", "conv1", (8, 3, 3, 3), line_kind="closed form"),
    TrackedWeight("layer1.conv.weight", "layer1.conv", (16, 8, 3, 3), group=1, scope="filter", filter_dim=0, norm="bn"),
)


def run_info(folder: Path) -> RunInfo:
    return RunInfo("abc123", "net-abc123", folder, 1000.0, WEIGHTS, {"lr": 0.1, "optimizer": "SGD", "nesterov": False})


def sample(step: int, **families: tuple[float, float]) -> Sample:
    values = {family: np.array(row, dtype=np.float64) for family, row in families.items()}
    return Sample(step, 1000.0 + step, values, {"smd/theory": 1.0})


def make_run(steps: list[int], memory: float | None = None, **families: np.ndarray) -> Run:
    """A run read back, with (T,) columns that both weights share."""
    values = {family: np.stack([column, column], axis=1).astype(np.float64) for family, column in families.items()}
    if memory is not None:
        values["line_memory"] = np.full((len(steps), 2), memory)
    values.setdefault("norm", np.ones((len(steps), 2)))
    return Run(run_info(Path(".")), np.array(steps), np.arange(len(steps), dtype=np.float64), values, {})
