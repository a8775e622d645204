"""The part of `<w, g>` that is due to the eps of batch norm, for the live check of scale invariance.

The gradient of a weight under batch norm is orthogonal to the weight, except for a part that the eps of the batch norm
leaves (formula in `invariance.eps_residual`). That part depends on the variance of the batch, which no optimizer hook
sees. It follows from the running variance before and after the forward pass. So the running variances, a few thousand
numbers, are copied before the forward pass of a sampled step.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from smdtrack.invariance.eps_residual import batch_variance, eps_radial_derivative
from smdtrack.notices import SmdtrackError
from smdtrack.tracking.measure.sharding import is_dtensor, local, shard_like
from smdtrack.tracking.measure.table import to_device


@dataclass(frozen=True)
class _NormsBeforeForward:
    """The batch norms of one device before the forward pass; channels of all norms one after another, (C,)."""

    variance: Tensor
    scale: Tensor
    batches: Tensor


@dataclass(frozen=True)
class _NormSettings:
    """The settings of the batch norms of one device, on the device; they are uploaded again when they change.

    Attributes:
        key: The settings of which this was made.
        norm_of_channel: (C,) the place of each channel's norm.
        eps: (C,)
        keep: (norms,) the share of the running variance that one forward pass keeps, `1 - momentum`; NaN for a
            momentum of None, where the running variance is the mean over all batches.
    """

    key: tuple[tuple[float, float | None, int], ...]
    norm_of_channel: Tensor
    eps: Tensor
    keep: Tensor


class EpsRemainder:
    """Computes the part of `<w, g>` that is due to eps, for weights whose batch norm is known.

    Args:
        weights: The tracked weights, by column.
        norms: Per weight the module that makes it invariant; None where it is not known. Only a batch norm with a
            running variance and a learned scale can be corrected for.
    """

    def __init__(self, weights: Sequence[Tensor], norms: Sequence[nn.Module | None]) -> None:
        norms_to_correct = [
            norm if isinstance(norm, _BatchNorm) and _is_correctable(weight, norm) else None
            for weight, norm in zip(weights, norms, strict=True)
        ]
        # Weak references: tracking must not keep a training's memory.
        self._norms = [None if norm is None else weakref.ref(norm) for norm in norms_to_correct]
        self._columns: dict[torch.device, list[int]] = {}
        for column, (weight, norm) in enumerate(zip(weights, norms_to_correct, strict=True)):
            if norm is not None:
                self._columns.setdefault(weight.device, []).append(column)
        self._before: dict[torch.device, _NormsBeforeForward] = {}
        self._settings: dict[torch.device, _NormSettings] = {}

    def in_eval_mode(self) -> list[bool]:
        """Returns per weight whether its batch norm is in eval mode: the weight is then not scale-invariant."""
        norms = (reference() if reference is not None else None for reference in self._norms)
        return [norm is not None and not norm.training for norm in norms]

    @torch.no_grad()
    def copy_norms(self) -> None:
        """Copies running variances and scales. Call it before the forward pass of a sampled step."""
        for device, columns in self._columns.items():
            norms = [self._norm(column) for column in columns]
            before = _NormsBeforeForward(_variances(norms), _concatenated(_scales(norms)), _batches(norms))
            self._before[device] = before

    @torch.no_grad()
    def read(self, loss_scale: Tensor | None = None) -> dict[int, Tensor]:
        """Returns by column the part of `<w, g>` that is due to eps, as 0-d float64 tensors on the weight's device.

        The value is NaN if no forward pass went through the batch norm in training mode since `copy_norms`, and 0 if
        the scale of the batch norm has no gradient. The result is empty before the first `copy_norms`.

        Args:
            loss_scale: The factor by which a loss scaler has multiplied the gradients.
        """
        found: dict[int, Tensor] = {}
        for device, columns in self._columns.items():
            norms = [self._norm(column) for column in columns]
            before = self._before.get(device)
            if before is None:
                continue
            settings = self._settings_of(device, norms)
            kept = _kept_share(settings, before.batches, _batches(norms))[settings.norm_of_channel]
            variance = batch_variance(before.variance, _variances(norms), kept)
            gradient = _concatenated([_scale_gradient(norm) for norm in norms])
            radial = eps_radial_derivative(before.scale, gradient, variance, settings.eps)
            sums = torch.zeros(len(columns), dtype=torch.float64, device=device)
            sums.index_add_(0, settings.norm_of_channel, radial)
            if loss_scale is not None:
                sums /= loss_scale.to(torch.float64)
            found |= dict(zip(columns, sums.unbind(), strict=True))
        return found

    def _norm(self, column: int) -> _BatchNorm:
        reference = self._norms[column]
        norm = reference() if reference is not None else None
        if norm is None:
            raise SmdtrackError("the model has been freed")
        return norm

    def _settings_of(self, device: torch.device, norms: Sequence[_BatchNorm]) -> _NormSettings:
        key = tuple((norm.eps, norm.momentum, local(norm.weight).numel()) for norm in norms)
        known = self._settings.get(device)
        if known is None or known.key != key:
            index = [place for place, (_, _, channels) in enumerate(key) for _ in range(channels)]
            eps = [eps for eps, _, channels in key for _ in range(channels)]
            keep = [float("nan") if momentum is None else 1 - momentum for _, momentum, _ in key]
            known = _NormSettings(
                key,
                to_device(torch.tensor(index, dtype=torch.int64, device="cpu"), device),
                to_device(torch.tensor(eps, dtype=torch.float64, device="cpu"), device),
                to_device(torch.tensor(keep, dtype=torch.float64, device="cpu"), device),
            )
            self._settings[device] = known
        return known


def _is_correctable(weight: Tensor, norm: _BatchNorm) -> bool:
    tensors = (norm.weight, norm.running_var, norm.num_batches_tracked)
    return (
        all(tensor is not None for tensor in tensors)
        and norm.running_var is not None
        and norm.running_var.device == weight.device
        and is_dtensor(norm.weight) == is_dtensor(weight)
    )


def _variances(norms: Sequence[_BatchNorm]) -> Tensor:
    return _concatenated([shard_like(norm.running_var, norm.weight) for norm in norms if norm.running_var is not None])


def _scales(norms: Sequence[_BatchNorm]) -> list[Tensor]:
    return [local(norm.weight) for norm in norms]


def _scale_gradient(norm: _BatchNorm) -> Tensor:
    gradient = norm.weight.grad
    return torch.zeros_like(local(norm.weight)) if gradient is None else local(gradient)


def _batches(norms: Sequence[_BatchNorm]) -> Tensor:
    """Returns how many batches each norm has seen in training mode, (norms,)."""
    return torch.stack([norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None])


def _concatenated(vectors: Sequence[Tensor]) -> Tensor:
    return torch.cat([vector.detach() for vector in vectors])


def _kept_share(settings: _NormSettings, before: Tensor, after: Tensor) -> Tensor:
    """Returns the share of the old running variance that the forward passes since then have left, (norms,)."""
    by_momentum = settings.keep ** (after - before)
    return torch.where(settings.keep.isnan(), before / after, by_momentum)
