"""What makes a weight scale-invariant: the rung that freezes the variance of the normalisations."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smdtrack.invariance.isolation import DoublePrecision


@dataclass
class Signature:
    """Radial derivative at the input of one call of a normalisation, by channel: `<x_c, dL/dx_c>`."""

    module: str
    channels: Tensor


class _FrozenBatchNorm(torch.autograd.Function):
    """Batch norm whose backward pass takes the variance for a constant; keeps one activation, as torch's own does."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, keep: Callable[[Tensor], None]
    ) -> Tensor:
        dims, shape = _over_channels(x)
        mean = x.mean(dims)
        inverse = (x.var(dims, unbiased=False) + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.keep, ctx.has_bias = keep, bias is not None
        scale = inverse if weight is None else inverse * weight
        y = (x - mean.view(shape)).mul_(scale.view(shape))
        return y if bias is None else y.add_(bias.view(shape))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, mean, inverse = ctx.saved_tensors
        dims, shape = _over_channels(x)
        scale = inverse if weight is None else inverse * weight
        grad_x = grad * scale.view(shape)
        grad_x -= grad_x.mean(dims, keepdim=True)
        if ctx.needs_input_grad[0]:
            ctx.keep((x * grad_x).sum(dims))
        total = grad.sum(dims)
        grad_weight = None if weight is None else ((grad * x).sum(dims) - mean * total) * inverse
        return grad_x, grad_weight, total if ctx.has_bias else None, None, None


def _over_channels(x: Tensor) -> tuple[list[int], list[int]]:
    """The dimensions that batch norm averages over, and the shape that lines channels up with `x`."""
    return [dim for dim in range(x.dim()) if dim != 1], [-1 if dim == 1 else 1 for dim in range(x.dim())]


class FrozenVariance(DoublePrecision):
    """Lets normalisations act in the backward pass as if their variance were a constant; the mean stays alive.

    With the variance constant a normalisation is linear in its input, and the invariance that it caused is gone from
    the gradient, while a bias that it removes stays removed. Euler's theorem then says who was responsible: if
    its input `x` is homogeneous of degree one in a weight (up to a shift that the mean removes), then
    `<w, g> = <x, dL/dx>`, per channel where the weight has one filter per channel (derived here). The right side is
    kept for every call.

    Args:
        everything: Freeze layer, group, instance and RMS norm and weight standardisation too, not only batch norm.
    """

    def __init__(self, everything: bool = False):
        super().__init__()
        self.everything = everything
        self.signatures: list[Signature] = []
        self._stack: list[tuple[str, nn.Module]] = []
        self._entered_at: list[int] = []

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Keeps track of which module is running, with hooks on the (copied) model."""
        handles = []
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(self._entering(name)))
            handles.append(module.register_forward_hook(self._leaving, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, name: str) -> Callable[[nn.Module, Any], None]:
        def enter(module: nn.Module, _: Any) -> None:
            # What activation checkpointing computes again in the backward pass runs outside of every mode.
            if not torch._C._is_torch_function_mode_enabled():
                self.__enter__()  # type: ignore[no-untyped-call]
                self._entered_at.append(len(self._stack))
            self._stack.append((name, module))

        return enter

    def _leaving(self, *_: Any) -> None:
        if self._stack:
            self._stack.pop()
        if self._entered_at and self._entered_at[-1] == len(self._stack):
            self._entered_at.pop()
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is F.batch_norm:
            return self._batch_norm(*args, **kwargs)
        if self.everything and func in (F.layer_norm, F.group_norm, F.instance_norm, getattr(F, "rms_norm", None)):
            return self._other_norm(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _batch_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        module = self._stack[-1][1] if self._stack else None
        of_activations = isinstance(module, nn.modules.batchnorm._BatchNorm) or running_mean is not None
        if not training or not (of_activations or self.everything):
            return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        name = self._stack[-1][0] if self._stack else ""
        y: Tensor = _FrozenBatchNorm.apply(x, weight, bias, eps, lambda radial: self._keep(name, radial))
        return y

    def _keep(self, module: str, channels: Tensor) -> None:
        self.signatures.append(Signature(module, channels))

    def _other_norm(self, func: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x = self._noted(x)
        y = func(x, *args, **kwargs)
        plain = dict(kwargs)
        positional = list(args)
        names = {F.layer_norm: (1, 2), F.group_norm: (1, 2), F.instance_norm: (2, 3)}.get(func, (1,))
        for index, key in zip(names, ("weight", "bias"), strict=False):
            if len(positional) > index:
                positional[index] = None
            plain.pop(key, None)
        with torch.no_grad():
            normalised = func(x, *positional, **plain)
        weight, bias = self._affine(args, kwargs, names)
        centre = self._mean(func, x, args, kwargs)
        with torch.no_grad():
            inverse = torch.where(x == centre, torch.zeros_like(x), normalised / (x - centre))
        z = (x - centre) * inverse
        if func in (F.group_norm, F.instance_norm):
            shape = [-1 if dim == 1 else 1 for dim in range(x.dim())]
            weight = weight if weight is None else weight.view(shape)
            bias = bias if bias is None else bias.view(shape)
        z = z if weight is None else z * weight
        z = z if bias is None else z + bias
        return z if z.shape == y.shape else y

    @staticmethod
    def _affine(
        args: tuple[Any, ...], kwargs: dict[str, Any], positions: tuple[int, ...]
    ) -> tuple[Tensor | None, Tensor | None]:
        found = [
            args[index] if len(args) > index else kwargs.get(key)
            for index, key in zip(positions, ("weight", "bias"), strict=False)
        ]
        return found[0], found[1] if len(found) > 1 else None

    @staticmethod
    def _mean(func: Callable[..., Tensor], x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        if func is F.layer_norm:
            shape = args[0] if args else kwargs["normalized_shape"]
            return x.mean(tuple(range(x.dim() - len(shape), x.dim())), keepdim=True)
        if func is F.group_norm:
            groups = int(args[0] if args else kwargs["num_groups"])
            grouped = x.reshape(x.shape[0], groups, -1)
            return grouped.mean(-1, keepdim=True).expand_as(grouped).reshape(x.shape)
        if func is F.instance_norm:
            return x.mean(tuple(range(2, x.dim())), keepdim=True)
        return torch.zeros_like(x)

    def _noted(self, x: Tensor) -> Tensor:
        """Keeps the radial derivative at `x`, by channel, once the backward pass knows it."""
        if not (x.requires_grad and torch.is_grad_enabled()):
            return x
        noted = x.view_as(x)
        values = x.detach()
        name = self._stack[-1][0] if self._stack else ""

        def note(grad: Tensor) -> None:
            product = values * grad
            dims = [dim for dim in range(product.dim()) if dim != 1]
            self.signatures.append(Signature(name, product.sum(dims) if dims and product.dim() > 1 else product))

        noted.register_hook(note)  # type: ignore[no-untyped-call]
        return noted


def _close(one: Tensor, other: Tensor) -> bool:
    scale = float(one.abs().max())
    return scale > 0 and float((one - other).abs().max()) <= 1e-6 * scale


def responsible(radial: Tensor, signatures: list[Signature]) -> str | None:
    """Names the normalisation whose signature equals a weight's radial derivative.

    Args:
        radial: `<w_c, g_c>` per filter, or one number for a weight that is invariant only as a whole.
        signatures: What a backward pass under `FrozenVariance` kept.

    Returns:
        The module's dotted name, or None where no single one accounts for the whole radial derivative.
    """
    for signature in signatures:
        if signature.channels.shape == radial.shape and _close(radial, signature.channels):
            return signature.module
    filters = len(radial)
    for signature in signatures:
        for offset in range(len(signature.channels) - filters + 1 if filters > 1 else 0):
            part = signature.channels[offset : offset + filters]
            if abs(float(part[0] - radial[0])) <= 1e-6 * float(radial.abs().max()) and _close(radial, part):
                return signature.module
    for signature in signatures:
        if _close(radial.sum().view(1), signature.channels.sum().view(1)):
            return signature.module
    return None
