"""Large runs in memory, to weigh pages and to time them."""

from pathlib import Path

import numpy as np

from smdtrack.record import Run
from smdtrack.record.opened_run import OpenedRun
from tests.sinks.synthetic import layer_names, make_info

#: All families of a run, with what later versions may add.
_FAMILIES = ("angle", "angle_pred", "angle_eq", "norm", "norm_eq", "effective_grad", "memory", "time_constant")
_MORE = ("growth", "decay", "angle_k10", "angle_k10_pred", "angle_k100", "angle_k100_pred", "orthogonality_residual")


def large_run(weights: int, samples: int, seed: int = 0) -> OpenedRun:
    """A run whose every family is noise around a trend: the hardest case for compression and thinning."""
    random = np.random.default_rng(seed)
    info = make_info(Path("large"), weights)
    assert len({weight.key for weight in info.weights}) == weights == len(layer_names(weights))
    trend = 0.02 * np.exp(-np.linspace(0, 3, samples))[:, None] * random.uniform(0.5, 2, weights)
    values = {
        family: trend * np.exp(0.3 * random.standard_normal((samples, weights))) for family in (*_FAMILIES, *_MORE)
    }
    values["time_constant"] = np.full((samples, weights), 200.0)
    steps = 10 * np.arange(1, samples + 1)
    overview = {
        key: np.exp(0.1 * random.standard_normal(samples))
        for key in ("smd/angle_ratio_p10", "smd/angle_ratio_p50", "smd/angle_ratio_p90", "smd/in_equilibrium")
    }
    run = Run(info, steps, 1e9 + 0.1 * steps, values, overview, "finished")
    return OpenedRun(run, "local record", "large", 1e9 + 1)
