"""Measures how weights change between two moments, as inner products in float64.

`begin` copies the weights and sums `<w, w>`, `<w, g>` and `<g, g>` over them and their gradients. `end` compares the
weights with their copies and sums `<w, d>` and `<d, d>` of the change d, and `<d, v>` with the momentum buffer v where
one is given. The result is a small table per device, which is copied to the host without waiting for the device.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from smdtrack.geometry import dot
from smdtrack.tracking.measure import backends
from smdtrack.tracking.measure.table import MOMENTS, Reading, Row, start_copy_to_host, to_device

#: Adds up the table of these columns and rows over the processes among which the weights are sharded.
Reduce = Callable[[Sequence[int], Sequence[Row], Tensor], Tensor]


class Probe:
    """Measures the change of weights over one step or over several, from `begin` to `end`.

    Memory: one copy of the weights, kept from the first `begin` to `release`.

    Args:
        width: Number of tracked weights. Each is named by its place among them, its column.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._backends: dict[torch.device, backends.Backend] = {}
        self._columns: dict[torch.device, list[int]] = {}

    @torch.no_grad()
    def prepare(self, devices: Iterable[torch.device]) -> None:
        """Chooses the backend of each device. On CUDA this compiles and waits: call it before the first step."""
        for device in devices:
            if device not in self._backends:
                self._backends[device] = backends.backend_for(device)

    @torch.no_grad()
    def begin(
        self,
        weights: Mapping[int, Tensor],
        gradients: Mapping[int, Tensor] | None = None,
        loss_scale: Tensor | None = None,
    ) -> None:
        """Copies the weights, and sums over them and their gradients.

        Args:
            weights: By column, those to measure this time. They may lie on several devices; they are only read.
            gradients: By column. A weight without a gradient gets zeros.
            loss_scale: The factor by which a loss scaler has multiplied the gradients.
        """
        self._columns = _columns_by_device(weights)
        self.prepare(self._columns)
        for device, columns in self._columns.items():
            on_device = {column: gradients[column].detach() for column in columns if gradients and column in gradients}
            self._backends[device].begin(
                {column: weights[column].detach() for column in columns}, on_device, loss_scale
            )

    @torch.no_grad()
    def read_gradients(self, gradients: Mapping[int, Tensor]) -> None:
        """Sums over gradients that did not exist yet at `begin`: those that a closure computes inside the step."""
        for device, columns in self._columns.items():
            on_device = {column: gradients[column].detach() for column in columns if column in gradients}
            self._backends[device].read_gradients(on_device)

    @torch.no_grad()
    def end(
        self,
        weights: Mapping[int, Tensor],
        further_rows: Mapping[Row, Mapping[int, Tensor]] | None = None,
        reduce: Reduce | None = None,
        momentum: Mapping[int, Tensor] | None = None,
    ) -> Reading:
        """Returns the sums over the change since `begin`.

        Args:
            weights: The weights now, by column.
            further_rows: Further rows of the table, as 0-d tensors by column. A weight without one gets NaN, or 0 with
                `reduce`, where another process may hold its value.
            reduce: Adds the table up over processes.
            momentum: Momentum buffers by column; with them the table has the row `CHANGE_MOMENTUM`.
        """
        further_rows = further_rows or {}
        missing = 0.0 if reduce else float("nan")
        parts = []
        for device, columns in self._columns.items():
            now = {column: weights[column].detach() for column in columns}
            buffers = {c: momentum[c].detach() for c in columns if c in momentum} if momentum else {}
            sums = self._backends[device].end(now, buffers)
            rows = [*MOMENTS, *([Row.CHANGE_MOMENTUM] if momentum else []), *further_rows]
            tables = [sums if momentum else sums[: len(MOMENTS)]]
            if momentum and len(buffers) < len(columns):
                absent = torch.tensor([column not in buffers for column in columns], device="cpu")
                sums[Row.CHANGE_MOMENTUM].masked_fill_(to_device(absent, device), missing)
            tables += [_stacked(cells, columns, missing, device) for cells in further_rows.values()]
            table = torch.cat(tables) if len(tables) > 1 else tables[0]
            parts.append(start_copy_to_host(columns, rows, table if reduce is None else reduce(columns, rows, table)))
        return Reading(parts, self._width)

    def release(self) -> None:
        """Frees the copies."""
        self._backends.clear()
        self._columns = {}


@torch.no_grad()
def read_squared_norms(weights: Mapping[int, Tensor], width: int) -> Reading:
    """Returns a reading with one row, the squared norm `<w, w>` of each weight.

    Args:
        weights: By column.
        width: Number of tracked weights.
    """
    parts = []
    for columns in _columns_by_device(weights).values():
        squares = torch.stack([dot(weights[column].detach(), weights[column].detach()) for column in columns])
        parts.append(start_copy_to_host(columns, [Row.WEIGHT_SQUARED], squares.view(1, -1)))
    return Reading(parts, width)


def _columns_by_device(weights: Mapping[int, Tensor]) -> dict[torch.device, list[int]]:
    columns: dict[torch.device, list[int]] = {}
    for column, weight in weights.items():
        columns.setdefault(weight.device, []).append(column)
    return columns


def _stacked(cells: Mapping[int, Tensor], columns: Sequence[int], missing: float, device: torch.device) -> Tensor:
    """Returns 0-d tensors as one row of a table, (1, columns) float64."""
    dtypes = {cells[column].dtype for column in columns if column in cells}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float64
    dtype = dtype if dtype.is_floating_point else torch.float64
    filler = torch.full((), missing, dtype=dtype, device=device)
    return torch.stack([cells.get(column, filler).to(dtype) for column in columns]).to(torch.float64).view(1, -1)
