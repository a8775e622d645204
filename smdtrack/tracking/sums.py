"""The inner products of a step, in float64: chunk by chunk in the cache on the CPU, by fused kernels elsewhere."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from smdtrack.geometry import dot, flat, flat_pair

#: Elements whose products are summed in fp32, and those sums in float64. BLAS uses further threads above 10000, which
#: would cost more than they bring.
ROW = 8192
#: Rows of a block, which stays in the cache while it is worked on (1 MiB).
ROWS = 32
#: More threads than these find the memory's bandwidth taken.
MOST_THREADS = 4
#: Elements below which it does not pay to wake another thread.
WORTH_THREADS = 200_000
#: Elements of the weights whose change is held at a time where there is no cache to speak of.
BATCH = 8_000_000
#: Where more than this share of a change is radial, fp32 sums leave too little of the rest: it is summed again.
RADIAL_SHARE = 0.5

Row = list[Tensor]


class Bench(Protocol):
    """Keeps the weights from before a step, by column."""

    def begin(
            self, weights: Mapping[int, Tensor], gradients: Mapping[int, Tensor], scale: Tensor | None,
    ) -> None:
        """Copies weights of one device, sums their squares, and reads the gradients that there are."""

    def read_gradients(self, gradients: Mapping[int, Tensor], scale: Tensor | None) -> None:
        """Sums over the gradients of weights given to `begin`."""

    def change_along(self, weights: Mapping[int, Tensor], vectors: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Returns `<d, v>` of weights given to `begin`, 0-d float64; v of the weight's shape."""

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
    """Copies and multiplies a block of each array while it is in the cache: each is read from memory once.

    By numpy, on views of the tensors' memory: a call of it costs a fifth of one of torch's, and there are many.
    """

    def __init__(self) -> None:
        self._copies = _Copies()
        self._before: dict[int, Tensor] = {}
        self._squared: dict[int, float] = {}
        self._gradient: dict[int, tuple[float, float]] = {}

    def begin(
            self, weights: Mapping[int, Tensor], gradients: Mapping[int, Tensor], scale: Tensor | None,
    ) -> None:
        """See `Bench`."""
        self._gradient = {}
        self._before = {column: self._copies.for_(column, weight) for column, weight in weights.items()}
        inverse = 1.0 if scale is None else 1.0 / float(scale)
        later = {}

        def copy(column: int) -> None:
            weight, before, gradient = weights[column], self._before[column], gradients.get(column)
            if gradient is not None and _alike(weight, before, gradient):
                self._squared[column], along, squared = _copied_and_read(weight, before, gradient)
                self._gradient[column] = (along * inverse, squared * inverse * inverse)
                return
            before.copy_(weight)
            self._squared[column] = _along_and_squared(before, before)[1]
            if gradient is not None:
                later[column] = gradient

        _for_each(copy, weights)
        self.read_gradients(later, scale)

    def read_gradients(self, gradients: Mapping[int, Tensor], scale: Tensor | None) -> None:
        """See `Bench`."""
        inverse = 1.0 if scale is None else 1.0 / float(scale)
        for column, gradient in gradients.items():
            along, squared = _along_and_squared(self._before[column], gradient)
            self._gradient[column] = (along * inverse, squared * inverse * inverse)

    def change_along(self, weights: Mapping[int, Tensor], vectors: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """See `Bench`."""
        return _change_along(weights, self._before, vectors)

    def end(self, weights: Mapping[int, Tensor]) -> list[Row]:
        """See `Bench`."""
        table = np.zeros((5, len(weights)))
        places = {column: place for place, column in enumerate(weights)}

        def compare(column: int) -> None:
            moments = _changed(weights[column], self._before[column], self._squared[column])
            table[:, places[column]] = (moments[0], *self._gradient.get(column, (0.0, 0.0)), *moments[1:])

        _for_each(compare, weights)
        return [list(row) for row in torch.from_numpy(table)]


def _for_each(work: Callable[[int], None], weights: Mapping[int, Tensor]) -> None:
    """Works on all columns, on as many threads as torch may use: numpy lets others run while it works on a block."""
    threads = min(torch.get_num_threads(), MOST_THREADS)
    if threads == 1 or sum(weight.numel() for weight in weights.values()) < WORTH_THREADS:
        for column in weights:
            work(column)
        return
    shares: list[list[int]] = [[] for _ in range(threads)]
    loads = [0] * threads
    for column in sorted(weights, key=lambda column: -weights[column].numel()):
        least = loads.index(min(loads))
        shares[least].append(column)
        loads[least] += weights[column].numel()

    @torch.no_grad()
    def work_on(columns: Sequence[int]) -> None:
        for column in columns:
            work(column)

    others = [_pool().submit(work_on, share) for share in shares[1:]]
    try:
        work_on(shares[0])
    finally:
        for other in others:
            other.result()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MOST_THREADS - 1, thread_name_prefix="smdtrack-sums")


# A forked child has the pool but not its threads, and would wait for them for ever.
os.register_at_fork(after_in_child=_pool.cache_clear)


def _alike(*tensors: Tensor) -> bool:
    return all(tensor.dtype == torch.float32 and tensor.stride() == tensors[0].stride() for tensor in tensors)


def _copied_and_read(weight: Tensor, into: Tensor, gradient: Tensor) -> tuple[float, float, float]:
    """Copies the weight and returns `<w, w>`, `<w, g>`, `<g, g>`."""
    (w, w_rest), (copy, copy_rest), (g, g_rest) = (_rows(flat(tensor)) for tensor in (weight, into, gradient))
    np.copyto(copy_rest, w_rest)
    sums = np.empty((3, len(w)), dtype=np.float32)
    for start in range(0, len(w), ROWS):
        stop = start + ROWS
        weights, gradients = w[start:stop], g[start:stop]
        np.copyto(copy[start:stop], weights)
        _row_dots(weights, weights, out=sums[0, start:stop])
        _row_dots(weights, gradients, out=sums[1, start:stop])
        _row_dots(gradients, gradients, out=sums[2, start:stop])
    squared, along, squared_gradient = sums.sum(1, dtype=np.float64).tolist()
    return (squared + float(np.dot(w_rest, w_rest)), along + float(np.dot(w_rest, g_rest)),
            squared_gradient + float(np.dot(g_rest, g_rest)))  # fmt: skip


def _along_and_squared(weight: Tensor, vector: Tensor) -> tuple[float, float]:
    left, right = flat_pair(weight, vector)
    return float(dot(left, right)), float(dot(right, right))


def _changed(weight: Tensor, before: Tensor, weight_squared: float) -> tuple[float, float, float]:
    """Returns `<w, w>`, `<w, d>`, `<d, d>` with `d = weight - before`."""
    now, old = flat_pair(weight, before)
    if weight.dtype != torch.float32 or before.dtype != torch.float32:
        return _changed_exactly(now, old)
    (new, new_rest), (w, w_rest) = _rows(now), _rows(old)
    d_rest = new_rest - w_rest
    sums = np.empty((2, len(w)), dtype=np.float32)
    room = np.empty((min(ROWS, len(w)), ROW), dtype=np.float32)
    for start in range(0, len(w), ROWS):
        stop = start + ROWS
        weights = w[start:stop]
        change = np.subtract(new[start:stop], weights, out=room[: len(weights)])
        _row_dots(weights, change, out=sums[0, start:stop])
        _row_dots(change, change, out=sums[1, start:stop])
    along, squared = sums.sum(1, dtype=np.float64).tolist()
    along, squared = along + float(np.dot(w_rest, d_rest)), squared + float(np.dot(d_rest, d_rest))
    if along * along <= RADIAL_SHARE * weight_squared * squared:
        return weight_squared, along, squared
    return _changed_exactly(now, old)


def _changed_exactly(now: Tensor, old: Tensor) -> tuple[float, float, float]:
    """In float64 throughout, a part at a time: for low precisions, and for changes that are nearly all radial."""
    result = torch.zeros(3, dtype=torch.float64)
    for new, place in zip(torch.split(now, ROWS * ROW), torch.split(old, ROWS * ROW), strict=True):
        wide = place.double()
        change = new.double() - wide
        result += torch.stack([torch.dot(wide, wide), torch.dot(wide, change), torch.dot(change, change)])
    return float(result[0]), float(result[1]), float(result[2])


def _rows(tensor: Tensor) -> tuple[Any, Any]:
    """Views of a flat fp32 tensor's memory: (rows, ROW), and the rest as (elements,)."""
    array = tensor.numpy()
    whole = array.size // ROW * ROW
    return array[:whole].reshape(-1, ROW), array[whole:]


# numpy before 2.0 has no vecdot.
_row_dots: Any = getattr(np, "vecdot", None) or functools.partial(np.einsum, "ij,ij->i")


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

    def begin(
            self, weights: Mapping[int, Tensor], gradients: Mapping[int, Tensor], scale: Tensor | None,
    ) -> None:
        """See `Bench`."""
        self._gradient = {}
        self._before = {column: self._copies.for_(column, weight) for column, weight in weights.items()}
        torch._foreach_copy_(list(self._before.values()), list(weights.values()), non_blocking=True)
        self._squared = _squares(list(weights.values()))
        self.read_gradients(gradients, scale)

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

    def change_along(self, weights: Mapping[int, Tensor], vectors: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """See `Bench`."""
        return _change_along(weights, self._before, vectors)

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


def _change_along(
        weights: Mapping[int, Tensor], before: Mapping[int, Tensor], vectors: Mapping[int, Tensor],
) -> dict[int, Tensor]:
    """By subtraction of two inner products: exact enough for a quotient wanted to a part in a thousand."""
    return {column: dot(weights[column], vector) - dot(before[column], vector) for column, vector in vectors.items()}


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
