"""What one backward pass says about one parameter: norms, radial derivative, and the same per slice."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn

#: Slices are looked at only if the whole tensor's |cos| is at most this multiple of the limit for orthogonality: if
#: every slice is orthogonal, so is the tensor.
_WORTH_SLICING = 1000


@dataclass(frozen=True)
class GradientStatistics:
    """Statistics of one parameter `w` and its gradient `g` after one backward pass.

    Attributes:
        inner: `<w, g>`, the radial derivative of the loss.
        weight_norm: `||w||`.
        grad_norm: `||g||`.
        slice_cosines: By dimension, `max_c |<w_c, g_c>| / max_c (||w_c|| ||g_c||)` over the slices along it. Dimensions
            are tried in order; none is tried after the first whose slices are all orthogonal.
    """

    inner: float
    weight_norm: float
    grad_norm: float
    slice_cosines: Mapping[int, float]

    @property
    def is_finite(self) -> bool:
        """Whether weight and gradient have no infinite or undefined entry."""
        return isfinite(self.inner) and isfinite(self.grad_norm)

    @property
    def energy(self) -> float:
        """`||w|| ||g||`: the largest possible change of the loss per relative change of the weight."""
        return self.weight_norm * self.grad_norm

    @property
    def cosine(self) -> float:
        """`|<w, g>| / (||w|| ||g||)`; 0 if the gradient is zero."""
        return abs(self.inner) / self.energy if self.energy > 0 else 0.0


@dataclass(frozen=True)
class RadialDerivatives:
    """Radial derivatives of one parameter: of the whole tensor and of its slices.

    Attributes:
        whole: `<w, g>`, shape (1,).
        by_slice: `<w_c, g_c>` by dimension, shape (slices,).
        energy: `||w|| ||g||`.
    """

    whole: Tensor
    by_slice: Mapping[int, Tensor]
    energy: float


def as_real(tensor: Tensor) -> Tensor:
    """Returns a complex tensor as real numbers with one more dimension, any other tensor as it is."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def gradient_statistics(parameter: nn.Parameter, orthogonal_cosine: float) -> GradientStatistics:
    """Returns the statistics of a parameter and the gradient that it holds; no gradient counts as zero.

    Args:
        parameter: The parameter.
        orthogonal_cosine: Largest |cos| that counts as orthogonal.
    """
    weight = as_real(parameter.detach())
    if not weight.is_floating_point() or parameter.grad is None or parameter.numel() == 0:
        norm = float(torch.linalg.vector_norm(weight)) if weight.is_floating_point() else 0.0
        return GradientStatistics(0.0, norm, 0.0, {})
    grad = _dense_gradient(parameter)
    inner = float(torch.dot(weight.flatten(), grad.flatten()))
    weight_norm, grad_norm = float(torch.linalg.vector_norm(weight)), float(torch.linalg.vector_norm(grad))
    energy = weight_norm * grad_norm
    orthogonal = energy > 0 and abs(inner) <= _WORTH_SLICING * orthogonal_cosine * energy
    slices = _slice_cosines(weight, grad, parameter.dim(), orthogonal_cosine) if orthogonal else {}
    return GradientStatistics(inner, weight_norm, grad_norm, slices)


def radial_derivatives(parameter: nn.Parameter, dims: Iterable[int]) -> RadialDerivatives | None:
    """Returns a parameter's radial derivatives along the first dimension and some others; None without a gradient."""
    if parameter.grad is None:
        return None
    weight, grad = as_real(parameter.detach()), _dense_gradient(parameter)
    product = weight * grad
    whole = product.sum().view(1)
    by_slice = {dim: _slice_sums(product, dim) if product.dim() else whole for dim in {0, *dims}}
    energy = float(torch.linalg.vector_norm(weight) * torch.linalg.vector_norm(grad))
    return RadialDerivatives(whole, by_slice, energy)


def _slice_cosines(weight: Tensor, grad: Tensor, dims: int, orthogonal_cosine: float) -> dict[int, float]:
    found: dict[int, float] = {}
    for dim in range(dims):
        if weight.shape[dim] == 1 and dim > 0:
            continue
        others = [other for other in range(weight.dim()) if other != dim]
        if not others:
            found[dim] = 1.0
            continue
        norms = torch.linalg.vector_norm(weight, dim=others) * torch.linalg.vector_norm(grad, dim=others)
        largest, scale = float((weight * grad).sum(dim=others).abs().max()), float(norms.max())
        found[dim] = largest / scale if scale > 0 else 1.0
        if found[dim] < orthogonal_cosine:
            break
    return found


def _dense_gradient(parameter: nn.Parameter) -> Tensor:
    grad = parameter.grad
    assert grad is not None
    return as_real(grad.to_dense() if grad.layout is not torch.strided else grad)


def _slice_sums(product: Tensor, dim: int) -> Tensor:
    """Sums over every dimension but one."""
    return product.sum(dim=[other for other in range(product.dim()) if other != dim]) if product.dim() > 1 else product
