"""Recognises that a training has started again: its weights were drawn anew, or set back to their first values."""

from collections.abc import Sequence

import torch
from torch import Tensor

from smdtrack.tracking.measure.sharding import is_dtensor

#: Weights and elements of each that are compared. Together they cost one small copy per sampled step.
_MOST_WEIGHTS = 8
_ELEMENTS = 64
#: Independently drawn weights have a mean |cos| near 0.1 on 64 elements. Weights that a training continues from, such
#: as its best checkpoint, have more than .5.
_SMALLEST_COSINE = 0.5


class WeightFingerprint:
    """Keeps a few elements of the largest weights: of the first tracked step and of the latest sampled one."""

    def __init__(self) -> None:
        self._first: list[Tensor] = []
        self._latest: list[Tensor] = []

    @torch.no_grad()
    def take(self, weights: Sequence[Tensor]) -> None:
        """Takes the weights after a sampled step, or before the first one. Does not wait for a device."""
        self._latest = _elements(weights)
        if not self._first:
            self._first = self._latest

    @torch.no_grad()
    def started_again(self, weights: Sequence[Tensor]) -> bool:
        """Returns whether the weights do not continue from the latest ones. Waits for a device."""
        now = _elements(weights)
        if not self._latest or len(now) != len(self._latest):
            return False
        if all(map(torch.equal, now, self._first)):
            return not all(map(torch.equal, self._latest, self._first))
        cosines = [
            float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))
            for a, b in zip(now, self._latest, strict=True)
        ]
        return sum(map(abs, cosines)) / len(cosines) < _SMALLEST_COSINE


def _elements(weights: Sequence[Tensor]) -> list[Tensor]:
    """Returns evenly spaced elements of the largest weights, in the order in which they lie in memory."""
    whole = [weight.detach() for weight in weights if not is_dtensor(weight) and weight.numel() >= _ELEMENTS]
    largest = sorted(whole, key=lambda weight: -weight.numel())[:_MOST_WEIGHTS]
    return [
        torch.as_strided(weight, (_ELEMENTS,), (weight.numel() // _ELEMENTS,), weight.storage_offset()).clone()
        for weight in largest
    ]
