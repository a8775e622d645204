"""A weight's sums by numpy, a block at a time while it is in the cache: each array is read from memory once.

On views of the tensors' memory, since a call of numpy costs a fifth of one of torch's, and there are many. Products of
8192 elements are summed in fp32, and those sums in float64.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smdtrack.geometry import dot, flat, flat_pair

#: Elements whose products are summed in fp32. BLAS uses further threads above 10000, which would cost more than they
#: bring.
ROW = 8192
#: Rows of a block, which stays in the cache while it is worked on (1 MiB).
ROWS = 32
#: Where more than this share of a change is radial, fp32 sums leave too little of the rest: it is summed again.
RADIAL_SHARE = 0.5

# numpy before 2.0 has no vecdot.
_row_dots: Any = getattr(np, "vecdot", None) or functools.partial(np.einsum, "ij,ij->i")


def copied(before: Tensor, weight: Tensor, gradient: Tensor | None) -> tuple[float, float, float]:
    """Copies a weight into `before`; returns `<w, w>`, `<w, g>`, `<g, g>`, zero without a gradient."""
    if gradient is None or not _fp32(weight, before, gradient):
        before.copy_(weight)
        squared = along_and_squared(before, before)[1]
        return squared, *((0.0, 0.0) if gradient is None else along_and_squared(before, gradient))
    (w, w_rest), (copy, copy_rest), (g, g_rest) = (_rows(flat(tensor)) for tensor in (weight, before, gradient))
    np.copyto(copy_rest, w_rest)
    sums = np.empty((3, len(w)), dtype=np.float32)
    for start in range(0, len(w), ROWS):
        stop = start + ROWS
        weights, gradients = w[start:stop], g[start:stop]
        np.copyto(copy[start:stop], weights)
        _row_dots(weights, weights, out=sums[0, start:stop])
        _row_dots(weights, gradients, out=sums[1, start:stop])
        _row_dots(gradients, gradients, out=sums[2, start:stop])
    return _totals(sums, (w_rest, w_rest), (w_rest, g_rest), (g_rest, g_rest))


def along_and_squared(weight: Tensor, vector: Tensor) -> tuple[float, float]:
    """Returns `<w, v>` and `<v, v>` of any layout and type."""
    left, right = flat_pair(weight, vector)
    return float(dot(left, right)), float(dot(right, right))


def changed(
    before: Tensor,
    weight: Tensor,
    weight_squared: float,
    vector: Tensor | None,
) -> tuple[float, float, float, float]:
    """Returns `<w, w>`, `<w, d>`, `<d, d>`, `<d, v>` with `d = weight - before`; zero without a vector."""
    given = [weight, before] if vector is None else [weight, before, vector]
    now, old, *others = _in_one_order(given)
    v = others[0] if others else None
    if all(tensor.dtype == torch.float32 for tensor in given):
        moments = weight_squared, *_changed_by_rows(now, old, v)
        if moments[1] * moments[1] <= RADIAL_SHARE * weight_squared * moments[2]:
            return moments
    return _changed_exactly(now, old, v)


def _in_one_order(tensors: Sequence[Tensor]) -> list[Tensor]:
    """All elements of each as (d,), as views where their strides agree."""
    if all(tensor.stride() == tensors[0].stride() for tensor in tensors):
        return [flat(tensor) for tensor in tensors]
    return [tensor.reshape(-1) for tensor in tensors]


def _changed_by_rows(now: Tensor, old: Tensor, vector: Tensor | None) -> tuple[float, float, float]:
    (new, new_rest), (w, w_rest) = _rows(now), _rows(old)
    v, v_rest = (None, None) if vector is None else _rows(vector)
    d_rest = new_rest - w_rest
    sums = np.zeros((3, len(w)), dtype=np.float32)
    room = np.empty((min(ROWS, len(w)), ROW), dtype=np.float32)
    for start in range(0, len(w), ROWS):
        stop = start + ROWS
        weights = w[start:stop]
        change = np.subtract(new[start:stop], weights, out=room[: len(weights)])
        _row_dots(weights, change, out=sums[0, start:stop])
        _row_dots(change, change, out=sums[1, start:stop])
        if v is not None:
            _row_dots(change, v[start:stop], out=sums[2, start:stop])
    rests = [(w_rest, d_rest), (d_rest, d_rest)] + ([] if v is None else [(d_rest, v_rest)])
    return _totals(sums, *rests)


def _changed_exactly(now: Tensor, old: Tensor, vector: Tensor | None) -> tuple[float, float, float, float]:
    """In float64 throughout, a part at a time: for low precisions, and for changes that are nearly all radial."""
    result = np.zeros(4)
    for start in range(0, len(now), ROWS * ROW):
        part = slice(start, start + ROWS * ROW)
        wide = old[part].double()
        change = now[part].double() - wide
        others = [wide, change] if vector is None else [wide, change, vector[part].double()]
        result[0] += float(torch.dot(wide, wide))
        result[1 : 1 + len(others)] += [float(torch.dot(change, other)) for other in others]
    return result[0], result[1], result[2], result[3]


def _fp32(*tensors: Tensor) -> bool:
    """Whether these are fp32 in one order of memory."""
    return all(tensor.dtype == torch.float32 and tensor.stride() == tensors[0].stride() for tensor in tensors)


def _rows(tensor: Tensor) -> tuple[Any, Any]:
    """Views of a flat fp32 tensor's memory: (rows, ROW), and the rest as (elements,)."""
    array = tensor.numpy()
    whole = array.size // ROW * ROW
    return array[:whole].reshape(-1, ROW), array[whole:]


def _totals(sums: Any, *rests: tuple[Any, Any]) -> tuple[float, float, float]:
    totals = sums.sum(1, dtype=np.float64).tolist()
    for index, (left, right) in enumerate(rests):
        totals[index] += float(np.dot(left, right))
    return totals[0], totals[1], totals[2]
