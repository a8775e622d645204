"""The test bench: a copied model at a generic point, run forward and backward as often as the ladder needs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from smdtrack.invariance.inputs import Feed, reseed
from smdtrack.invariance.isolation import DoublePrecision
from smdtrack.notices import SmdtrackError

ORTHOGONAL = 1e-7


@dataclass(frozen=True)
class Reading:
    """What one backward pass says about one tensor.

    Attributes:
        inner: `<w, g>`, the radial derivative.
        weight_norm: `||w||`.
        grad_norm: `||g||`.
        slices: By dimension, `max_c |<w_c, g_c>| / max_c (||w_c|| ||g_c||)` over the slices along it.
            Dimensions are tried in order, and none after the first whose slices are all orthogonal.
    """

    inner: float
    weight_norm: float
    grad_norm: float
    slices: Mapping[int, float]

    @property
    def energy(self) -> float:
        """`||w|| ||g||`: how much the loss can feel of a relative change."""
        return self.weight_norm * self.grad_norm

    @property
    def cosine(self) -> float:
        """`|<w, g>| / (||w|| ||g||)`, 0 where the gradient is zero."""
        return abs(self.inner) / self.energy if self.energy > 0 else 0.0


@dataclass(frozen=True)
class RadialDerivatives:
    """The radial derivative of one tensor, split up in the ways in which a normalisation may account for it.

    Attributes:
        whole: `<w, g>`, shape (1,).
        by_slice: `<w_c, g_c>` by dimension, shape (slices,).
        energy: `||w|| ||g||`.
    """

    whole: Tensor
    by_slice: Mapping[int, Tensor]
    energy: float


def real(tensor: Tensor) -> Tensor:
    """The tensor as real numbers."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _slices(weight: Tensor, grad: Tensor, dims: int) -> dict[int, float]:
    """By dimension, how far the worst slice is from being orthogonal to its gradient; ends at the first that is."""
    found: dict[int, float] = {}
    for dim in range(dims):
        if weight.shape[dim] == 1 and dim > 0:
            continue
        others = [other for other in range(weight.dim()) if other != dim]
        if not others:
            found[dim] = 1.0
            continue
        norms = torch.linalg.vector_norm(weight, dim=others) * torch.linalg.vector_norm(grad, dim=others)
        worst, scale = float((weight * grad).sum(dim=others).abs().max()), float(norms.max())
        found[dim] = worst / scale if scale > 0 else 1.0
        if found[dim] < ORTHOGONAL:
            break
    return found


def slice_sums(product: Tensor, dim: int) -> Tensor:
    """Sums over every dimension but one."""
    return product.sum(dim=[other for other in range(product.dim()) if other != dim]) if product.dim() > 1 else product


def tensors_of(output: Any) -> Iterator[Tensor]:
    """The floating tensors in whatever a model returns: tensors, tuples, dicts, dataclasses."""
    if isinstance(output, Tensor):
        if output.is_floating_point() or output.is_complex():
            yield real(output)
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_of(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from tensors_of(value)
    elif hasattr(output, "__dataclass_fields__"):
        for key in output.__dataclass_fields__:
            yield from tensors_of(getattr(output, key))


class Bench:
    """A copied model with named parameters, a batch and a random linear loss.

    Every pass sees the same noise and the same buffers, so that the outputs are a function of the parameters alone.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], device: torch.device, seed: int):
        self.model = model
        self.parameters = parameters
        self.device = device
        self.seed = seed
        self.generator = torch.Generator("cpu").manual_seed(seed)
        self._initial: dict[str, Tensor] = {}
        self._buffers = [(buffer, buffer.clone(), buffer._version) for buffer in model.buffers() if not buffer.is_meta]
        self._batch: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._cotangents: list[Tensor] = []
        self._last: tuple[Tensor, float] | None = None

    def move_to_generic_point(self, amplitude: float) -> None:
        """Re-draws every tensor that initialisation left special: 1-d ones, constants, and filters that are dead."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if parameter.numel() == 0 or not (parameter.is_floating_point() or parameter.is_complex()):
                    continue
                values = real(parameter)
                slender = parameter.numel() == max(parameter.shape, default=1)
                first, last = values[(0,) * values.dim()], values[(-1,) * values.dim()]
                if slender and name not in self._initial:
                    self._initial[name] = values.clone()
                # Nearly every tensor that is not constant differs in its last element already.
                elif name not in self._initial and last == first and bool((values == first).all()):
                    self._initial[name] = first.clone()
                if name in self._initial:
                    spread = amplitude if slender else (parameter.shape[0] / parameter.numel()) ** 0.5
                    stretch = 1 + amplitude * (2 * self._rand(values.shape) - 1)
                    values.copy_(self._initial[name] * stretch + spread * self._randn(values.shape))
                else:
                    self._revive(values)

    def stir(self, names: Iterable[str]) -> None:
        """Puts other values in the place of some parameters, for good."""
        with torch.no_grad():
            for name in names:
                values = real(self.parameters[name])
                values.copy_(self.anything_else(name, values))

    def _revive(self, values: Tensor) -> None:
        """Re-draws the slices whose norm has decayed to nothing: behind batch norm they would act as noise."""
        norms = torch.linalg.vector_norm(values.flatten(1), dim=1)
        typical = norms.median() if bool(norms.median() > 0) else norms.max()
        dead = norms < 1e-3 * typical
        if bool(dead.any()):
            fresh = self._randn((int(dead.sum()), *values.shape[1:]))
            values[dead] = fresh * (typical / fresh[0].numel() ** 0.5)

    def _rand(self, shape: Sequence[int]) -> Tensor:
        return torch.rand(tuple(shape), generator=self.generator, dtype=torch.float64, device="cpu").to(self.device)

    def _randn(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=self.generator, dtype=torch.float64, device="cpu").to(self.device)

    def draw_batch(self, feed: Feed) -> None:
        """Draws a new batch; the loss is drawn anew with the next backward pass."""
        self._batch = feed.sample(self.generator, self.device)
        self._cotangents = []
        self._last = None

    def outputs(self, mode: DoublePrecision | None = None) -> list[Tensor]:
        """Runs the model forward and returns its floating outputs."""
        for buffer, value, version in self._buffers:
            if buffer._version != version:
                buffer.copy_(value)
        self._buffers = [(buffer, value, buffer._version) for buffer, value, _ in self._buffers]
        reseed(self.seed)
        args, kwargs = self._batch
        with mode or DoublePrecision():
            return list(tensors_of(self.model(*args, **kwargs)))

    def values(self) -> Tensor:
        """All outputs as one vector, without gradients."""
        with torch.no_grad():
            return torch.cat([output.detach().flatten().double() for output in self.outputs()])

    def before(self) -> tuple[Tensor, float]:
        """Outputs and loss at the point of the last plain backward pass, which computed them."""
        if self._last is None:
            self._last = self.values(), self.loss()
        return self._last

    def loss(self) -> float:
        """The random linear loss of the last backward pass."""
        with torch.no_grad():
            outputs = self.outputs()
            return float(sum((output * v).sum() for output, v in zip(outputs, self._cotangents, strict=True)))

    def backward(self, mode: DoublePrecision | None = None) -> None:
        """Fills the parameters' gradients of the loss `sum <output, v>` with a random `v` per batch.

        Raises:
            SmdtrackError: No output depends on the parameters.
        """
        mode = mode or DoublePrecision()
        self.release()
        outputs = self.outputs(mode)
        if not self._cotangents:
            self._cotangents = [self._randn(output.shape) / max(1, output.numel()) ** 0.5 for output in outputs]
        terms = [
            (output * v).sum() for output, v in zip(outputs, self._cotangents, strict=True) if output.requires_grad
        ]
        if not terms:
            title = type(self.model).__name__
            raise SmdtrackError(f"{title} returns no floating tensor that depends on its parameters")
        loss = torch.stack([term.double() for term in terms]).sum()
        if not bool(torch.isfinite(loss)):
            raise FloatingPointError("the outputs are not finite")
        if type(mode) is DoublePrecision:
            self._last = torch.cat([output.detach().flatten().double() for output in outputs]), float(loss.detach())
        del outputs, terms
        with mode:
            # Not `loss.backward()`: the mode would be off inside it, also for what checkpointing computes again.
            torch.autograd.backward(loss)

    def release(self) -> None:
        """Drops the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def reading(self, name: str) -> Reading:
        """Reads one tensor's statistics off the last backward pass."""
        parameter = self.parameters[name]
        if parameter.grad is None or parameter.numel() == 0:
            return Reading(0.0, float(torch.linalg.vector_norm(real(parameter.detach()))), 0.0, {})
        weight, grad = real(parameter.detach()), real(parameter.grad)
        inner = float(torch.dot(weight.flatten(), grad.flatten()))
        weight_norm, grad_norm = float(torch.linalg.vector_norm(weight)), float(torch.linalg.vector_norm(grad))
        energy = weight_norm * grad_norm
        orthogonal = energy > 0 and abs(inner) <= 1e-4 * energy
        return Reading(inner, weight_norm, grad_norm, _slices(weight, grad, parameter.dim()) if orthogonal else {})

    def radial_derivatives(self, name: str, dims: Iterable[int]) -> RadialDerivatives | None:
        """Reads a tensor's radial derivatives off the last backward pass, along some dimensions and the first.

        None where it got no gradient.
        """
        parameter = self.parameters[name]
        if parameter.grad is None:
            return None
        weight, grad = real(parameter.detach()), real(parameter.grad)
        product = weight * grad
        whole = product.sum().view(1)
        by_slice = {dim: slice_sums(product, dim) if product.dim() else whole for dim in {0, *dims}}
        return RadialDerivatives(
            whole, by_slice, float(torch.linalg.vector_norm(weight) * torch.linalg.vector_norm(grad))
        )

    @contextmanager
    def changed(self, names: Iterable[str], change: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
        """Replaces the values of some parameters inside the context."""
        saved: dict[str, Tensor] = {}
        with torch.no_grad():
            for name in names:
                saved[name] = self.parameters[name].detach().clone()
                real(self.parameters[name]).copy_(change(name, real(saved[name])))
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in saved.items():
                    self.parameters[name].copy_(value)

    def deviation(
        self, base: Tensor, names: Iterable[str] = (), change: Callable[[str, Tensor], Tensor] | None = None
    ) -> float:
        """Largest change of the outputs relative to their largest magnitude, under a change of some parameters."""
        with self.changed(names, change) if change is not None else nullcontext():
            difference = (self.values() - base).abs().max()
        scale = base.abs().max()
        return float(difference / scale) if float(scale) > 0 else float(difference)

    def one_factor(self, name: str, value: Tensor) -> Tensor:
        """Scales a tensor by one random factor."""
        return value * (0.4 + 2 * self._rand(()))

    def element_factors(self, name: str, value: Tensor) -> Tensor:
        """Scales each element of a tensor by its own positive random factor."""
        return value * (0.4 + 2 * self._rand(value.shape))

    def anything_else(self, name: str, value: Tensor) -> Tensor:
        """Puts other values of the same magnitude, with other signs, in a tensor's place."""
        rms = value.square().mean().sqrt() if value.numel() else value.sum()
        return -value * (0.4 + 2 * self._rand(value.shape)) + rms * self._randn(value.shape)

    def slice_factors(self, dim: int) -> Callable[[str, Tensor], Tensor]:
        """Returns a change that scales each slice along `dim` by its own positive random factor."""

        def change(name: str, value: Tensor) -> Tensor:
            shape = [extent if index == dim else 1 for index, extent in enumerate(value.shape)]
            return value * (0.4 + 2 * self._rand(shape))

        return change
