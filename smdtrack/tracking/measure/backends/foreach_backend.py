"""The backend of any other device: torch's fused kernels (`torch._foreach_*`), each for many tensors at a time.

The fused kernels compute norms in float64, but no inner products. Those follow from norms:

* `<w, d> = (||w + d||^2 - ||w||^2 - ||d||^2) / 2`. In float64 the subtraction loses nothing that matters.
* For any other pair, with the elementwise products p: `sum(p) = 2 sum(max(p, 0)) - sum |p|`, two 1-norms.

The host does not wait for the device.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from smdtrack.geometry import wide
from smdtrack.tracking.measure.backends.backend import CopyBuffers

#: Number of elements of products and changes that are held in memory at a time.
BATCH = 4_000_000


class ForeachBackend:
    """See `Backend`."""

    def __init__(self) -> None:
        self._buffers = CopyBuffers()
        self._before: dict[int, Tensor] = {}
        self._table = torch.zeros(6, 0, device="cpu")

    def begin(
        self,
        weights: Mapping[int, Tensor],
        gradients: Mapping[int, Tensor],
        loss_scale: Tensor | None,
    ) -> None:
        """See `Backend`."""
        self._before = self._buffers.for_weights(weights)
        torch._foreach_copy_(list(self._before.values()), list(weights.values()), non_blocking=True)
        squared = _squares(list(self._before.values()))
        self._table = torch.zeros(6, len(weights), dtype=torch.float64, device=squared.device)
        self._table[0] = squared
        self.read_gradients(gradients)
        if loss_scale is not None:
            inverse = loss_scale.to(torch.float64).reciprocal()
            self._table[1] *= inverse
            self._table[2] *= inverse * inverse

    def read_gradients(self, gradients: Mapping[int, Tensor]) -> None:
        """See `Backend`."""
        for places, columns in self._batches(gradients):
            given = [gradients[column] for column in columns]
            products = torch._foreach_mul(wide([self._before[column] for column in columns]), wide(given))
            self._write_row(1, places, _sums_in_place(products))
            self._write_row(2, places, _squares(given))

    def end(self, weights: Mapping[int, Tensor], vectors: Mapping[int, Tensor]) -> Tensor:
        """See `Backend`."""
        after = _squares(list(weights.values()))
        for places, columns in self._batches(weights):
            new, old = wide([weights[c] for c in columns]), wide([self._before[c] for c in columns])
            changes = torch._foreach_sub(new, old)
            self._write_row(4, places, _squares(changes))
            given = [index for index, column in enumerate(columns) if column in vectors]
            if given:
                products = [changes[index] for index in given]
                torch._foreach_mul_(products, wide([vectors[columns[index]] for index in given]))
                self._write_row(5, [places[index] for index in given], _sums_in_place(products))
        self._table[3] = (after - self._table[0] - self._table[4]) / 2
        return self._table

    def _write_row(self, row: int, places: Sequence[int], values: Tensor) -> None:
        """Writes values into a row of the table, by slices: an index list would have to be copied to the device."""
        start = 0
        for stop in range(1, len(places) + 1):
            if stop == len(places) or places[stop] != places[stop - 1] + 1:
                self._table[row, places[start] : places[stop - 1] + 1] = values[start:stop]
                start = stop

    def _batches(self, tensors: Mapping[int, Tensor]) -> list[tuple[list[int], list[int]]]:
        """Returns places in the table and columns of the given tensors, in batches of `BATCH` elements."""
        batches: list[tuple[list[int], list[int]]] = []
        room = 0
        for place, column in enumerate(self._before):
            if column not in tensors:
                continue
            room -= tensors[column].numel()
            if room < 0 or not batches:
                batches.append(([], []))
                room = BATCH - tensors[column].numel()
            batches[-1][0].append(place)
            batches[-1][1].append(column)
        return batches


def _squares(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(list(tensors), 2, dtype=torch.float64)).square()


def _sums_in_place(products: Sequence[Tensor]) -> Tensor:
    """Returns the sum of each tensor, and overwrites it: sum(p) = 2 sum(max(p, 0)) - sum |p|."""
    absolute = torch.stack(torch._foreach_norm(list(products), 1, dtype=torch.float64))
    torch._foreach_clamp_min_(list(products), 0)
    return 2 * torch.stack(torch._foreach_norm(list(products), 1, dtype=torch.float64)) - absolute
