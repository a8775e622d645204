"""Calls the passes of `passes.c`, if they were compiled when the package was installed (see `compile_passes`)."""

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smdtrack.tracking.measure.backends.compile_passes import library_path
from smdtrack.tracking.measure.backends.threads import run_compiled_on_threads

#: Elements of a piece, the unit of work that a thread takes. Large tensors have many pieces, so that threads share
#: them; summing one piece takes about 64 us, long against the time it takes to fetch the next one.
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
    """Returns the library of the compiled passes, or None if there is none."""
    try:
        found = ctypes.CDLL(str(library_path()))
        for name in ("smdtrack_begin", "smdtrack_end"):
            getattr(found, name).argtypes = [ctypes.c_void_p]
            getattr(found, name).restype = None
    except (OSError, AttributeError):
        return None
    return found


def can_read(*tensors: Tensor | None) -> bool:
    """Returns whether all tensors are fp32 with the same strides. The first one must be dense."""
    first = tensors[0]
    assert first is not None
    stride = first.stride()
    return all(
        tensor is None or (tensor.dtype == torch.float32 and tensor.stride() == stride and tensor.shape == first.shape)
        for tensor in tensors
    )


def copy_and_sum(
    before: Sequence[Tensor], weights: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> npt.NDArray[np.float64]:
    """Copies the weights into `before`; returns (W, 3): `<w, w>`, `<w, g>`, `<g, g>`, zero without a gradient."""
    return _sum(library().smdtrack_begin, before, weights, gradients)


def sum_changes(
    before: Sequence[Tensor], weights: Sequence[Tensor], vectors: Sequence[Tensor | None]
) -> npt.NDArray[np.float64]:
    """Returns (W, 3) of the change `d = weights - before`: `<w, d>`, `<d, d>`, `<d, v>`, zero without a vector."""
    return _sum(library().smdtrack_end, before, weights, vectors)


def _sum(
    work: Any,
    before: Sequence[Tensor],
    weights: Sequence[Tensor],
    vectors: Sequence[Tensor | None],
) -> npt.NDArray[np.float64]:
    """Cuts the tensors into pieces, runs a C function over them on several threads, and adds up the pieces."""
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
    run_compiled_on_threads(work, job, int(elements.sum()))
    result: npt.NDArray[np.float64] = np.add.reduceat(sums, first)
    return result


def _pointers(tensors: Sequence[Tensor | None]) -> Any:
    return np.array([0 if tensor is None else tensor.data_ptr() for tensor in tensors], dtype=np.uint64)
