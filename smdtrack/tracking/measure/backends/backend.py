"""The interface of the backends: a backend copies weights before a step and sums over what the step changed."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor


class Backend(Protocol):
    """Measures weights that lie on one device, from `begin` to `end`. Weights are named by column."""

    def begin(
        self,
        weights: Mapping[int, Tensor],
        gradients: Mapping[int, Tensor],
        loss_scale: Tensor | None,
    ) -> None:
        """Copies the weights, and sums over them and their gradients.

        Args:
            weights: The weights before the step. They are only read.
            gradients: Gradients, of the weights' shapes. A weight without a gradient gets zeros.
            loss_scale: The factor by which a loss scaler has multiplied the gradients.
        """

    def read_gradients(self, gradients: Mapping[int, Tensor]) -> None:
        """Sums over gradients of weights that were given to `begin` without one."""

    def end(self, weights: Mapping[int, Tensor], vectors: Mapping[int, Tensor]) -> Tensor:
        """Sums over the change d of the weights w since `begin`.

        Args:
            weights: The weights of `begin` as they are now, in the same order.
            vectors: Vectors v of the weights' shapes, such as momentum buffers. A weight without one gets zero.

        Returns:
            (6, W) float64 on the device: `<w, w>`, `<w, g>`, `<g, g>`, `<w, d>`, `<d, d>`, `<d, v>`.
        """


class CopyBuffers:
    """Memory for a copy of each weight, allocated anew only when a weight's shape, type or strides change."""

    def __init__(self) -> None:
        self._buffers: dict[int, tuple[tuple[object, ...], Tensor]] = {}

    def for_weights(self, weights: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Returns a dense buffer for each weight, with the weight's strides if the weight itself is dense."""
        return {column: self._for_weight(column, weight) for column, weight in weights.items()}

    def _for_weight(self, column: int, weight: Tensor) -> Tensor:
        kind = (weight.shape, weight.stride(), weight.dtype)
        known = self._buffers.get(column)
        if known is None or known[0] != kind:
            known = self._buffers[column] = (kind, torch.empty_like(weight, memory_format=torch.preserve_format))
        return known[1]
