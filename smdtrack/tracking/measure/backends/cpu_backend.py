"""The backend of the CPU: reads each array from memory once, on as many threads as torch may use.

It uses the compiled passes for fp32 weights if they were compiled, and numpy otherwise.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from smdtrack.tracking.measure.backends import compiled_passes, numpy_passes
from smdtrack.tracking.measure.backends.backend import CopyBuffers
from smdtrack.tracking.measure.backends.threads import run_on_threads


class CpuBackend:
    """See `Backend`."""

    def __init__(self) -> None:
        self._buffers = CopyBuffers()
        self._before: dict[int, Tensor] = {}
        self._places: dict[int, int] = {}
        self._table = np.zeros((6, 0))

    def begin(
        self,
        weights: Mapping[int, Tensor],
        gradients: Mapping[int, Tensor],
        loss_scale: Tensor | None,
    ) -> None:
        """See `Backend`."""
        self._before = before = self._buffers.for_weights(weights)
        self._places = {column: place for place, column in enumerate(weights)}
        self._table = table = np.zeros((6, len(weights)))

        def with_numpy(column: int) -> None:
            sums = numpy_passes.copy_and_sum(before[column], weights[column], gradients.get(column))
            table[:3, self._places[column]] = sums

        compiled, others = _split_by_pass(weights, before, gradients)
        if compiled:
            table[:3, self._places_of(compiled)] = compiled_passes.copy_and_sum(
                [before[c] for c in compiled], [weights[c] for c in compiled], [gradients.get(c) for c in compiled]
            ).T
        run_for_columns(with_numpy, others, weights)
        if loss_scale is not None:
            inverse = 1.0 / float(loss_scale)
            table[1] *= inverse
            table[2] *= inverse * inverse

    def read_gradients(self, gradients: Mapping[int, Tensor]) -> None:
        """See `Backend`."""
        for column, gradient in gradients.items():
            self._table[1:3, self._places[column]] = numpy_passes.dot_and_square(self._before[column], gradient)

    def end(self, weights: Mapping[int, Tensor], vectors: Mapping[int, Tensor]) -> Tensor:
        """See `Backend`."""
        table, before = self._table, self._before

        def with_numpy(column: int) -> None:
            place = self._places[column]
            sums = numpy_passes.sum_change(before[column], weights[column], table[0, place], vectors.get(column))
            table[0, place], table[3:, place] = sums[0], sums[1:]

        compiled, others = _split_by_pass(weights, before, vectors)
        if compiled:
            table[3:, self._places_of(compiled)] = compiled_passes.sum_changes(
                [before[c] for c in compiled], [weights[c] for c in compiled], [vectors.get(c) for c in compiled]
            ).T
        run_for_columns(with_numpy, others, weights)
        return torch.from_numpy(table)

    def _places_of(self, columns: Sequence[int]) -> list[int]:
        return [self._places[column] for column in columns]


def _split_by_pass(
    weights: Mapping[int, Tensor],
    before: Mapping[int, Tensor],
    vectors: Mapping[int, Tensor],
) -> tuple[list[int], list[int]]:
    """Returns the columns for the compiled passes, and those for numpy."""
    if compiled_passes.library() is None:
        return [], list(weights)
    compiled = {
        column for column in weights if compiled_passes.can_read(before[column], weights[column], vectors.get(column))
    }
    return [column for column in weights if column in compiled], [c for c in weights if c not in compiled]


def run_for_columns(work: Callable[[int], None], columns: Sequence[int], weights: Mapping[int, Tensor]) -> None:
    """Calls `work` for each column, the largest weight first, on several threads if there is enough to do."""
    waiting = sorted(columns, key=lambda column: weights[column].numel())

    @torch.no_grad()
    def take_columns() -> None:
        while True:
            try:
                column = waiting.pop()
            except IndexError:
                return
            work(column)

    run_on_threads(take_columns, sum(weights[column].numel() for column in columns))
