"""A copied model at a generic point, which the audit runs forward and backward."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from smdtrack.invariance.computation_mode import ComputationMode, ComputationSettings
from smdtrack.invariance.evidence import Limits, limits_of
from smdtrack.invariance.generic_point import Distance, PointSampler
from smdtrack.invariance.gradient_statistics import GradientStatistics, as_real, gradient_statistics
from smdtrack.invariance.input_template import InputTemplate, fresh
from smdtrack.invariance.isolation import seed_generators
from smdtrack.invariance.module_state import ModuleState
from smdtrack.invariance.outputs import Baseline, tensors_of
from smdtrack.notices import SmdtrackError

Change = Callable[[str, Tensor], Tensor]


class NotFiniteError(FloatingPointError):
    """The outputs or the gradients are not finite at this point."""

    def __init__(self) -> None:
        super().__init__("the outputs are not finite")


class TrialModel:
    """A copied model with named parameters, a batch of inputs and a random linear loss.

    Every pass at one point starts from the same random seed and the same state of the modules, so that the outputs
    depend on the parameters alone.

    Attributes:
        passes: Forward passes so far.
        uses_random_numbers: Whether the forward passes draw random numbers.
        uses_detach: Whether the forward passes use `detach`, `.data` or `no_grad`.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        device: torch.device,
        seed: int,
        settings: ComputationSettings,
    ):
        self.model = model
        self.parameters = parameters
        self.device = device
        self.settings = settings
        self.limits: Limits = limits_of(settings.dtype)
        self.generator = torch.Generator("cpu").manual_seed(seed)
        self.passes = 0
        self.uses_random_numbers = False
        self.uses_detach = False
        self._seed = seed
        self._state = ModuleState(model)
        self.points = PointSampler(parameters, self._state.buffers(), self.generator)
        self._batch: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._cotangents: list[Tensor | None] = []
        self._baseline: Baseline | None = None
        self._loss: float | None = None
        self._loss_through_detach = False
        # Parameters that the forward pass itself changes (an embedding with max_norm), with their values before.
        self._changed_by_forward: dict[str, Tensor | None] = {}

    @property
    def precision(self) -> str:
        """`float64` or `float32`."""
        return str(self.settings.dtype).removeprefix("torch.")

    def move(self, distance: Distance, template: InputTemplate) -> None:
        """Moves to a new generic point, with a new batch, new random numbers and a new loss."""
        self._undo_changes_by_forward()
        self._state.restore(self._seed)
        self.points.move(distance)
        self._state.take()
        self._batch = template.sample(self.generator, self.device, self.settings.dtype)
        self._seed += 1
        self._cotangents, self._baseline, self._loss = [], None, None

    def keep_state(self) -> None:
        """Takes the modules' state after the last pass as the state from which every pass starts.

        A model may set itself up in its first forward pass, from the data.
        """
        self._state.take()

    def outputs(self, mode: ComputationMode | None = None) -> list[Tensor]:
        """Runs the model forward and returns its floating outputs."""
        self._undo_changes_by_forward()
        self._state.restore(self._seed)
        seed_generators(self._seed)
        before = random.getstate(), torch.get_rng_state()
        for name in self._changed_by_forward:
            self._changed_by_forward[name] = self.parameters[name].detach().clone()
        versions = [(name, parameter._version) for name, parameter in self.parameters.items()]
        args, kwargs = fresh(self._batch)
        self.passes += 1
        mode = mode or ComputationMode(self.settings)
        with mode:
            output = self.model(*args, **kwargs)
        self.uses_detach |= mode.saw_detach
        for name, version in versions:
            if self.parameters[name]._version != version and name not in self._changed_by_forward:
                self._changed_by_forward[name] = None
        if before[0] != random.getstate() or not torch.equal(before[1], torch.get_rng_state()):
            self.uses_random_numbers = True
        return list(tensors_of(output))

    def _undo_changes_by_forward(self) -> None:
        for name, before in self._changed_by_forward.items():
            if before is not None:
                with torch.no_grad():
                    self.parameters[name].copy_(before)
                self._changed_by_forward[name] = None

    def values(self) -> list[Tensor]:
        """Returns the outputs without gradients."""
        with torch.no_grad():
            return [output.detach() for output in self.outputs()]

    def baseline(self) -> Baseline:
        """Returns the outputs at the present point; the last plain backward pass already computed them.

        Raises:
            NotFiniteError: They are not finite.
        """
        if self._baseline is None:
            self._baseline = Baseline.of(self.values())
            if not self._baseline.is_finite():
                raise NotFiniteError
        return self._baseline

    def loss(self) -> float:
        """Returns the random linear loss of the last backward pass at the present parameters."""
        with torch.no_grad():
            terms = self._terms(self.outputs())
            return float(sum(float(term) for term in terms))

    def loss_here(self) -> float:
        """Returns the loss that the last plain backward pass computed."""
        if self._loss is None:
            self._loss = self.loss()
        return self._loss

    def _terms(self, outputs: list[Tensor]) -> list[Tensor]:
        return [
            (torch.where(cotangent != 0, output, 0) * cotangent).sum()
            for output, cotangent in zip(outputs, self._cotangents, strict=True)
            if cotangent is not None
        ]

    def backward(self, mode: ComputationMode | None = None) -> None:
        """Computes the gradients of a random linear loss `sum <output, v>`.

        `v` is drawn once per point, relative to the size of each output. Masked entries and outputs that do not depend
        on the parameters have no part in the loss.

        Raises:
            NotFiniteError: The outputs or the gradients are not finite.
            SmdtrackError: No output depends on the parameters.
        """
        mode = mode or ComputationMode(self.settings)
        plain = type(mode) is ComputationMode and not mode.through_detach
        self.drop_gradients()
        outputs = self.outputs(mode)
        baseline = Baseline.of(outputs)
        if not baseline.is_finite():
            raise NotFiniteError
        if not self._cotangents or self._loss_through_detach != mode.through_detach:
            self._draw_loss(outputs, baseline)
            self._loss_through_detach = mode.through_detach
        terms = [term for term in self._terms(outputs) if term.requires_grad]
        if not terms:
            title = type(self.model).__name__
            raise SmdtrackError(f"{title} returns no floating tensor that depends on its parameters")
        loss = torch.stack([term.to(self.settings.dtype) for term in terms]).sum()
        if plain:
            self._baseline, self._loss = baseline, float(loss.detach())
        del outputs, terms
        with mode:
            # Inside `loss.backward()` the mode would be off, also for what activation checkpointing recomputes.
            torch.autograd.backward(loss)

    def _draw_loss(self, outputs: list[Tensor], baseline: Baseline) -> None:
        self._cotangents = []
        for index, output in enumerate(outputs):
            if not output.requires_grad:
                self._cotangents.append(None)
                continue
            scale = baseline.scales[index] * max(1, output.numel()) ** 0.5
            cotangent = self.points.randn(output.shape, output.detach()) / scale
            self._cotangents.append(torch.where(baseline.typical(index), cotangent, 0))

    def drop_gradients(self) -> None:
        """Frees the memory of the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def statistics(self) -> dict[str, GradientStatistics]:
        """Returns the statistics of every parameter after the last backward pass.

        Raises:
            NotFiniteError: A gradient is not finite.
        """
        found = {name: gradient_statistics(value, self.limits.cosine) for name, value in self.parameters.items()}
        if not all(entry.is_finite for entry in found.values()):
            raise NotFiniteError
        return found

    @contextmanager
    def changed(self, names: Iterable[str], change: Change) -> Iterator[None]:
        """Replaces the values of some parameters inside the context."""
        self._undo_changes_by_forward()
        saved: dict[str, Tensor] = {}
        with torch.no_grad():
            for name in names:
                saved[name] = self.parameters[name].detach().clone()
                as_real(self.parameters[name]).copy_(change(name, as_real(saved[name])))
        try:
            yield
        finally:
            self._undo_changes_by_forward()
            with torch.no_grad():
                for name, value in saved.items():
                    self.parameters[name].copy_(value)

    def deviation(self, base: Baseline, names: Iterable[str], change: Change) -> float:
        """Returns the largest relative change of the outputs when some parameters are changed."""
        with self.changed(names, change):
            return base.deviation(self.values())

    def one_factor(self, name: str, value: Tensor) -> Tensor:
        """Scales a tensor by one random factor."""
        return value * (0.4 + 2 * self.points.rand((), value))

    def element_factors(self, name: str, value: Tensor) -> Tensor:
        """Scales each element of a tensor by its own positive random factor."""
        if not value.is_floating_point():
            return value
        return value * (0.4 + 2 * self.points.rand(value.shape, value))

    def other_values(self, name: str, value: Tensor) -> Tensor:
        """Replaces a tensor by random values of the same magnitude with other signs."""
        return self.points.other_values(name, value)

    def slice_factors(self, dim: int) -> Change:
        """Returns a change that scales each slice along `dim` by its own positive random factor."""

        def change(name: str, value: Tensor) -> Tensor:
            shape = [extent if index == dim else 1 for index, extent in enumerate(value.shape)]
            return value * (0.4 + 2 * self.points.rand(shape, value))

        return change
