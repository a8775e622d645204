"""The CPU's bench: each array is read from memory once, on as many threads as torch may use.

By the compiled passes where there are any, else by numpy.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from smdtrack.tracking.sums import blocks, native
from smdtrack.tracking.sums.bench import Copies

#: More threads than these find the memory's bandwidth taken.
MOST_THREADS = 4
#: Elements below which it does not pay to wake another thread.
WORTH_THREADS = 200_000


class CpuBench:
    """See `Bench`."""

    def __init__(self) -> None:
        self._copies = Copies()
        self._before: dict[int, Tensor] = {}
        self._places: dict[int, int] = {}
        self._table = np.zeros((6, 0))

    def begin(
            self, weights: Mapping[int, Tensor], gradients: Mapping[int, Tensor], scale: Tensor | None,
    ) -> None:
        """See `Bench`."""
        self._before = before = self._copies.of(weights)
        self._places = {column: place for place, column in enumerate(weights)}
        self._table = table = np.zeros((6, len(weights)))

        def work(columns: Sequence[int]) -> None:
            by_native, by_blocks = _shared_out(columns, weights, before, gradients)
            if by_native:
                table[:3, self._at(by_native)] = native.copied(
                    [before[c] for c in by_native], [weights[c] for c in by_native],
                    [gradients.get(c) for c in by_native],
                ).T  # fmt: skip
            for column in by_blocks:
                table[:3, self._places[column]] = blocks.copied(before[column], weights[column], gradients.get(column))

        for_each(work, weights)
        if scale is not None:
            inverse = 1.0 / float(scale)
            table[1] *= inverse
            table[2] *= inverse * inverse

    def read_gradients(self, gradients: Mapping[int, Tensor]) -> None:
        """See `Bench`."""
        for column, gradient in gradients.items():
            self._table[1:3, self._places[column]] = blocks.along_and_squared(self._before[column], gradient)

    def end(self, weights: Mapping[int, Tensor], vectors: Mapping[int, Tensor]) -> Tensor:
        """See `Bench`."""
        table, before = self._table, self._before

        def work(columns: Sequence[int]) -> None:
            by_native, by_blocks = _shared_out(columns, weights, before, vectors)
            if by_native:
                table[3:, self._at(by_native)] = native.changed(
                    [before[c] for c in by_native], [weights[c] for c in by_native],
                    [vectors.get(c) for c in by_native],
                ).T  # fmt: skip
            for column in by_blocks:
                place = self._places[column]
                moments = blocks.changed(before[column], weights[column], table[0, place], vectors.get(column))
                table[0, place], table[3:, place] = moments[0], moments[1:]

        for_each(work, weights)
        return torch.from_numpy(table)

    def _at(self, columns: Sequence[int]) -> list[int]:
        return [self._places[column] for column in columns]


def _shared_out(
        columns: Sequence[int], weights: Mapping[int, Tensor], before: Mapping[int, Tensor],
        vectors: Mapping[int, Tensor],
) -> tuple[list[int], list[int]]:
    """Columns for the compiled passes, and those for numpy."""
    if native.library() is None:
        return [], list(columns)
    suited = {column for column in columns if native.suits(before[column], weights[column], vectors.get(column))}
    return [column for column in columns if column in suited], [column for column in columns if column not in suited]


def for_each(work: Callable[[Sequence[int]], None], weights: Mapping[int, Tensor]) -> None:
    """Works on all columns, in shares of about as many elements on as many threads as torch may use."""
    threads = min(torch.get_num_threads(), MOST_THREADS)
    if threads == 1 or sum(weight.numel() for weight in weights.values()) < WORTH_THREADS:
        work(list(weights))
        return
    shares: list[list[int]] = [[] for _ in range(threads)]
    loads = [0] * threads
    for column in sorted(weights, key=lambda column: -weights[column].numel()):
        least = loads.index(min(loads))
        shares[least].append(column)
        loads[least] += weights[column].numel()
    others = [_pool().submit(torch.no_grad()(work), share) for share in shares[1:]]
    try:
        work(shares[0])
    finally:
        for other in others:
            other.result()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MOST_THREADS - 1, thread_name_prefix="smdtrack-sums")


# A forked child has the pool but not its threads, and would wait for them for ever.
os.register_at_fork(after_in_child=_pool.cache_clear)
