"""The sums over one weight in numpy, block by block, so that each array is read from memory once.

A block is small enough to stay in the processor's cache for all sums over it. The blocks are views of the tensors'
memory: there are many calls, and a call of numpy costs a fifth of a call of torch. Products of 8192 elements are summed
in fp32, and those sums are added up in float64.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smdtrack.geometry import dot, flat, flat_pair

#: Number of elements whose products are summed in fp32. Above 10000, BLAS would start threads, which costs more than it
#: saves.
ROW = 8192
#: Number of rows of a block: a block of 1 MiB stays in the cache.
ROWS = 32
#: Largest radial share `<w, d>^2 / (|w|^2 |d|^2)` of a change for which sums of fp32 products are exact enough: the
#: angle depends on the rest of the change, which is a difference. Above it the change is summed again in float64.
MAX_RADIAL_SHARE = 0.5

# numpy before 2.0 has no vecdot.
_dot_rows: Any = getattr(np, "vecdot", None) or functools.partial(np.einsum, "ij,ij->i")


def copy_and_sum(before: Tensor, weight: Tensor, gradient: Tensor | None) -> tuple[float, float, float]:
    """Copies a weight into `before`; returns `<w, w>`, `<w, g>`, `<g, g>`, zero without a gradient."""
    if gradient is None or not _are_fp32(weight, before, gradient):
        before.copy_(weight)
        squared = dot_and_square(before, before)[1]
        return squared, *((0.0, 0.0) if gradient is None else dot_and_square(before, gradient))
    (w, w_rest), (copy, copy_rest), (g, g_rest) = (
        _blocks_and_rest(flat(tensor)) for tensor in (weight, before, gradient)
    )
    np.copyto(copy_rest, w_rest)
    sums = np.empty((3, len(w)), dtype=np.float32)
    for start in range(0, len(w), ROWS):
        stop = start + ROWS
        weights, gradients = w[start:stop], g[start:stop]
        np.copyto(copy[start:stop], weights)
        _dot_rows(weights, weights, out=sums[0, start:stop])
        _dot_rows(weights, gradients, out=sums[1, start:stop])
        _dot_rows(gradients, gradients, out=sums[2, start:stop])
    return _add_rests(sums, (w_rest, w_rest), (w_rest, g_rest), (g_rest, g_rest))


def dot_and_square(weight: Tensor, vector: Tensor) -> tuple[float, float]:
    """Returns `<w, v>` and `<v, v>` of tensors of any layout and type."""
    left, right = flat_pair(weight, vector)
    return float(dot(left, right)), float(dot(right, right))


def sum_change(
    before: Tensor,
    weight: Tensor,
    weight_squared: float,
    vector: Tensor | None,
) -> tuple[float, float, float, float]:
    """Returns `<w, w>`, `<w, d>`, `<d, d>`, `<d, v>` with `d = weight - before`; zero without a vector."""
    given = [weight, before] if vector is None else [weight, before, vector]
    now, old, *others = _flat_in_one_order(given)
    v = others[0] if others else None
    if all(tensor.dtype == torch.float32 for tensor in given):
        moments = weight_squared, *_sum_change_by_blocks(now, old, v)
        if moments[1] * moments[1] <= MAX_RADIAL_SHARE * weight_squared * moments[2]:
            return moments
    return _sum_change_in_float64(now, old, v)


def _flat_in_one_order(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns the elements of each tensor as (d,), in one common order; views of the memory if the strides agree."""
    if all(tensor.stride() == tensors[0].stride() for tensor in tensors):
        return [flat(tensor) for tensor in tensors]
    return [tensor.reshape(-1) for tensor in tensors]


def _sum_change_by_blocks(now: Tensor, old: Tensor, vector: Tensor | None) -> tuple[float, float, float]:
    (new, new_rest), (w, w_rest) = _blocks_and_rest(now), _blocks_and_rest(old)
    v, v_rest = (None, None) if vector is None else _blocks_and_rest(vector)
    d_rest = new_rest - w_rest
    sums = np.zeros((3, len(w)), dtype=np.float32)
    room = np.empty((min(ROWS, len(w)), ROW), dtype=np.float32)
    for start in range(0, len(w), ROWS):
        stop = start + ROWS
        weights = w[start:stop]
        change = np.subtract(new[start:stop], weights, out=room[: len(weights)])
        _dot_rows(weights, change, out=sums[0, start:stop])
        _dot_rows(change, change, out=sums[1, start:stop])
        if v is not None:
            _dot_rows(change, v[start:stop], out=sums[2, start:stop])
    rests = [(w_rest, d_rest), (d_rest, d_rest)] + ([] if v is None else [(d_rest, v_rest)])
    return _add_rests(sums, *rests)


def _sum_change_in_float64(now: Tensor, old: Tensor, vector: Tensor | None) -> tuple[float, float, float, float]:
    """Sums in float64 throughout: for weights in low precision, and for changes that are nearly all radial."""
    result = np.zeros(4)
    for start in range(0, len(now), ROWS * ROW):
        part = slice(start, start + ROWS * ROW)
        wide = old[part].double()
        change = now[part].double() - wide
        others = [wide, change] if vector is None else [wide, change, vector[part].double()]
        result[0] += float(torch.dot(wide, wide))
        result[1 : 1 + len(others)] += [float(torch.dot(change, other)) for other in others]
    return result[0], result[1], result[2], result[3]


def _are_fp32(*tensors: Tensor) -> bool:
    """Returns whether all tensors are fp32 with the same strides."""
    return all(tensor.dtype == torch.float32 and tensor.stride() == tensors[0].stride() for tensor in tensors)


def _blocks_and_rest(tensor: Tensor) -> tuple[Any, Any]:
    """Returns views of a flat fp32 tensor: (rows, ROW), and the elements that are left over, (elements,)."""
    array = tensor.numpy()
    whole = array.size // ROW * ROW
    return array[:whole].reshape(-1, ROW), array[whole:]


def _add_rests(sums: Any, *rests: tuple[Any, Any]) -> tuple[float, float, float]:
    totals = sums.sum(1, dtype=np.float64).tolist()
    for index, (left, right) in enumerate(rests):
        totals[index] += float(np.dot(left, right))
    return totals[0], totals[1], totals[2]
