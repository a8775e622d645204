"""Sums over weights, gradients and changes, one backend per kind of device.

`backend_for(device)` chooses the backend; nobody else needs to know which one works. All give the same numbers, to
about 1e-7 relative, and all accumulate in float64.

* CPU, `cpu_backend`: passes compiled from `passes.c`, which read each array from memory once. They are compiled when
  the package is installed and a C compiler is found. A sampled step then costs about what copying the tracked weights
  once and reading three arrays of their size cost.
* CPU without the compiled passes, and for other types than fp32, also `cpu_backend`: the same passes in numpy, block by
  block.
* CUDA, `triton_backend`: two kernels before the step and two after it, for all weights together. They read each array
  once, and the host does not wait.
* Other devices, and CUDA where Triton does not compile or gives wrong sums, `foreach_backend`: torch's own fused
  kernels. They read each array several times and hold a batch of temporaries.
"""

import torch

from smdtrack.tracking.measure.backends.backend import Backend
from smdtrack.tracking.measure.backends.cpu_backend import CpuBackend
from smdtrack.tracking.measure.backends.foreach_backend import ForeachBackend

__all__ = ["Backend", "CpuBackend", "ForeachBackend", "backend_for"]


def backend_for(device: torch.device) -> Backend:
    """Returns a new backend for a device. The first call for a CUDA device compiles and checks kernels, and waits."""
    if device.type == "cpu":
        return CpuBackend()
    if device.type == "cuda":
        # Imported only where a GPU is used: importing Triton takes long.
        from smdtrack.tracking.measure.backends.triton_backend import TritonBackend, works_on

        if works_on(device):
            return TritonBackend()
    return ForeachBackend()
