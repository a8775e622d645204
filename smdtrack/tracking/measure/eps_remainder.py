"""The live check's part on the device: what eps leaves of each weight's radial derivative, and which norms are frozen.

A weight under batch norm has a gradient orthogonal to it, but for eps (`invariance.residual`). To subtract that part
takes the variance of the batch that gave the gradient, which no hook of an optimizer sees; the running variance before
and after the forward pass gives it. So the running variances, a few thousand numbers, are copied after the step before
a sampled one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from smdtrack.invariance.eps_residual import batch_variance, eps_radial_derivative
from smdtrack.tracking.measure.backends.backend import to_device
from smdtrack.tracking.measure.sharding import is_dtensor, local, shard_like


@dataclass(frozen=True)
class _Before:
    """A device's norms at the moment of the copy; per-channel values in a row, of one norm after the other."""

    variance: Tensor
    scale: Tensor
    passes: Tensor


@dataclass(frozen=True)
class _Settings:
    """What hardly ever changes: uploaded once."""

    key: tuple[tuple[float, float | None, int], ...]
    norm_of_channel: Tensor
    eps: Tensor
    kept_a_pass: Tensor


class EpsRemainder:
    """Measures `<w, g>` as far as eps alone accounts for it, for weights with a batch norm that answers for them.

    Args:
        weights: The tracked weights, by column.
        norms: Per weight the module that makes it invariant; None where none could be named. Only batch norm that
            keeps a running variance and a learned scale for each of the weight's filters can be corrected for.
    """

    def __init__(self, weights: Sequence[Tensor], norms: Sequence[nn.Module | None]) -> None:
        self._norms: list[_BatchNorm | None] = [
            norm if isinstance(norm, _BatchNorm) and _is_correctable(weight, norm) else None
            for weight, norm in zip(weights, norms, strict=True)
        ]
        self._columns: dict[torch.device, list[int]] = {}
        for column, (weight, norm) in enumerate(zip(weights, self._norms, strict=True)):
            if norm is not None:
                self._columns.setdefault(weight.device, []).append(column)
        self._before: dict[torch.device, _Before] = {}
        self._settings: dict[torch.device, _Settings] = {}

    def frozen(self) -> list[bool]:
        """Per weight, whether its batch norm runs in eval mode now: on running statistics the weight's scale counts."""
        return [norm is not None and not norm.training for norm in self._norms]

    @torch.no_grad()
    def note(self) -> None:
        """Copies what the next forward pass changes, and what the step after it does: call it before both."""
        for device, columns in self._columns.items():
            norms = [self._norm(column) for column in columns]
            self._before[device] = _Before(_variances(norms), _concatenated(_scales(norms)), _passes(norms))

    @torch.no_grad()
    def read(self, loss_scale: Tensor | None = None) -> dict[int, Tensor]:
        """Returns by column, as 0-d float64 tensors on their device, the radial derivatives that eps leaves.

        nan where no forward pass went through the norm in training mode since `note`; 0 where its scale has no
        gradient to tell by. Empty before the first `note`.

        Args:
            loss_scale: What a loss scaler has multiplied the gradients with.
        """
        found: dict[int, Tensor] = {}
        for device, columns in self._columns.items():
            norms = [self._norm(column) for column in columns]
            before = self._before.get(device)
            if before is None:
                continue
            settings = self._settings_of(device, norms)
            kept = _kept(settings, before.passes, _passes(norms))[settings.norm_of_channel]
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
        norm = self._norms[column]
        assert norm is not None
        return norm

    def _settings_of(self, device: torch.device, norms: Sequence[_BatchNorm]) -> _Settings:
        key = tuple((norm.eps, norm.momentum, local(norm.weight).numel()) for norm in norms)
        known = self._settings.get(device)
        if known is None or known.key != key:
            index = [place for place, (_, _, channels) in enumerate(key) for _ in range(channels)]
            eps = [eps for eps, _, channels in key for _ in range(channels)]
            # nan stands for a momentum of None: the running variance is then the mean over all batches.
            kept = [float("nan") if momentum is None else 1 - momentum for _, momentum, _ in key]
            known = _Settings(
                key,
                to_device(torch.tensor(index, dtype=torch.int64, device="cpu"), device),
                to_device(torch.tensor(eps, dtype=torch.float64, device="cpu"), device),
                to_device(torch.tensor(kept, dtype=torch.float64, device="cpu"), device),
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


def _passes(norms: Sequence[_BatchNorm]) -> Tensor:
    return torch.stack([norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None])


def _concatenated(vectors: Sequence[Tensor]) -> Tensor:
    return torch.cat([vector.detach() for vector in vectors])


def _kept(settings: _Settings, before: Tensor, after: Tensor) -> Tensor:
    """The share of the old running variance that is left after so many more forward passes."""
    by_momentum = settings.kept_a_pass ** (after - before)
    return torch.where(settings.kept_a_pass.isnan(), before / after, by_momentum)
