"""The CPU's backend: each array is read from memory once, on as many threads as torch may use.

By the compiled passes where there are any, else by numpy.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from smdtrack.tracking.measure.backends import compiled_passes as native
from smdtrack.tracking.measure.backends import numpy_passes as blocks
from smdtrack.tracking.measure.backends.backend import Copies
from smdtrack.tracking.measure.backends.threads import together


class CpuBackend:
    """See `Backend`."""

    def __init__(self) -> None:
        self._copies = Copies()
        self._before: dict[int, Tensor] = {}
        self._places: dict[int, int] = {}
        self._table = np.zeros((6, 0))

    def begin(
        self,
        weights: Mapping[int, Tensor],
        gradients: Mapping[int, Tensor],
        scale: Tensor | None,
    ) -> None:
        """See `Backend`."""
        self._before = before = self._copies.of(weights)
        self._places = {column: place for place, column in enumerate(weights)}
        self._table = table = np.zeros((6, len(weights)))

        def by_numpy(column: int) -> None:
            table[:3, self._places[column]] = blocks.copied(before[column], weights[column], gradients.get(column))

        compiled, others = _shared_out(weights, before, gradients)
        if compiled:
            table[:3, self._at(compiled)] = native.copied(
                [before[c] for c in compiled], [weights[c] for c in compiled], [gradients.get(c) for c in compiled]
            ).T
        for_each(by_numpy, others, weights)
        if scale is not None:
            inverse = 1.0 / float(scale)
            table[1] *= inverse
            table[2] *= inverse * inverse

    def read_gradients(self, gradients: Mapping[int, Tensor]) -> None:
        """See `Backend`."""
        for column, gradient in gradients.items():
            self._table[1:3, self._places[column]] = blocks.along_and_squared(self._before[column], gradient)

    def end(self, weights: Mapping[int, Tensor], vectors: Mapping[int, Tensor]) -> Tensor:
        """See `Backend`."""
        table, before = self._table, self._before

        def by_numpy(column: int) -> None:
            place = self._places[column]
            moments = blocks.changed(before[column], weights[column], table[0, place], vectors.get(column))
            table[0, place], table[3:, place] = moments[0], moments[1:]

        compiled, others = _shared_out(weights, before, vectors)
        if compiled:
            table[3:, self._at(compiled)] = native.changed(
                [before[c] for c in compiled], [weights[c] for c in compiled], [vectors.get(c) for c in compiled]
            ).T
        for_each(by_numpy, others, weights)
        return torch.from_numpy(table)

    def _at(self, columns: Sequence[int]) -> list[int]:
        return [self._places[column] for column in columns]


def _shared_out(
    weights: Mapping[int, Tensor],
    before: Mapping[int, Tensor],
    vectors: Mapping[int, Tensor],
) -> tuple[list[int], list[int]]:
    """Columns for the compiled passes, and those for numpy."""
    if native.library() is None:
        return [], list(weights)
    suited = {column for column in weights if native.suits(before[column], weights[column], vectors.get(column))}
    return [column for column in weights if column in suited], [column for column in weights if column not in suited]


def for_each(work: Callable[[int], None], columns: Sequence[int], weights: Mapping[int, Tensor]) -> None:
    """Works on some columns, the largest first, on as many threads as are worth while."""
    waiting = sorted(columns, key=lambda column: weights[column].numel())

    @torch.no_grad()
    def take() -> None:
        while True:
            try:
                column = waiting.pop()
            except IndexError:
                return
            work(column)

    together(take, sum(weights[column].numel() for column in columns))
