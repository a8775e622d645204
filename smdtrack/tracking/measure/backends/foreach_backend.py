"""The backend of any other device: a handful of torch's fused kernels for all tensors, and no wait for the device.

Fused kernels give norms, in float64, of all tensors at a time. Inner products follow from those: `<w, d>` is
`(||w + d||^2 - ||w||^2 - ||d||^2) / 2`, in float64 without loss, and for any other pair the sum of the products `p` is
`2 sum(max(p, 0)) - sum |p|`, two norms of another kind.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from smdtrack.geometry import wide
from smdtrack.tracking.measure.backends.backend import Copies

#: Elements of products and changes that are held at a time.
BATCH = 4_000_000


class ForeachBackend:
    """See `Backend`."""

    def __init__(self) -> None:
        self._copies = Copies()
        self._before: dict[int, Tensor] = {}
        self._table = torch.zeros(6, 0, device="cpu")

    def begin(
        self,
        weights: Mapping[int, Tensor],
        gradients: Mapping[int, Tensor],
        scale: Tensor | None,
    ) -> None:
        """See `Backend`."""
        self._before = self._copies.of(weights)
        torch._foreach_copy_(list(self._before.values()), list(weights.values()), non_blocking=True)
        squared = _squares(list(self._before.values()))
        self._table = torch.zeros(6, len(weights), dtype=torch.float64, device=squared.device)
        self._table[0] = squared
        self.read_gradients(gradients)
        if scale is not None:
            inverse = scale.to(torch.float64).reciprocal()
            self._table[1] *= inverse
            self._table[2] *= inverse * inverse

    def read_gradients(self, gradients: Mapping[int, Tensor]) -> None:
        """See `Backend`."""
        for places, columns in self._batches(gradients):
            given = [gradients[column] for column in columns]
            products = torch._foreach_mul(wide([self._before[column] for column in columns]), wide(given))
            self._put(1, places, _totals(products))
            self._put(2, places, _squares(given))

    def end(self, weights: Mapping[int, Tensor], vectors: Mapping[int, Tensor]) -> Tensor:
        """See `Backend`."""
        after = _squares(list(weights.values()))
        for places, columns in self._batches(weights):
            new, old = wide([weights[c] for c in columns]), wide([self._before[c] for c in columns])
            changes = torch._foreach_sub(new, old)
            self._put(4, places, _squares(changes))
            along = [index for index, column in enumerate(columns) if column in vectors]
            if along:
                products = [changes[index] for index in along]
                torch._foreach_mul_(products, wide([vectors[columns[index]] for index in along]))
                self._put(5, [places[index] for index in along], _totals(products))
        self._table[3] = (after - self._table[0] - self._table[4]) / 2
        return self._table

    def _put(self, row: int, places: Sequence[int], values: Tensor) -> None:
        """Writes values of the table, by slices: an index of places would have to be sent to the device."""
        start = 0
        for stop in range(1, len(places) + 1):
            if stop == len(places) or places[stop] != places[stop - 1] + 1:
                self._table[row, places[start] : places[stop - 1] + 1] = values[start:stop]
                start = stop

    def _batches(self, tensors: Mapping[int, Tensor]) -> list[tuple[list[int], list[int]]]:
        """Places in the table and columns of the given tensors, in batches of what is held at a time."""
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


def _totals(products: Sequence[Tensor]) -> Tensor:
    """Returns the sum of each tensor, which is lost: fused kernels know only norms, of which these take two."""
    absolute = torch.stack(torch._foreach_norm(list(products), 1, dtype=torch.float64))
    torch._foreach_clamp_min_(list(products), 0)
    return 2 * torch.stack(torch._foreach_norm(list(products), 1, dtype=torch.float64)) - absolute
