"""The passes of `passes.c`, where the package was installed on a machine with a C compiler; else there are none.

Nothing is compiled during a training: see `compiling`.
"""

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smdtrack.record.run import Floats
from smdtrack.tracking.measure.backends.compile_passes import library_path
from smdtrack.tracking.measure.backends.threads import together_compiled

#: Elements of a piece: many for a large tensor, and still long against the time that it takes to get it (64 us).
PIECE = 131072


class Job(ctypes.Structure):
    """`struct job` of `passes.c`."""

    _fields_ = (
        ("pieces", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("elements", "weights", "vectors", "before", "sums")),
        ("taken", ctypes.c_int64),
    )


@functools.cache
def library() -> Any:
    """Returns the compiled passes, None where there are none."""
    try:
        found = ctypes.CDLL(str(library_path()))
        for name in ("smdtrack_begin", "smdtrack_end"):
            getattr(found, name).argtypes = [ctypes.c_void_p]
            getattr(found, name).restype = None
    except (OSError, AttributeError):
        return None
    return found


def suits(*tensors: Tensor | None) -> bool:
    """Whether these are fp32 in one order of memory; the first must be dense."""
    first = tensors[0]
    assert first is not None
    stride = first.stride()
    return all(
        tensor is None or (tensor.dtype == torch.float32 and tensor.stride() == stride and tensor.shape == first.shape)
        for tensor in tensors
    )


def copied(before: Sequence[Tensor], weights: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Floats:
    """Copies the weights into `before`; returns (W, 3): `<w, w>`, `<w, g>`, `<g, g>`, zero without a gradient."""
    return _summed(library().smdtrack_begin, before, weights, gradients)


def changed(before: Sequence[Tensor], weights: Sequence[Tensor], vectors: Sequence[Tensor | None]) -> Floats:
    """Returns (W, 3) of the change `d = weights - before`: `<w, d>`, `<d, d>`, `<d, v>`, zero without a vector."""
    return _summed(library().smdtrack_end, before, weights, vectors)


def _summed(
    work: Any,
    before: Sequence[Tensor],
    weights: Sequence[Tensor],
    vectors: Sequence[Tensor | None],
) -> Floats:
    """Cuts the tensors into pieces, which the threads take one after another."""
    elements = np.array([tensor.numel() for tensor in before], dtype=np.int64)
    counts = np.maximum(-(-elements // PIECE), 1)
    first = np.cumsum(counts) - counts
    tensor_of = np.repeat(np.arange(len(before)), counts)
    offsets = PIECE * (np.arange(len(tensor_of)) - first[tensor_of])
    sizes = np.minimum(elements[tensor_of] - offsets, PIECE)
    places = [_pointers(tensors)[tensor_of] for tensors in (weights, vectors, before)]
    places = [np.where(place == 0, 0, place + 4 * offsets.astype(np.uint64)).astype(np.uint64) for place in places]
    sums = np.zeros((len(sizes), 3))
    job = Job(len(sizes), *(array.ctypes.data for array in (sizes, *places, sums)), 0)
    together_compiled(work, job, int(elements.sum()))
    result: Floats = np.add.reduceat(sums, first)
    return result


def _pointers(tensors: Sequence[Tensor | None]) -> Any:
    return np.array([0 if tensor is None else tensor.data_ptr() for tensor in tensors], dtype=np.uint64)
