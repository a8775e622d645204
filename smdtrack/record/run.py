"""The data of a run, as frozen records: every reader returns them and every sink takes them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: Families of per-weight values, in the order that people read them. `angle_k<K>` and `angle_k<K>_pred` join them for
#: each lag K.
FAMILIES = ("angle", "angle_pred", "angle_eq", "norm", "norm_eq", "effective_grad", "growth", "decay", "memory")
#: Families that only the local record keeps, because the summary is computed from them. `efficiency_k<K>` joins them
#: for each lag K.
LOCAL_FAMILIES = ("line_memory", "time_constant", "orthogonality_residual")
#: Families that are reference lines: trackers get them when they change, not at every sample.
REFERENCE_FAMILIES = ("angle_eq", "norm_eq")


class Point(NamedTuple):
    """One value of one metric, as it is sent to trackers. `time` is in seconds since the epoch."""

    key: str
    value: float
    step: int
    time: float


@dataclass(frozen=True)
class TrackedWeight:
    """A weight that the run measures, and the line that theory gives for it when the run starts.

    Attributes:
        name: The parameter's dotted name.
        key: Its name in metric keys: the layer's dotted name.
        group: Index of its parameter group in the optimizer.
        scope: `filter` if each filter is scale-invariant by itself, else `tensor`.
        filter_dim: The dimension that counts the filters, if the scope is `filter`.
        norm: The normalisation module that makes it invariant, if it is known.
        line_kind: closed form, from state, calibrated, approximate, or none.
        line_reason: Why there is no line, if there is none.
    """

    name: str
    key: str
    shape: tuple[int, ...]
    group: int = 0
    scope: str = "tensor"
    filter_dim: int | None = None
    norm: str | None = None
    line_kind: str = "none"
    line_formula: str = ""
    line_source: str = ""
    line_reason: str | None = None


@dataclass(frozen=True)
class Earlier:
    """The earlier part of a resumed run.

    Attributes:
        last_step: The last step in its record.
        sinks: By a sink's name, what that sink needs to find its run again.
    """

    last_step: int
    sinks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class RunInfo:
    """What is known of a run when it starts.

    Attributes:
        created: Seconds since the epoch.
        params: Optimizer, lr, weight decay, momentum, model and the like, under the names that trackers show.
        steps_before: Steps taken before tracking began; 0 unless the training was resumed.
        earlier: The part of this run that is recorded already; None for a new run.
    """

    id: str
    name: str
    folder: Path
    created: float
    weights: tuple[TrackedWeight, ...]
    params: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    steps_before: int = 0
    earlier: Earlier | None = None


@dataclass(frozen=True)
class Sample:
    """One sampled optimizer step.

    Attributes:
        step: The optimizer step, counted from 1; the angle is between the weights before and after it.
        time: Seconds since the epoch.
        values: By family, (W,) float64, one per tracked weight; NaN if a weight has no such value.
        overview: Values of the whole network, by their full keys (`smd/...`).
    """

    step: int
    time: float
    values: Mapping[str, Floats]
    overview: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A run that was read back. Every source gives this type.

    Attributes:
        steps: (T,) optimizer steps, increasing.
        times: (T,) seconds since the epoch.
        values: By family, (T, W) for the W weights of `info.weights`; NaN if a sample has no such value.
        overview: By key, (T,).
        status: running, finished, failed, interrupted or killed. A run whose process was killed stays `running` until
            `smdtrack sync` closes it.
        summary: The stored summary table; None while the run has no recorded end.
        damage: What could not be read, one sentence each.
    """

    info: RunInfo
    steps: npt.NDArray[np.int64]
    times: Floats
    values: Mapping[str, Floats]
    overview: Mapping[str, Floats]
    status: str = "running"
    summary: Mapping[str, Any] | None = None
    damage: tuple[str, ...] = ()

    def series(self, key: str) -> tuple[npt.NDArray[np.int64], Floats]:
        """Returns the steps and the values of one metric key, for the samples that have it.

        Args:
            key: The key in the trackers, such as `angle/layer1.0.conv1` or `smd/angle_ratio_p50`.

        Raises:
            KeyError: If the run has no such key.
        """
        if key in self.overview:
            column = self.overview[key]
        else:
            family, _, weight = key.partition("/")
            columns = [index for index, tracked in enumerate(self.info.weights) if tracked.key == weight]
            if family not in self.values or not columns:
                raise KeyError(f"run {self.info.name} has no key {key!r}")
            column = self.values[family][:, columns[0]]
        finite = np.isfinite(column)
        return self.steps[finite], column[finite]


def points(sample: Sample, weights: tuple[TrackedWeight, ...]) -> Iterator[Point]:
    """Yields the sample's values under the keys that trackers show.

    Values that are not finite are left out: MLflow stores infinity as 1.8e308, which makes a chart unreadable.
    """
    for key, value in sample.overview.items():
        if np.isfinite(value):
            yield Point(key, float(value), sample.step, sample.time)
    for family, row in sample.values.items():
        if family in LOCAL_FAMILIES or family.startswith("efficiency_k"):
            continue
        for weight, value in zip(weights, row.tolist(), strict=True):
            if np.isfinite(value):
                yield Point(f"{family}/{weight.key}", value, sample.step, sample.time)


def samples_between(run: Run, after: int, last: int | None = None) -> Iterator[Sample]:
    """Yields the samples of the steps after `after`, up to and including `last`."""
    chosen = run.steps > after
    if last is not None:
        chosen &= run.steps <= last
    for row in np.flatnonzero(chosen).tolist():
        yield Sample(
            int(run.steps[row]),
            float(run.times[row]),
            {family: table[row] for family, table in run.values.items()},
            {key: float(column[row]) for key, column in run.overview.items()},
        )
