"""The inner products of a step, in float64: one pass over memory where the device allows it."""

import torch
from torch import Tensor

from smdtrack.geometry import dot
from smdtrack.tracking.sums.bench import Bench
from smdtrack.tracking.sums.cpu import CpuBench
from smdtrack.tracking.sums.foreach import ForeachBench

__all__ = ["Bench", "CpuBench", "ForeachBench", "bench_for", "square"]


def bench_for(device: torch.device) -> Bench:
    """Returns the bench that suits a device."""
    if device.type == "cpu":
        return CpuBench()
    if device.type == "cuda":
        # Not where there is no GPU: Triton takes long to import.
        from smdtrack.tracking.sums.fused import FusedBench, works_on

        if works_on(device):
            return FusedBench()
    return ForeachBench()


def square(weight: Tensor) -> Tensor:
    """Returns `<w, w>` as a 0-d float64 tensor."""
    return dot(weight, weight)
