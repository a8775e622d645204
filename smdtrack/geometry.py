r"""Angles, norms, radial and tangential parts of weights: pure functions of tensors.

Everything here is accurate where the usual `acos(cosine_similarity)` is not: in fp32 that returns 0 for a weight of two
million elements that turned by a hundredth of a radian. Two things do it: the angle comes from the *difference* of the
weights through `atan2`, never from a cosine near 1, and sums run over short fp32 chunks that are added in float64.

With `d = b - a`, `a_par = <a, d> / ||a||` (the radial part of the change):

$$\theta = \operatorname{atan2}\left(\sqrt{\lVert d\rVert^2 - a_{par}^2},\ \lVert a\rVert + a_{par}\right)$$

Source: elementary; derived here: in the plane of `a` and `b`, `b` has the coordinate `||a|| + a_par` along `a` and the
rest of `d` across it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

#: Elements whose products are summed in fp32 before the sum goes to float64: errors near 1e-7, at the speed of BLAS.
CHUNK = 16384
_LOW = (torch.float16, torch.bfloat16)


def flat(tensor: Tensor) -> Tensor:
    """Returns all elements in the order of memory as a (d,) tensor, a view where the storage is dense.

    `view(-1)` raises on channels_last and `flatten()` copies it; sums over all elements do not care for the order.
    """
    if tensor.is_contiguous():
        return tensor.view(-1)
    by_stride = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    reordered = tensor.permute(by_stride)
    return reordered.view(-1) if reordered.is_contiguous() else tensor.reshape(-1)


def flat_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both tensors' elements as (d,) in one common order, as views where their strides agree."""
    if a.shape != b.shape:
        raise ValueError(f"two tensors of one shape are needed, got {tuple(a.shape)} and {tuple(b.shape)}")
    if a.stride() == b.stride():
        return flat(a), flat(b)
    return a.reshape(-1), b.reshape(-1)


def wide(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns tensors of fp16 and bf16 in fp32, converted by fused kernels, and the others as they are."""
    low = [tensor for tensor in tensors if tensor.dtype in _LOW]
    if not low:
        return list(tensors)
    converted = [torch.empty_like(tensor, dtype=torch.float32) for tensor in low]
    torch._foreach_copy_(converted, low)
    widened = iter(converted)
    return [next(widened) if tensor.dtype in _LOW else tensor for tensor in tensors]


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Returns the inner product of two tensors of the same shape and any layout, as a 0-d float64 tensor.

    fp32 and lower precisions are multiplied in fp32 and summed over chunks of 16384 elements whose sums are added in
    float64: within 1e-6 relative of float64 throughout for sums of one sign.

    Raises:
        ValueError: If the shapes differ.
    """
    a, b = flat_pair(a, b)
    if a.dtype == torch.float64 or b.dtype == torch.float64:
        return torch.dot(a.double(), b.double())
    if a.device.type != "cpu":
        return (a.float() * b.float()).sum(dtype=torch.float64)
    if a.numel() <= CHUNK:
        return torch.dot(a.float(), b.float()).double()
    pairs = zip(torch.split(a, CHUNK), torch.split(b, CHUNK), strict=True)
    return torch.stack([torch.dot(x.float(), y.float()) for x, y in pairs]).sum(dtype=torch.float64)


def norm(weight: Tensor, filter_dim: int | None = None) -> Tensor:
    """Returns the Euclidean norm in float64: 0-d, or (filters,) along `filter_dim`."""
    return _dot(weight, weight, filter_dim).sqrt()


def angular_update(before: Tensor, after: Tensor, filter_dim: int | None = None) -> Tensor:
    """Returns the angle between a weight before and after a step, in radian, as float64.

    Args:
        before: The weight before the step, any shape and layout.
        after: The weight after it, of the same shape.
        filter_dim: With it the angle of each filter by itself.

    Returns:
        0-d, or (filters,) along `filter_dim`; nan where the weight before is zero.

    Raises:
        ValueError: If the shapes differ.
    """
    if before.dtype in _LOW:
        before, after = before.float(), after.float()
    change = after - before
    weight_squared, weight_change = _dot(before, before, filter_dim), _dot(before, change, filter_dim)
    length = weight_squared.sqrt()
    across = _without_radial_part(before, change, weight_change / weight_squared, filter_dim)
    return torch.atan2(_dot(across, across, filter_dim).sqrt(), length + weight_change / length)


def angle_from_moments(weight_squared: Tensor, weight_change: Tensor, change_squared: Tensor) -> Tensor:
    """Returns the angle between `a` and `a + d` in radian from `<a, a>`, `<a, d>` and `<d, d>` (any one shape).

    For updates of a training step, where the radial part is not many times the tangential one: with fp32 sums (1e-7)
    the relative error is about `1e-7 (a_par / tangential)^2`. `angular_update` has no such limit, for one more pass.
    """
    length = weight_squared.sqrt()
    radial = weight_change / length
    tangential = (change_squared - radial.square()).clamp_min(0).sqrt()
    return torch.atan2(tangential, length + radial)


def radial_tangential(weight: Tensor, vector: Tensor, filter_dim: int | None = None) -> tuple[Tensor, Tensor]:
    """Splits a vector (a gradient, an update) into its parts along and across a weight.

    Returns:
        The signed radial part `<w, v> / ||w||` and the tangential part's norm, float64, 0-d or (filters,).

    Raises:
        ValueError: If the shapes differ.
    """
    weight_squared, weight_vector = _dot(weight, weight, filter_dim), _dot(weight, vector, filter_dim)
    across = _without_radial_part(weight, vector, weight_vector / weight_squared, filter_dim)
    return weight_vector / weight_squared.sqrt(), _dot(across, across, filter_dim).sqrt()


def _without_radial_part(weight: Tensor, vector: Tensor, share: Tensor, filter_dim: int | None) -> Tensor:
    if filter_dim is not None:
        share = share.view([-1 if dim == filter_dim % weight.ndim else 1 for dim in range(weight.ndim)])
    return vector.double() - share * weight.double()


def _dot(a: Tensor, b: Tensor, filter_dim: int | None) -> Tensor:
    if filter_dim is None:
        return dot(a, b)
    if a.shape != b.shape:
        raise ValueError(f"two tensors of one shape are needed, got {tuple(a.shape)} and {tuple(b.shape)}")
    dtype = torch.promote_types(torch.float32, a.dtype)
    rows_a, rows_b = (x.to(dtype).movedim(filter_dim, 0).flatten(1) for x in (a, b))
    # A filter is short: its products can be summed as they are, and float64 adds them up.
    return (rows_a * rows_b).sum(1, dtype=torch.float64)
