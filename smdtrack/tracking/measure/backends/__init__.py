"""The inner products of a step, in float64: one pass over memory where the device allows it."""

import torch
from torch import Tensor

from smdtrack.geometry import dot
from smdtrack.tracking.measure.backends.backend import Backend
from smdtrack.tracking.measure.backends.cpu_backend import CpuBackend
from smdtrack.tracking.measure.backends.foreach_backend import ForeachBackend

__all__ = ["Backend", "CpuBackend", "ForeachBackend", "backend_for", "square"]


def backend_for(device: torch.device) -> Backend:
    """Returns the backend that suits a device."""
    if device.type == "cpu":
        return CpuBackend()
    if device.type == "cuda":
        # Not where there is no GPU: Triton takes long to import.
        from smdtrack.tracking.measure.backends.triton_backend import TritonBackend, works_on

        if works_on(device):
            return TritonBackend()
    return ForeachBackend()


def square(weight: Tensor) -> Tensor:
    """Returns `<w, w>` as a 0-d float64 tensor."""
    return dot(weight, weight)
