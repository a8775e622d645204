"""A copied model at a generic point, which the audit runs forward and backward."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from smdtrack.invariance.gradient_statistics import GradientStatistics, as_real, gradient_statistics
from smdtrack.invariance.inputs import InputTemplate, reseed
from smdtrack.invariance.isolation import DoublePrecision
from smdtrack.notices import SmdtrackError


def tensors_of(output: Any) -> Iterator[Tensor]:
    """Yields the floating tensors in what a model returns: tensors, tuples, lists, dicts, dataclasses."""
    if isinstance(output, Tensor):
        if output.is_floating_point() or output.is_complex():
            yield as_real(output)
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_of(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from tensors_of(value)
    elif hasattr(output, "__dataclass_fields__"):
        for key in output.__dataclass_fields__:
            yield from tensors_of(getattr(output, key))


class TrialModel:
    """A copied model with named parameters, a batch of inputs and a random linear loss.

    Every pass starts from the same random seed and the same buffers: the outputs depend on the parameters alone.
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
        """Draws new values for the parameters that initialisation left special: vectors, constants, vanished slices."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if parameter.numel() == 0 or not (parameter.is_floating_point() or parameter.is_complex()):
                    continue
                values = as_real(parameter)
                is_vector = parameter.numel() == max(parameter.shape, default=1)
                first, last = values[(0,) * values.dim()], values[(-1,) * values.dim()]
                if is_vector and name not in self._initial:
                    self._initial[name] = values.clone()
                # Nearly every tensor that is not constant differs in its last element already.
                elif name not in self._initial and last == first and bool((values == first).all()):
                    self._initial[name] = first.clone()
                if name in self._initial:
                    spread = amplitude if is_vector else (parameter.shape[0] / parameter.numel()) ** 0.5
                    stretch = 1 + amplitude * (2 * self._rand(values.shape) - 1)
                    values.copy_(self._initial[name] * stretch + spread * self._randn(values.shape))
                else:
                    self._redraw_vanished_slices(values)

    def redraw(self, names: Iterable[str]) -> None:
        """Gives some parameters other values and keeps them."""
        with torch.no_grad():
            for name in names:
                values = as_real(self.parameters[name])
                values.copy_(self.other_values(name, values))

    def _redraw_vanished_slices(self, values: Tensor) -> None:
        """Draws new values for slices whose norm has decayed to nothing: batch norm would turn them into noise."""
        norms = torch.linalg.vector_norm(values.flatten(1), dim=1)
        typical = norms.median() if bool(norms.median() > 0) else norms.max()
        vanished = norms < 1e-3 * typical
        if bool(vanished.any()):
            fresh = self._randn((int(vanished.sum()), *values.shape[1:]))
            values[vanished] = fresh * (typical / fresh[0].numel() ** 0.5)

    def _rand(self, shape: Sequence[int]) -> Tensor:
        return torch.rand(tuple(shape), generator=self.generator, dtype=torch.float64, device="cpu").to(self.device)

    def _randn(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=self.generator, dtype=torch.float64, device="cpu").to(self.device)

    def draw_batch(self, template: InputTemplate) -> None:
        """Draws a new batch. The next backward pass draws a new loss for it."""
        self._batch = template.sample(self.generator, self.device)
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
        """Returns all outputs as one vector, without gradients."""
        with torch.no_grad():
            return torch.cat([output.detach().flatten().double() for output in self.outputs()])

    def before(self) -> tuple[Tensor, float]:
        """Returns outputs and loss at the present point; the last plain backward pass already computed them."""
        if self._last is None:
            self._last = self.values(), self.loss()
        return self._last

    def loss(self) -> float:
        """Returns the random linear loss of the last backward pass."""
        with torch.no_grad():
            outputs = self.outputs()
            return float(sum((output * v).sum() for output, v in zip(outputs, self._cotangents, strict=True)))

    def backward(self, mode: DoublePrecision | None = None) -> None:
        """Computes the gradients of the loss `sum <output, v>`, with a random `v` per batch.

        Raises:
            SmdtrackError: No output depends on the parameters.
        """
        mode = mode or DoublePrecision()
        self.drop_gradients()
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
            # Inside `loss.backward()` the mode would be off, also for what activation checkpointing recomputes.
            torch.autograd.backward(loss)

    def drop_gradients(self) -> None:
        """Frees the memory of the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def statistics(self, name: str) -> GradientStatistics:
        """Returns the statistics of one parameter after the last backward pass."""
        return gradient_statistics(self.parameters[name])

    @contextmanager
    def changed(self, names: Iterable[str], change: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
        """Replaces the values of some parameters inside the context."""
        saved: dict[str, Tensor] = {}
        with torch.no_grad():
            for name in names:
                saved[name] = self.parameters[name].detach().clone()
                as_real(self.parameters[name]).copy_(change(name, as_real(saved[name])))
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in saved.items():
                    self.parameters[name].copy_(value)

    def deviation(
        self, base: Tensor, names: Iterable[str] = (), change: Callable[[str, Tensor], Tensor] | None = None
    ) -> float:
        """Returns the largest change of the outputs, relative to their size, when some parameters are changed."""
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

    def other_values(self, name: str, value: Tensor) -> Tensor:
        """Replaces a tensor by random values of the same magnitude with other signs."""
        rms = value.square().mean().sqrt() if value.numel() else value.sum()
        return -value * (0.4 + 2 * self._rand(value.shape)) + rms * self._randn(value.shape)

    def slice_factors(self, dim: int) -> Callable[[str, Tensor], Tensor]:
        """Returns a change that scales each slice along `dim` by its own positive random factor."""

        def change(name: str, value: Tensor) -> Tensor:
            shape = [extent if index == dim else 1 for index, extent in enumerate(value.shape)]
            return value * (0.4 + 2 * self._rand(shape))

        return change
