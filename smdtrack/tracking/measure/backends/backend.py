"""What a backend is: it keeps the weights from before a step and sums over what became of them."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor


class Backend(Protocol):
    """Measures weights of one device from `begin` to `end`, by column."""

    def begin(
        self,
        weights: Mapping[int, Tensor],
        gradients: Mapping[int, Tensor],
        scale: Tensor | None,
    ) -> None:
        """Copies weights, sums their squares, and reads the gradients that there are.

        Args:
            weights: Never written to.
            gradients: Of the weights' shapes; a weight without one has zeros.
            scale: What a loss scaler has multiplied the gradients with.
        """

    def read_gradients(self, gradients: Mapping[int, Tensor]) -> None:
        """Sums over the gradients of weights given to `begin`."""

    def end(self, weights: Mapping[int, Tensor], vectors: Mapping[int, Tensor]) -> Tensor:
        """Returns (6, W) float64 on the device: `<w, w>`, `<w, g>`, `<g, g>`, `<w, d>`, `<d, d>`, `<d, v>`.

        Args:
            weights: As they are now, those of `begin`, in its order.
            vectors: Of the weights' shapes; a weight without one has zero.
        """


class Copies:
    """Copies that are made again only where a weight's shape, type or layout has become another."""

    def __init__(self) -> None:
        self._copies: dict[int, tuple[tuple[object, ...], Tensor]] = {}

    def of(self, weights: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Returns room for a copy of each weight, dense and in the weight's order of memory where that is dense."""
        return {column: self._of(column, weight) for column, weight in weights.items()}

    def _of(self, column: int, weight: Tensor) -> Tensor:
        kind = (weight.shape, weight.stride(), weight.dtype)
        known = self._copies.get(column)
        if known is None or known[0] != kind:
            known = self._copies[column] = (kind, torch.empty_like(weight, memory_format=torch.preserve_format))
        return known[1]


def to_device(table: Tensor, device: torch.device) -> Tensor:
    """Returns a small table of the host on the device, without waiting for it: through pinned memory on CUDA."""
    if device.type != "cuda":
        return table.to(device)
    return table.pin_memory().to(device, non_blocking=True)
