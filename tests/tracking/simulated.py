"""Real optimizers on scale-invariant noise, measured by `StepMeasurer` and interpreted by `SampleBuilder`.

The gradient of step t is `C P z_t / (sqrt(d) ||w||)` with Gaussian noise z_t and the projection P orthogonal to w, as
that of a loss that does not see the scale of w.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from smdtrack.record.run import Floats, Sample, TrackedWeight
from smdtrack.tracking.interpret.sample_builder import SampleBuilder
from smdtrack.tracking.measure.step_measurer import StepMeasurer

Build = Callable[[list[nn.Parameter]], Optimizer]


class Simulated:
    """Several weights of one shape under one optimizer.

    Args:
        build: Makes the optimizer.
        weights: Number of weights.
        shape: Of each.
        norm: Of each weight at the start.
        correlation: Of the noise from step to step, AR(1).
        lags: As for `watch`.
    """

    def __init__(
        self,
        build: Build,
        weights: int = 4,
        shape: tuple[int, ...] = (32, 32),
        norm: float = 1.0,
        correlation: float = 0.0,
        lags: Sequence[int] = (),
        seed: int = 0,
    ) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        drawn = [self._noise(shape) for _ in range(weights)]
        self.parameters = [nn.Parameter(direction * (norm / direction.norm())) for direction in drawn]
        self.optimizer = build(self.parameters)
        self._correlation = correlation
        self._noises = [self._noise(shape) for _ in range(weights)]
        self._measurer = StepMeasurer(self.optimizer, self.parameters, [None] * weights, lags, None)
        self._build = SampleBuilder([TrackedWeight(f"{index}.weight", str(index), shape) for index in range(weights)])
        self.step = 0
        self.samples: list[Sample] = []
        #: Of every step, sampled or not: angles by atan2, ln ||w||^2 after the step.
        self.angles: list[list[float]] = []
        self.log_norms: list[list[float]] = []

    def run(
        self,
        steps: int,
        rates: Sequence[float] | None = None,
        sampled: Callable[[int], bool] = lambda step: True,
        between: Callable[[list[nn.Parameter]], None] = lambda parameters: None,
    ) -> None:
        """Takes steps.

        Args:
            steps: Number of steps.
            rates: Learning rate of each step.
            sampled: Which steps, counted from 1, are measured.
            between: Called after each step.
        """
        for index in range(steps):
            if rates is not None:
                for group in self.optimizer.param_groups:
                    group["lr"] = rates[index]
            self._set_gradients()
            self.step += 1
            is_sampled = sampled(self.step)
            if is_sampled:
                self._measurer.update_groups()
                self._measurer.begin(self.step, has_closure=False)
            before = [weight.detach().clone() for weight in self.parameters]
            self.optimizer.step()
            measurement = self._measurer.end(self.step, has_closure=False)
            if measurement is not None:
                sample = self._build(measurement)
                assert sample is not None
                self.samples.append(sample)
            self.angles.append([angle(*pair) for pair in zip(before, self.parameters, strict=True)])
            self.log_norms.append([float(2 * weight.detach().norm().log()) for weight in self.parameters])
            between(self.parameters)

    def values(self, family: str) -> Floats:
        """Returns a family's values at the samples, (T, W)."""
        return np.stack([sample.values[family] for sample in self.samples])

    def _noise(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=self._generator, dtype=torch.float64)

    def _set_gradients(self) -> None:
        kept = self._correlation
        for index, parameter in enumerate(self.parameters):
            fresh = self._noise(parameter.shape)
            noise = kept * self._noises[index] + math.sqrt(1 - kept**2) * fresh if kept else fresh
            self._noises[index] = noise
            weight = parameter.detach()
            squared = weight.square().sum()
            tangent = noise - weight * ((noise * weight).sum() / squared)
            parameter.grad = tangent / (math.sqrt(weight.numel()) * squared.sqrt())


def angle(before: Tensor, after: Tensor) -> float:
    """Returns the angle between two tensors in float64, by atan2."""
    after = after.detach()
    change = after - before
    along = float((before * change).sum() / before.norm())
    across = math.sqrt(max(float(change.square().sum()) - along**2, 0.0))
    return math.atan2(across, float(before.norm()) + along)


def rms(values: Floats) -> Floats:
    """Returns the root mean square over the first axis."""
    result: Floats = np.sqrt(np.mean(np.square(values), axis=0))
    return result
