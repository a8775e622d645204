"""Measures one optimizer step on the device where the weights lie, without waiting for it.

Before the step the weights are copied and `<w, w>`, `<w, g>`, `<g, g>` summed; after it `<w, d>` and `<d, d>` of the
change `d` follow, and `<d, v>` with the momentum buffer where a line gets exact by it. What leaves is one small float64
table a device and, on CUDA, an event that says when it has arrived: the training thread never waits.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from smdtrack.record.run import Floats
from smdtrack.tracking.measure import backends
from smdtrack.tracking.measure.backends.backend import to_device

#: Adds a table of these columns up over the processes among which the weights are sharded.
Reduce = Callable[[Sequence[int], Tensor], Tensor]


@dataclass(frozen=True)
class Moments:
    """Inner products of one step, float64, (W,) for W weights: weight before `w`, gradient `g`, change `d`."""

    weight_squared: Floats
    weight_gradient: Floats
    gradient_squared: Floats
    weight_change: Floats
    change_squared: Floats


@dataclass(frozen=True)
class Part:
    """The table of the weights of one device, (rows, columns) float64 on the host, valid once `event` has passed."""

    columns: Sequence[int]
    table: Tensor
    event: torch.cuda.Event | None = None


@dataclass(frozen=True)
class Reading:
    """What was measured of W weights, on its way to the host.

    Attributes:
        width: W; weights in no part were not measured.
    """

    parts: Sequence[Part]
    width: int

    def numpy(self) -> Floats:
        """Waits until all has arrived (call it off the training thread): (rows, W), NaN where nothing was measured."""
        rows = max((part.table.shape[0] for part in self.parts), default=5)
        result = np.full((rows, self.width), np.nan)
        for part in self.parts:
            if part.event is not None:
                part.event.synchronize()
            result[: part.table.shape[0], list(part.columns)] = part.table.numpy()
        return result

    def moments(self) -> Moments:
        """Returns the first five rows by name, after waiting for them."""
        return Moments(*self.numpy()[:5])


class Probe:
    """Measures the change of weights over one step, or over several: from `begin` to `end`.

    Extra memory: one copy of the weights, kept from the first `begin` to `release`.

    Args:
        width: So many weights there are; each is named by its column.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._backends: dict[torch.device, backends.Backend] = {}
        self._columns: dict[torch.device, list[int]] = {}

    @torch.no_grad()
    def prepare(self, devices: Iterable[torch.device]) -> None:
        """Compiles and checks, before the first step, what the devices need."""
        for device in devices:
            if device not in self._backends:
                self._backends[device] = backends.backend_for(device)

    @torch.no_grad()
    def begin(
        self,
        weights: Mapping[int, Tensor],
        gradients: Mapping[int, Tensor] | None = None,
        scale: Tensor | None = None,
    ) -> None:
        """Copies the weights and sums over them and their gradients.

        Args:
            weights: By column, those to measure this time, on one device or several; never written to.
            gradients: By column, where they are known; without one a weight has zeros.
            scale: What a loss scaler has multiplied them with.
        """
        self._columns = {}
        for column, weight in weights.items():
            self._columns.setdefault(weight.device, []).append(column)
        for device, columns in self._columns.items():
            self.prepare([device])
            backend = self._backends[device]
            there = {column: gradients[column].detach() for column in columns if gradients and column in gradients}
            backend.begin({column: weights[column].detach() for column in columns}, there, scale)

    @torch.no_grad()
    def read_gradients(self, gradients: Mapping[int, Tensor]) -> None:
        """Sums over gradients that were not known at the beginning: those of a closure."""
        for device, columns in self._columns.items():
            there = {column: gradients[column].detach() for column in columns if column in gradients}
            self._backends[device].read_gradients(there)

    @torch.no_grad()
    def end(
        self,
        weights: Mapping[int, Tensor],
        extra: Sequence[Mapping[int, Tensor]] = (),
        reduce: Reduce | None = None,
        along: Mapping[int, Tensor] | None = None,
    ) -> Reading:
        """Returns the moments over the steps since `begin`, rows as in `Moments`.

        Args:
            weights: As they are now, by column.
            extra: Further rows of 0-d tensors, by column; NaN where there is none, 0 with `reduce`.
            reduce: Adds the table up over processes.
            along: Vectors `v` of the weights' shapes by column; with it the first further row is `<d, v>`.
        """
        parts = []
        for device, columns in self._columns.items():
            now = {column: weights[column].detach() for column in columns}
            vectors = {column: along[column].detach() for column in columns if column in along} if along else {}
            table = self._backends[device].end(now, vectors)
            missing = 0.0 if reduce else float("nan")
            rows = [table if along else table[:5]]
            if along and len(vectors) < len(columns):
                absent = torch.tensor([column not in vectors for column in columns], device="cpu")
                table[5].masked_fill_(to_device(absent, device), missing)
            rows += [_row(cells, columns, missing, device) for cells in extra]
            table = torch.cat(rows) if len(rows) > 1 else rows[0]
            parts.append(to_host(columns, table if reduce is None else reduce(columns, table)))
        return Reading(parts, self._width)

    def release(self) -> None:
        """Lets go of all memory."""
        self._backends.clear()
        self._columns = {}


@torch.no_grad()
def squares(weights: Mapping[int, Tensor], width: int) -> Reading:
    """Returns a reading of one row, `<w, w>`."""
    by_device: dict[torch.device, list[int]] = {}
    for column, weight in weights.items():
        by_device.setdefault(weight.device, []).append(column)
    tables = {
        device: torch.stack([backends.square(weights[column].detach()) for column in columns]).view(1, -1)
        for device, columns in by_device.items()
    }
    return Reading([to_host(columns, tables[device]) for device, columns in by_device.items()], width)


def _row(cells: Mapping[int, Tensor], columns: Sequence[int], missing: float, device: torch.device) -> Tensor:
    """One row of a table, (1, columns) float64, of 0-d tensors."""
    there = {cells[column].dtype for column in columns if column in cells}
    dtype = there.pop() if len(there) == 1 else torch.float64
    dtype = dtype if dtype.is_floating_point else torch.float64
    filler = torch.full((), missing, dtype=dtype, device=device)
    return torch.stack([cells.get(column, filler).to(dtype) for column in columns]).to(torch.float64).view(1, -1)


def to_host(columns: Sequence[int], table: Tensor) -> Part:
    """Starts the table's one asynchronous copy to the host."""
    if table.device.type != "cuda":
        return Part(columns, table.cpu())
    host = torch.empty(table.shape, dtype=table.dtype, device="cpu", pin_memory=True)
    host.copy_(table, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return Part(columns, host, event)
