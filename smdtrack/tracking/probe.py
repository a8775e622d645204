"""Measures one optimizer step on the device where the weights lie, without waiting for it.

Before the step the weights are copied and `<w, w>`, `<w, g>`, `<g, g>` summed; after it the copy becomes the change of
the weights, whose `<w', d>` and `<d, d>` follow. What leaves is one small float64 table and, on CUDA, an event that
says when it has arrived: the training thread never waits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from smdtrack.geometry import CHUNK, dot, flat_pair
from smdtrack.record.run import Floats


@dataclass(frozen=True)
class Moments:
    """Inner products of one step, float64, (W,) for W weights: weight before `w`, gradient `g`, change `d`."""

    weight_squared: Floats
    weight_gradient: Floats
    gradient_squared: Floats
    weight_change: Floats
    change_squared: Floats


@dataclass(frozen=True)
class Reading:
    """A table on its way to the host.

    Attributes:
        table: (5 or more, W) float64 on the host, valid once `event` has passed.
    """

    table: Tensor
    event: torch.cuda.Event | None = None

    def numpy(self) -> Floats:
        """Waits until the table has arrived (call it off the training thread) and returns it."""
        if self.event is not None:
            self.event.synchronize()
        result: Floats = self.table.numpy().astype(np.float64, copy=False)
        return result

    def moments(self) -> Moments:
        """Returns the table's first five rows by name, after waiting for them."""
        return Moments(*self.numpy()[:5])


class Probe:
    """Measures the change of a set of weights over one step, or over several: from `begin` to `end`.

    Args:
        weights: The tracked parameters, of one device. Their storage is never written.

    Extra memory: one copy of the weights, kept from the first `begin` on.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._weights = list(weights)
        self._before: list[Tensor] = []
        self._weight_squared: list[Tensor] = []
        self._gradients: list[list[Tensor]] = []

    @torch.no_grad()
    def begin(self) -> None:
        """Copies the weights and sums their squares."""
        if not self._before:
            self._before = [torch.empty_like(weight, memory_format=torch.preserve_format) for weight in self._weights]
        self._weight_squared = [_copy(weight, into) for weight, into in zip(self._weights, self._before, strict=True)]
        self._gradients = []

    @torch.no_grad()
    def read_gradients(self, scale: Tensor | None = None) -> None:
        """Sums over the gradients as they are now; `scale` is what a loss scaler has multiplied them with."""
        zero = torch.zeros((), dtype=torch.float64)
        for weight in self._weights:
            gradient = weight.grad
            if gradient is None:
                self._gradients.append([zero.to(weight.device)] * 2)
                continue
            inverse = 1.0 if scale is None else scale.to(weight.device, torch.float64).reciprocal()
            self._gradients.append([dot(weight, gradient) * inverse, dot(gradient, gradient) * inverse * inverse])

    @torch.no_grad()
    def end(self, extra: Sequence[Sequence[Tensor]] = ()) -> Reading:
        """Returns the moments over the steps since `begin`, rows as in `Moments`.

        Args:
            extra: Further rows of 0-d tensors, one a weight.
        """
        changes = [_change(weight, before) for weight, before in zip(self._weights, self._before, strict=True)]
        gradients = self._gradients or [[torch.zeros_like(square)] * 2 for square in self._weight_squared]
        rows = [
            self._weight_squared,
            [pair[0] for pair in gradients],
            [pair[1] for pair in gradients],
            [change[0] for change in changes],
            [change[1] for change in changes],
            *extra,
        ]
        table = torch.stack([torch.stack([cell.to(torch.float64) for cell in row]) for row in rows])
        return to_host(table)


def to_host(table: Tensor) -> Reading:
    """Starts the table's one asynchronous copy to the host."""
    if table.device.type != "cuda":
        return Reading(table.cpu())
    host = torch.empty(table.shape, dtype=table.dtype, pin_memory=True)
    host.copy_(table, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return Reading(host, event)


def _copy(weight: Tensor, into: Tensor) -> Tensor:
    """Copies a weight and returns its squared norm, each chunk while it is in the cache."""
    source, target = flat_pair(weight.detach(), into)
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        target.copy_(source)
        return dot(weight, weight)
    sums = []
    for chunk, place in zip(source.split(CHUNK), target.split(CHUNK), strict=True):  # type: ignore[no-untyped-call]
        place.copy_(chunk)
        sums.append(torch.dot(chunk, chunk))
    return torch.stack(sums).sum(dtype=torch.float64)


def _change(weight: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `<before, d>` and `<d, d>` with `d = weight - before`, chunk by chunk while a chunk is in the cache."""
    now, old = flat_pair(weight.detach(), before)
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        wide = torch.promote_types(weight.dtype, torch.float32)
        change = now.to(wide) - old.to(wide)
        return dot(old.to(wide), change), dot(change, change)
    along, squared = [], []
    for new, place in zip(now.split(CHUNK), old.split(CHUNK), strict=True):  # type: ignore[no-untyped-call]
        change = new - place
        along.append(torch.dot(place, change))
        squared.append(torch.dot(change, change))
    return torch.stack(along).sum(dtype=torch.float64), torch.stack(squared).sum(dtype=torch.float64)
