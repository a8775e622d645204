"""A run together with what its source knows beside the samples: the same type for every source."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from smdtrack.record.run import Run

Setting = str | int | float | bool


@dataclass(frozen=True)
class OpenedRun:
    """A run, read back from a local record, MLflow or W&B.

    Attributes:
        run: The samples and what was known of the run when it started.
        source: Where it was read: `local record`, `MLflow` or `W&B offline`.
        place: The folder or the address that was read.
        ended: Seconds since the epoch; None if the run has no recorded end.
        settings: Settings of the training script, by the script's names (`batch_size`, `epochs`).
        metrics: The script's own last metrics, such as `eval_top1`.
        notes: What this source lacks and what could not be read, one sentence each.
    """

    run: Run
    source: str
    place: str
    ended: float | None = None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
