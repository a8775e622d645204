"""The table of sums that a measured step leaves: which rows it can have, and its way to the host."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor


class Row(IntEnum):
    """A row of the table, one float64 per weight.

    `w` is the weight before the step, `g` its gradient, `d` the change of the weight during the step, and `v` its
    momentum buffer after the step. The first five rows are always there; the others only where they are needed. The
    value is the row's place in the table that is summed over the processes of a sharded training.
    """

    #: `<w, w>`
    WEIGHT_SQUARED = 0
    #: `<w, g>`
    WEIGHT_GRADIENT = 1
    #: `<g, g>`
    GRADIENT_SQUARED = 2
    #: `<w, d>`
    WEIGHT_CHANGE = 3
    #: `<d, d>`
    CHANGE_SQUARED = 4
    #: `<d, v>`, for lines that are read from the momentum buffer
    CHANGE_MOMENTUM = 5
    #: `<w', w'/denom>` of the weight after the step, for lines that are read from the second moments
    DECAY_PULL = 6
    #: The part of `<w, g>` that is due to the eps of the weight's batch norm
    EPS_RADIAL = 7
    #: Number of gradient elements that share the largest absolute value
    TIED_ELEMENTS = 8
    #: Number of filters that share the largest ratio of gradient norm to weight norm
    TIED_FILTERS = 9


#: The rows that every reading has.
MOMENTS = (Row.WEIGHT_SQUARED, Row.WEIGHT_GRADIENT, Row.GRADIENT_SQUARED, Row.WEIGHT_CHANGE, Row.CHANGE_SQUARED)


@dataclass(frozen=True)
class Part:
    """The table of the weights of one device.

    Attributes:
        columns: The weights, each by its place among all tracked weights.
        rows: The rows that were measured.
        table: (rows, columns) float64 on the host; valid once `arrived` has passed.
        arrived: Marks the end of the copy to the host on CUDA; None where the table was never on another device.
    """

    columns: Sequence[int]
    rows: Sequence[Row]
    table: Tensor
    arrived: torch.cuda.Event | None = None


@dataclass(frozen=True)
class Reading:
    """Everything that was measured of the tracked weights at one time; it may still be on its way to the host.

    Attributes:
        parts: One table per device. A weight that is in no part was not measured.
        width: Number of tracked weights.
    """

    parts: Sequence[Part]
    width: int


def start_copy_to_host(columns: Sequence[int], rows: Sequence[Row], table: Tensor) -> Part:
    """Starts the copy of a table to the host, without waiting for it: through pinned memory on CUDA."""
    if table.device.type != "cuda":
        return Part(columns, rows, table.cpu())
    host = torch.empty(table.shape, dtype=table.dtype, device="cpu", pin_memory=True)
    host.copy_(table, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return Part(columns, rows, host, event)


def to_device(table: Tensor, device: torch.device) -> Tensor:
    """Returns a small table of the host on the device, without waiting for the copy: through pinned memory on CUDA."""
    if device.type != "cuda":
        return table.to(device)
    return table.pin_memory().to(device, non_blocking=True)
