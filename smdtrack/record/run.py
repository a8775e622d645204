"""What a run is, once measured: frozen records that every source and every sink shares."""

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
#: Families that the local record keeps and no tracker gets: what the summary needs to be exact.
#: `efficiency_k<K>` joins them for each lag K.
LOCAL_FAMILIES = ("line_memory", "time_constant", "orthogonality_residual")
#: Families drawn as reference lines: trackers get them when they move, not at every sample.
REFERENCE_FAMILIES = ("angle_eq", "norm_eq")


class Point(NamedTuple):
    """One value of one metric, as trackers take it."""

    key: str
    value: float
    step: int
    time: float


@dataclass(frozen=True)
class TrackedWeight:
    """A weight that the run measures, and the line that theory draws for it when the run starts.

    Attributes:
        name: The parameter's dotted name.
        key: Its name in metric keys: the layer's dotted name.
        group: Index of its parameter group in the optimizer.
        scope: `filter` where each filter is scale-invariant by itself, else `tensor`.
        norm: The normalisation module that makes it invariant, where it could be named.
        line_kind: closed form, from state, calibrated, approximate, none.
        line_reason: Why there is no line, where there is none.
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
    """What a run that goes on has behind it.

    Attributes:
        last_step: The last step that its record has.
        sinks: By a sink's name, where that sink's run is found.
    """

    last_step: int
    sinks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class RunInfo:
    """What is known of a run when it starts.

    Attributes:
        created: Seconds since the epoch.
        params: Optimizer, lr, weight decay, momentum, model and the like, as trackers list them.
        steps_before: So many steps lie behind the first one that is seen: the training was resumed.
        earlier: Of a run that goes on with a record that is there.
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
        values: Per family, one float64 per tracked weight; NaN where a weight has no such value.
        overview: Values of the whole network, under their full keys (`smd/...`).
    """

    step: int
    time: float
    values: Mapping[str, Floats]
    overview: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A run read back: the same type from whatever source.

    Attributes:
        steps: (T,) optimizer steps, increasing.
        times: (T,) seconds since the epoch.
        values: Per family, (T, W) for the W weights of `info.weights`.
        overview: Per key, (T,).
        status: running, finished, failed, interrupted; a run that was killed stays `running`.
        summary: The stored summary table, where the run came to its end.
    """

    info: RunInfo
    steps: npt.NDArray[np.int64]
    times: Floats
    values: Mapping[str, Floats]
    overview: Mapping[str, Floats]
    status: str = "running"
    summary: Mapping[str, Any] | None = None

    def series(self, key: str) -> tuple[npt.NDArray[np.int64], Floats]:
        """Returns the steps and values of one metric key, without its gaps.

        Args:
            key: As the trackers show it: `angle/layer1.0.conv1`, `smd/angle_ratio_p50`.

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
        there = np.isfinite(column)
        return self.steps[there], column[there]


def points(sample: Sample, weights: tuple[TrackedWeight, ...]) -> Iterator[Point]:
    """Yields the sample's finite values under the keys that trackers show; non-finite values wreck their axes."""
    for key, value in sample.overview.items():
        if np.isfinite(value):
            yield Point(key, float(value), sample.step, sample.time)
    for family, row in sample.values.items():
        if family in LOCAL_FAMILIES or family.startswith("efficiency_k"):
            continue
        for weight, value in zip(weights, row.tolist(), strict=True):
            if np.isfinite(value):
                yield Point(f"{family}/{weight.key}", value, sample.step, sample.time)


def samples_between(run: Run, after: int, last: int) -> Iterator[Sample]:
    """Yields the samples of the steps behind `after`, up to `last`."""
    for row in np.flatnonzero((run.steps > after) & (run.steps <= last)).tolist():
        yield Sample(
            int(run.steps[row]),
            float(run.times[row]),
            {family: table[row] for family, table in run.values.items()},
            {key: float(column[row]) for key, column in run.overview.items()},
        )
