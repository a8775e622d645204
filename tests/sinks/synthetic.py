"""A run's data without a training: a plausible transient into equilibrium for every weight."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from smdtrack.record.run import Point, Run, RunInfo, Sample, TrackedWeight, points
from smdtrack.record.summary import Summary, summarize

LEARNING_RATE, WEIGHT_DECAY, MOMENTUM = 0.1, 5e-3, 0.9
START = 1_790_000_000.0


def layer_names(count: int) -> list[str]:
    """Names as a timm ResNet's: a stem, four stages of blocks."""
    blocks = max(1, math.ceil((count - 1) / 12))
    names = ["conv1"]
    for stage in range(1, 5):
        for block in range(blocks):
            names += [f"layer{stage}.{block}.{part}" for part in ("conv1", "conv2", "downsample.0")]
    while len(names) < count:
        names.append(f"head.{len(names)}")
    return names[:count]


def make_info(folder: Path, count: int = 15, run_id: str = "20261122-synthetic") -> RunInfo:
    """What is known of the run when it starts."""
    weights = tuple(
        TrackedWeight(
            name=f"{name}.weight",
            key=name,
            shape=(64, 64, 3, 3),
            norm=name.replace("conv", "bn"),
            line_kind="closed form",
            line_formula="sqrt(2 lr wd / (1 + a))",
            line_source="Wan et al. 2021, eq. 8",
        )
        for name in layer_names(count)
    )
    params: dict[str, str | int | float | bool] = {
        "model": "test_resnet",
        "optimizer": "SGD, momentum",
        "lr": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "momentum": MOMENTUM,
        "weights_tracked": count,
    }
    return RunInfo(run_id, "test_resnet-momentum", folder, START, weights, params)


def make_samples(info: RunInfo, steps: int = 300, every: int = 10, seed: int = 0) -> Iterator[Sample]:
    """Yields samples whose angle scatters around the drift-corrected line while the norm relaxes."""
    random = np.random.default_rng(seed)
    count = len(info.weights)
    decay, memory = LEARNING_RATE * WEIGHT_DECAY / (1 - MOMENTUM), (1 + MOMENTUM) / (1 - MOMENTUM)
    norm_eq = random.uniform(3, 9, count)
    squared = (norm_eq * random.uniform(1.5, 2.5, count)) ** 2
    equilibrium = np.full(count, math.sqrt(2 * decay / memory))
    for sample in range(steps):
        before = squared
        for _ in range(every):
            squared = squared * (1 - 2 * decay) + 2 * decay * norm_eq**4 / squared
        drift = np.log(squared / before) / every
        predicted = np.sqrt(np.maximum(0, (2 * decay + drift) / memory))
        angle = predicted * (1 + 0.08 * random.standard_normal(count))
        norm = np.sqrt(squared)
        ratio, pred_ratio = angle / equilibrium, angle / predicted
        values = {
            "angle": angle,
            "angle_pred": predicted,
            "angle_eq": equilibrium,
            "norm": norm,
            "norm_eq": norm_eq,
            "effective_grad": angle * norm,
            "line_memory": np.full(count, memory),
            "time_constant": np.full(count, 1 / (4 * decay)),
            "orthogonality_residual": np.full(count, 1e-7),
        }
        overview = {
            "smd/angle_ratio_p10": float(np.percentile(ratio, 10)),
            "smd/angle_ratio_p50": float(np.percentile(ratio, 50)),
            "smd/angle_ratio_p90": float(np.percentile(ratio, 90)),
            "smd/theory": 1.0,
            "smd/pred_ratio_p50": float(np.median(pred_ratio)),
            "smd/in_equilibrium": float(np.mean(np.abs(predicted / equilibrium - 1) < 0.1)),
            "smd/orthogonality_residual": float(1e-7 * random.uniform(0.5, 2)),
        }
        step = 1 + sample * every
        yield Sample(step, START + 0.2 * step, values, overview)


def make_points(info: RunInfo, samples: Sequence[Sample]) -> list[Point]:
    """The points as the writer passes them on: reference lines that stand still at their first and last step only."""
    still = {"angle_eq", "norm_eq"}
    ends = {samples[0].step, samples[-1].step}
    return [
        point
        for sample in samples
        for point in points(sample, info.weights)
        if point.step in ends or (point.key.partition("/")[0] not in still and point.key != "smd/theory")
    ]


def make_summary(info: RunInfo, samples: Sequence[Sample]) -> Summary:
    """The summary of the samples."""
    run = Run(
        info,
        np.array([sample.step for sample in samples]),
        np.array([sample.time for sample in samples]),
        {family: np.stack([sample.values[family] for sample in samples]) for family in samples[0].values},
        {key: np.array([sample.overview[key] for sample in samples]) for key in samples[0].overview},
    )
    summary = summarize(run)
    assert summary is not None
    return summary
