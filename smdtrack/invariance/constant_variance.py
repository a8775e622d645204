"""Which normalisation makes a weight invariant: a backward pass that takes the variance for a constant."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smdtrack.invariance.computation_mode import ComputationMode, ComputationSettings


@dataclass
class InputRadialDerivative:
    """Radial derivative at the input of one call of a normalisation.

    Attributes:
        module: Dotted name of the module that made the call.
        channels: `<x_c, dL/dx_c>` per channel, shape (channels,).
    """

    module: str
    channels: Tensor


class _ConstantVarianceBatchNorm(torch.autograd.Function):
    """Batch norm whose backward pass takes the variance for a constant; saves one activation, as torch's own does."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, record: Callable[[Tensor], None]
    ) -> Tensor:
        dims, shape = _over_channels(x)
        mean = x.mean(dims)
        inverse = (x.var(dims, unbiased=False) + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.record, ctx.has_bias = record, bias is not None
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
            ctx.record((x * grad_x).sum(dims))
        total = grad.sum(dims)
        grad_weight = None if weight is None else ((grad * x).sum(dims) - mean * total) * inverse
        return grad_x, grad_weight, total if ctx.has_bias else None, None, None


def _over_channels(x: Tensor) -> tuple[list[int], list[int]]:
    """Returns the dimensions that batch norm averages over, and the shape in which channels broadcast with `x`."""
    return [dim for dim in range(x.dim()) if dim != 1], [-1 if dim == 1 else 1 for dim in range(x.dim())]


class ConstantVariance(ComputationMode):
    """Makes normalisations treat their variance as a constant in the backward pass, but not their mean.

    With a constant variance a normalisation is linear in its input. A weight that it made invariant then has a radial
    derivative, while a bias that its mean removes still has no gradient. Euler's theorem names the normalisation: if
    its input `x` is homogeneous of degree one in a weight `w` (up to a shift that the mean removes), then
    `<w, g> = <x, dL/dx>`, per channel if the weight has one filter per channel (derived here). The right side is
    recorded for every call.

    Args:
        settings: What every pass of the audit has in common.
        every_norm: Treat layer, group, instance and RMS norm and weight standardisation in this way, too.
    """

    def __init__(self, settings: ComputationSettings, every_norm: bool = False):
        super().__init__(settings)
        self.every_norm = every_norm
        self.derivatives: list[InputRadialDerivative] = []
        self._stack: list[tuple[str, nn.Module]] = []
        self._entered_at: list[int] = []

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Follows which module is running, by hooks on the (copied) model."""
        handles = []
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            handles.append(module.register_forward_pre_hook(self._entering(name)))
            handles.append(module.register_forward_hook(self._leaving, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, name: str) -> Callable[[nn.Module, Any], None]:
        def enter(module: nn.Module, _: Any) -> None:
            # Activation checkpointing recomputes its part in the backward pass, outside of every mode.
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
        """Replaces the normalisations by ones with a constant variance; calls everything else as it is."""
        if func is F.batch_norm:
            return self._batch_norm(*args, **kwargs)
        if self.every_norm and func in (F.layer_norm, F.group_norm, F.instance_norm, getattr(F, "rms_norm", None)):
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
        if not training or not (of_activations or self.every_norm):
            return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        name = self._stack[-1][0] if self._stack else ""
        y: Tensor = _ConstantVarianceBatchNorm.apply(x, weight, bias, eps, lambda radial: self._record(name, radial))
        return y

    def _record(self, module: str, channels: Tensor) -> None:
        self.derivatives.append(InputRadialDerivative(module, channels))

    def _other_norm(self, func: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x = self._recorded(x)
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

    def _recorded(self, x: Tensor) -> Tensor:
        """Returns `x` with a hook that records its radial derivative per channel in the backward pass."""
        if not (x.requires_grad and torch.is_grad_enabled()):
            return x
        recorded = x.view_as(x)
        values = x.detach()
        name = self._stack[-1][0] if self._stack else ""

        def record(grad: Tensor) -> None:
            product = values * grad
            dims = [dim for dim in range(product.dim()) if dim != 1]
            self.derivatives.append(
                InputRadialDerivative(name, product.sum(dims) if dims and product.dim() > 1 else product)
            )

        recorded.register_hook(record)  # type: ignore[no-untyped-call]
        return recorded


def _close(one: Tensor, other: Tensor) -> bool:
    scale = float(one.abs().max())
    return scale > 0 and float((one - other).abs().max()) <= 1e-6 * scale


def responsible_module(radial: Tensor, derivatives: list[InputRadialDerivative]) -> str | None:
    """Finds the normalisation whose input has the same radial derivative as a weight.

    Args:
        radial: `<w_c, g_c>` per filter, or one number for a weight that is invariant only as a whole.
        derivatives: What a backward pass under `ConstantVariance` recorded.

    Returns:
        The module's dotted name; None if no single one accounts for the whole radial derivative.
    """
    for derivative in derivatives:
        if derivative.channels.shape == radial.shape and _close(radial, derivative.channels):
            return derivative.module
    filters = len(radial)
    for derivative in derivatives:
        for offset in range(len(derivative.channels) - filters + 1 if filters > 1 else 0):
            part = derivative.channels[offset : offset + filters]
            if abs(float(part[0] - radial[0])) <= 1e-6 * float(radial.abs().max()) and _close(radial, part):
                return derivative.module
    for derivative in derivatives:
        if _close(radial.sum().view(1), derivative.channels.sum().view(1)):
            return derivative.module
    return None
