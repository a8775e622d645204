"""Moves a model to a generic point: values at which nothing is special as it is at initialisation.

At initialisation many weights look invariant that are not: a bias of zero, an identity matrix, running statistics of
zero and one. So every parameter and every floating buffer gets other values near its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smdtrack.invariance.gradient_statistics import as_real

#: Length of the pool of normal numbers from which large matrices get their noise; odd, so that it fits no row length.
_POOL = 1_000_003
#: Matrices with fewer elements get noise of their own.
_SMALL = 4096
#: Relative noise of buffers. Small, because a buffer may be a mask or a table of positions.
_BUFFER_NOISE = 0.05


@dataclass(frozen=True)
class Distance:
    """How far from the model's own values the generic point lies.

    Attributes:
        amplitude: Relative noise of parameters.
        vectors_change_sign: Whether vectors get additive noise of the same amplitude, too.
        buffers: Whether buffers get noise.
    """

    amplitude: float
    vectors_change_sign: bool = True
    buffers: bool = True


#: Distances in the order in which they are tried while the outputs are not finite.
DISTANCES = (
    Distance(0.3),
    Distance(0.1),
    Distance(0.02),
    Distance(0.3, vectors_change_sign=False),
    Distance(0.1, vectors_change_sign=False, buffers=False),
    Distance(0.02, vectors_change_sign=False, buffers=False),
)


class PointSampler:
    """Draws generic points of one model.

    Args:
        parameters: The model's parameters.
        buffers: Its buffers.
        generator: Source of the noise, on the CPU.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], buffers: Sequence[Tensor], generator: torch.Generator):
        self._generator = generator
        self._parameters = [value for value in parameters.values() if _is_movable(value)]
        self._buffers = [buffer for buffer in buffers if _is_movable(buffer) and not _is_table_of_integers(buffer)]
        # Only small tensors and constants are kept: matrices are moved from where they are.
        self._initial: dict[int, Tensor] = {}
        self._initial_buffers = [buffer.clone() for buffer in self._buffers]
        self._pool: Tensor | None = None

    def move(self, distance: Distance) -> None:
        """Gives every parameter and buffer new values."""
        with torch.no_grad():
            for parameter in self._parameters:
                self._move_parameter(parameter, distance)
            for buffer, initial in zip(self._buffers, self._initial_buffers, strict=True):
                if distance.buffers:
                    self._move_buffer(as_real(buffer), as_real(initial))
                elif not torch.equal(buffer, initial):
                    buffer.copy_(initial)

    def _move_parameter(self, parameter: nn.Parameter, distance: Distance) -> None:
        values, key, amplitude = as_real(parameter), id(parameter), distance.amplitude
        is_vector = parameter.numel() == max(parameter.shape, default=1)
        if key not in self._initial:
            first, last = values[(0,) * values.dim()], values[(-1,) * values.dim()]
            if is_vector:
                self._initial[key] = values.clone()
            # Nearly every tensor that is not constant differs in its last element already.
            elif last == first and bool((values == first).all()):
                self._initial[key] = first.clone()
        initial = self._initial.get(key)
        if initial is None:
            self._move_matrix(values, amplitude)
            return
        stretch = 1 + amplitude * (2 * self.rand(values.shape, values) - 1)
        if not is_vector:
            spread = (parameter.shape[0] / parameter.numel()) ** 0.5
        elif parameter.numel() == 1 and bool(initial.abs().max() > 0):
            spread = 0.0  # A temperature or a gain: by its own scale.
        else:
            spread = amplitude if distance.vectors_change_sign or not bool(initial.abs().max() > 0) else 0.0
        finite = torch.isfinite(initial)
        moved = torch.where(finite, initial, 0) * stretch + spread * self.randn(values.shape, values)
        values.copy_(torch.where(finite, moved, initial))

    def _move_matrix(self, values: Tensor, amplitude: float) -> None:
        """Adds noise without changing the typical magnitude, so that matrices do not grow from point to point."""
        norm = torch.linalg.vector_norm(values)
        if not bool(torch.isfinite(norm)):
            finite = torch.isfinite(values)
            values.copy_(
                torch.where(finite, values * (1 + amplitude * (2 * self.rand(values.shape, values) - 1)), values)
            )
            return
        scale = amplitude * float(norm) / values.numel() ** 0.5
        values.mul_((1 - amplitude**2) ** 0.5)
        if values.numel() <= _SMALL or not values.is_contiguous():
            values.add_(self.randn(values.shape, values), alpha=scale)
            return
        if self._pool is None or self._pool.device != values.device or self._pool.dtype != values.dtype:
            self._pool = self.randn((_POOL,), values)
        flat = values.view(-1)
        for start in range(0, len(flat), _POOL):
            part = flat[start : start + _POOL]
            offset = int(torch.randint(_POOL, (), generator=self._generator, device="cpu"))
            head = min(len(part), _POOL - offset)
            part[:head].add_(self._pool[offset : offset + head], alpha=scale)
            part[head:].add_(self._pool[: len(part) - head], alpha=scale)

    def _move_buffer(self, values: Tensor, initial: Tensor) -> None:
        finite = torch.isfinite(initial)
        plain = torch.where(finite, initial, 0)
        moved = plain * (1 + _BUFFER_NOISE * (2 * self.rand(values.shape, values) - 1))
        lowest, highest = float(plain.min()), float(plain.max())
        if lowest < 0 < highest:
            moved += _BUFFER_NOISE * plain.square().mean().sqrt() * self.randn(values.shape, values)
        elif lowest == highest == 0:
            moved += _BUFFER_NOISE * self.randn(values.shape, values)
        values.copy_(torch.where(finite, moved, initial))

    def replace(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gives some parameters other values of the same magnitude and keeps them."""
        with torch.no_grad():
            for parameter in parameters:
                values = as_real(parameter)
                values.copy_(self.other_values("", values))
                if id(parameter) in self._initial and self._initial[id(parameter)].shape == values.shape:
                    self._initial[id(parameter)] = values.clone()

    def rand(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Returns uniform numbers in [0, 1)."""
        return torch.rand(tuple(shape), generator=self._generator, dtype=like.dtype, device="cpu").to(like.device)

    def randn(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Returns normal numbers."""
        return torch.randn(tuple(shape), generator=self._generator, dtype=like.dtype, device="cpu").to(like.device)

    def other_values(self, name: str, value: Tensor) -> Tensor:
        """Returns random values of the same magnitude with other signs; every other value for integers."""
        if not value.is_floating_point():
            return value.flip(0) if value.dim() else value
        rms = value.square().mean().sqrt() if value.numel() else value.sum()
        return -value * (0.4 + 2 * self.rand(value.shape, value)) + rms * self.randn(value.shape, value)


def _is_movable(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and not tensor.is_meta and (tensor.is_floating_point() or tensor.is_complex())


def _is_table_of_integers(tensor: Tensor) -> bool:
    """Whether a tensor holds different whole numbers: a mask, indices or counts that are compared for equality."""
    values = as_real(tensor.detach())
    values = values[torch.isfinite(values)]
    if not len(values) or bool((values == values[0]).all()):
        return False
    return bool((values == values.round()).all())
