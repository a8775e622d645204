"""The inner products of a step, in float64: chunk by chunk in the cache on the CPU, by fused kernels elsewhere."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from smdtrack.geometry import dot, flat_pair

#: Elements that one pass keeps in a core's cache; their products are summed in fp32, and those sums in float64.
CHUNK = 32768
#: Elements of the weights whose change is held at a time where there is no cache to speak of.
BATCH = 8_000_000
#: Where more than this share of a change is radial, fp32 sums leave too little of the rest: it is summed again.
RADIAL_SHARE = 0.5

Row = list[Tensor]


class Bench(Protocol):
    """Keeps the weights from before a step, by column."""

    def begin(self, weights: Mapping[int, Tensor]) -> None:
        """Copies weights of one device and sums their squares."""

    def read_gradients(self, gradients: Mapping[int, Tensor], scale: Tensor | None) -> None:
        """Sums over the gradients of weights given to `begin`."""

    def end(self, weights: Mapping[int, Tensor]) -> list[Row]:
        """Returns `<w, w>`, `<w, g>`, `<g, g>`, `<w, d>`, `<d, d>`: 0-d float64 tensors in the order of `begin`."""


def bench_for(device: torch.device) -> Bench:
    """Returns the bench that suits a device."""
    return CpuBench() if device.type == "cpu" else KernelBench()


class _Copies:
    """Copies that are made again only where a weight's shape, type or layout has become another."""

    def __init__(self) -> None:
        self._copies: dict[int, tuple[tuple[object, ...], Tensor]] = {}

    def for_(self, column: int, weight: Tensor) -> Tensor:
        kind = (weight.shape, weight.stride(), weight.dtype)
        known = self._copies.get(column)
        if known is None or known[0] != kind:
            known = self._copies[column] = (kind, torch.empty_like(weight, memory_format=torch.preserve_format))
        return known[1]


class CpuBench:
    """Copies and multiplies each chunk while it is in the cache: each array is read from memory once."""

    def __init__(self) -> None:
        self._copies = _Copies()
        self._before: dict[int, Tensor] = {}
        self._squared: dict[int, Tensor] = {}
        self._gradient: dict[int, tuple[Tensor, Tensor]] = {}

    def begin(self, weights: Mapping[int, Tensor]) -> None:
        """See `Bench`."""
        self._gradient = {}
        self._before = {column: self._copies.for_(column, weight) for column, weight in weights.items()}
        self._squared = {column: _copied(weight, self._before[column]) for column, weight in weights.items()}

    def read_gradients(self, gradients: Mapping[int, Tensor], scale: Tensor | None) -> None:
        """See `Bench`."""
        inverse = 1.0 if scale is None else 1.0 / float(scale)
        for column, gradient in gradients.items():
            along, squared = _along_and_squared(self._before[column], gradient)
            self._gradient[column] = (along * inverse, squared * inverse * inverse)

    def end(self, weights: Mapping[int, Tensor]) -> list[Row]:
        """See `Bench`."""
        zero = torch.zeros((), dtype=torch.float64)
        rows: list[Row] = [[], [], [], [], []]
        for column, weight in weights.items():
            along, squared = self._gradient.get(column, (zero, zero))
            moments = _changed(weight, self._before[column], self._squared[column])
            for row, cell in zip(rows, (moments[0], along, squared, *moments[1:]), strict=True):
                row.append(cell)
        return rows


def _copied(weight: Tensor, into: Tensor) -> Tensor:
    source, target = flat_pair(weight, into)
    if weight.dtype != torch.float32 or source.numel() <= CHUNK:
        target.copy_(source)
        return dot(source, source)
    sums = []
    for chunk, place in zip(torch.split(source, CHUNK), torch.split(target, CHUNK), strict=True):
        place.copy_(chunk)
        sums.append(torch.dot(chunk, chunk))
    return torch.stack(sums).sum(dtype=torch.float64)


def _along_and_squared(weight: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
    left, right = flat_pair(weight, vector)
    if left.dtype != torch.float32 or right.dtype != torch.float32 or left.numel() <= CHUNK:
        return dot(left, right), dot(right, right)
    along, squared = [], []
    for one, other in zip(torch.split(left, CHUNK), torch.split(right, CHUNK), strict=True):
        along.append(torch.dot(one, other))
        squared.append(torch.dot(other, other))
    return torch.stack(along).sum(dtype=torch.float64), torch.stack(squared).sum(dtype=torch.float64)


def _changed(weight: Tensor, before: Tensor, weight_squared: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns `<w, w>`, `<w, d>`, `<d, d>` with `d = weight - before`."""
    now, old = flat_pair(weight, before)
    if weight.dtype == torch.float32:
        along, squared = [], []
        room = torch.empty(min(CHUNK, now.numel()), dtype=torch.float32)
        for new, place in zip(torch.split(now, CHUNK), torch.split(old, CHUNK), strict=True):
            change = torch.sub(new, place, out=room[: new.numel()])
            along.append(torch.dot(place, change))
            squared.append(torch.dot(change, change))
        weight_change = torch.stack(along).sum(dtype=torch.float64)
        change_squared = torch.stack(squared).sum(dtype=torch.float64)
        total = float(weight_squared * change_squared)
        if total == 0 or float(weight_change) ** 2 <= RADIAL_SHARE * total:
            return weight_squared, weight_change, change_squared
    return _changed_exactly(now, old)


def _changed_exactly(now: Tensor, old: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In float64 throughout, a chunk at a time: for low precisions, and for changes that are nearly all radial."""
    result = torch.zeros(3, dtype=torch.float64)
    for new, place in zip(torch.split(now, CHUNK), torch.split(old, CHUNK), strict=True):
        wide = place.double()
        change = new.double() - wide
        result += torch.stack([torch.dot(wide, wide), torch.dot(wide, change), torch.dot(change, change)])
    return result[0], result[1], result[2]


class KernelBench:
    """Few kernels for many tensors, sums in float64, no wait for the device.

    `<w, d>` follows from three norms, `(||w + d||^2 - ||w||^2 - ||d||^2) / 2`: norms come for all tensors in a few
    fused kernels, and in float64 nothing is lost by the subtraction.
    """

    def __init__(self) -> None:
        self._copies = _Copies()
        self._before: dict[int, Tensor] = {}
        self._squared: Row = []
        self._gradient: dict[int, tuple[Tensor, Tensor]] = {}

    def begin(self, weights: Mapping[int, Tensor]) -> None:
        """See `Bench`."""
        self._gradient = {}
        self._before = {column: self._copies.for_(column, weight) for column, weight in weights.items()}
        torch._foreach_copy_(list(self._before.values()), list(weights.values()), non_blocking=True)
        self._squared = _squares(list(weights.values()))

    def read_gradients(self, gradients: Mapping[int, Tensor], scale: Tensor | None) -> None:
        """See `Bench`."""
        if not gradients:
            return
        columns = list(gradients)
        inverse = None if scale is None else scale.to(torch.float64).reciprocal()
        squared = _squares([gradients[column] for column in columns])
        for batch in _batches(columns, gradients):
            products = torch._foreach_mul(
                _wide([self._before[c] for c in batch]), _wide([gradients[c] for c in batch])
            )
            for column, product in zip(batch, products, strict=True):
                self._gradient[column] = (product.sum(dtype=torch.float64), squared[columns.index(column)])
        if inverse is not None:
            self._gradient = {c: (a * inverse, s * inverse * inverse) for c, (a, s) in self._gradient.items()}

    def end(self, weights: Mapping[int, Tensor]) -> list[Row]:
        """See `Bench`."""
        columns = list(weights)
        after = _squares(list(weights.values()))
        change_squared: dict[int, Tensor] = {}
        for batch in _batches(columns, weights):
            changes = torch._foreach_sub(_wide([weights[c] for c in batch]), _wide([self._before[c] for c in batch]))
            change_squared |= dict(zip(batch, _squares(list(changes)), strict=True))
        zero = torch.zeros((), dtype=torch.float64, device=self._squared[0].device)
        gradient = [self._gradient.get(column, (zero, zero)) for column in columns]
        squared = [change_squared[column] for column in columns]
        along = [(new - old - d) / 2 for new, old, d in zip(after, self._squared, squared, strict=True)]
        return [self._squared, [pair[0] for pair in gradient], [pair[1] for pair in gradient], along, squared]


def _squares(tensors: Sequence[Tensor]) -> Row:
    norms = torch._foreach_norm(list(tensors), 2, dtype=torch.float64)
    return [norm.square() for norm in norms]


def _wide(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor for tensor in tensors]


def _batches(columns: Sequence[int], tensors: Mapping[int, Tensor]) -> list[list[int]]:
    """Columns in batches of tensors that are held at a time."""
    batches: list[list[int]] = [[]]
    room = BATCH
    for column in columns:
        if batches[-1] and tensors[column].numel() > room:
            batches.append([])
            room = BATCH
        batches[-1].append(column)
        room -= tensors[column].numel()
    return batches


def square(weight: Tensor) -> Tensor:
    """Returns `<w, w>` as a 0-d float64 tensor."""
    return dot(weight, weight)
