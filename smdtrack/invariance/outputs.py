"""The outputs of a model: which tensors they contain, and how much they change."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from smdtrack.invariance.gradient_statistics import as_real

#: An entry this many times larger than the median is a mask (-1e9) and does not set the scale of its output.
_MASK_RATIO = 1e4
#: An output smaller than this fraction of the largest output is measured against that fraction: it may be rounding.
_SMALLEST_SCALE = 1e-9
_MOST_DEPTH = 6


def tensors_of(output: Any, depth: int = 0) -> Iterator[Tensor]:
    """Yields the floating tensors in what a model returns: tensors, containers, dataclasses and plain objects."""
    if isinstance(output, Tensor):
        if output.is_floating_point() or output.is_complex():
            yield as_real(output.to_dense() if output.layout is not torch.strided else output)
        return
    if depth > _MOST_DEPTH or output is None or isinstance(output, (str, bytes, int, float, type, nn.Module)):
        return
    if isinstance(output, Mapping):
        values: Sequence[Any] = list(output.values())
    elif isinstance(output, (list, tuple, set, frozenset)):
        values = list(output)
    elif hasattr(output, "__dict__"):
        values = list(vars(output).values())
    else:
        slots = getattr(type(output), "__slots__", ())
        values = [getattr(output, slot, None) for slot in ([slots] if isinstance(slots, str) else slots)]
    for value in values:
        yield from tensors_of(value, depth + 1)


@dataclass(frozen=True)
class Baseline:
    """Outputs at one point, against which changed outputs are compared.

    Attributes:
        outputs: The floating outputs, detached.
        scales: Per output its typical largest magnitude: masked entries do not count.
    """

    outputs: tuple[Tensor, ...]
    scales: tuple[float, ...]

    @classmethod
    def of(cls, outputs: Sequence[Tensor]) -> "Baseline":
        """Measures the scale of each output."""
        detached = tuple(output.detach() for output in outputs)
        scales = [_scale(output) for output in detached]
        smallest = _SMALLEST_SCALE * max(scales, default=0.0)
        return cls(detached, tuple(max(scale, smallest) or 1.0 for scale in scales))

    def is_finite(self) -> bool:
        """Whether no entry is nan or +inf and at least one entry is finite; -inf is a mask."""
        if not self.outputs:
            return True
        finite = [torch.isfinite(output) for output in self.outputs]
        masked = [output == -torch.inf for output in self.outputs]
        return all(bool((f | m).all()) for f, m in zip(finite, masked, strict=True)) and any(
            bool(f.any()) for f in finite if f.numel()
        )

    def deviation(self, outputs: Sequence[Tensor]) -> float:
        """Returns the largest change of an entry, relative to its output's scale or to itself if it is larger."""
        if len(outputs) != len(self.outputs):
            return float("inf")
        largest = 0.0
        for here, there, scale in zip(self.outputs, outputs, self.scales, strict=True):
            if here.shape != there.shape:
                return float("inf")
            if not here.numel():
                continue
            change = (there.detach() - here).abs() / here.abs().clamp_min(scale)
            same = (there == here) | (there.isnan() & here.isnan())
            largest = max(largest, float(change.masked_fill(same, 0.0).nan_to_num(nan=torch.inf).max()))
        return largest

    def typical(self, index: int) -> Tensor:
        """Returns which entries of an output are neither masked nor infinite."""
        output = self.outputs[index]
        return torch.isfinite(output) & (output.abs() <= _MASK_RATIO * self.scales[index])


def _scale(output: Tensor) -> float:
    """Returns the largest magnitude among entries that are not masked."""
    magnitudes = output.abs().flatten()
    magnitudes = magnitudes[torch.isfinite(magnitudes) & (magnitudes > 0)]
    if not len(magnitudes):
        return 0.0
    largest = magnitudes.max()
    median = magnitudes.median()
    if bool(largest > _MASK_RATIO * median):
        largest = magnitudes[magnitudes <= _MASK_RATIO * median].max()
    return float(largest)
