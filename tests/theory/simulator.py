"""The real optimizer on scale-invariant noise: the independent reference for every line.

The loss of step t is `C <z_t, w> / (sqrt(d) ||w||)` with a new Gaussian z_t. It does not depend on the scale of w. Its
gradient is `C P_perp(z_t) / (sqrt(d) ||w||)`, which is orthogonal to w. It has a Hessian for the optimizers that need
one. Everything is in float64, and angles are computed by atan2, so that small ones are right.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from smdtrack.theory import Family, Line, identify
from smdtrack.theory.measured_memory import measured_memory
from tests.theory.noise import Noise, correlated, white

Build = Callable[[list[torch.nn.Parameter]], Optimizer]


@dataclass
class Trace:
    """What was measured in a simulated run, one entry per step.

    Attributes:
        angle2: Squared angular update, radian^2.
        norm2: Squared norm before the step.
        gradient2: Squared effective gradient, (||g|| ||w||)^2.
        line2: Squared equilibrium line at the present state, for the sampled steps only.
        learning_rate: Of the step.
        along: <w, d>/<w, w> of the weight before the step and its change.
        change2: <d, d>/<w, w>.
    """

    angle2: list[float] = field(default_factory=list)
    norm2: list[float] = field(default_factory=list)
    gradient2: list[float] = field(default_factory=list)
    line2: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    along: list[float] = field(default_factory=list)
    change2: list[float] = field(default_factory=list)

    @property
    def angle(self) -> float:
        """RMS angular update over the whole trace."""
        return math.sqrt(sum(self.angle2) / len(self.angle2))

    @property
    def line(self) -> float:
        """RMS of the sampled equilibrium lines."""
        sampled = [value for value in self.line2 if not math.isnan(value)]
        return math.sqrt(sum(sampled) / len(sampled)) if sampled else math.nan

    def memory(self, line: Line) -> float:
        """R of the updates as measured over the whole trace."""
        along, change2 = (sum(values) / len(values) for values in (self.along, self.change2))
        return measured_memory(1.0, along, change2, line.decay_rate or 0.0, line.coupled)

    @property
    def drift(self) -> float:
        """Change of ln ||w||^2 per step over the whole trace."""
        return math.log(self.norm2[-1] / self.norm2[0]) / (len(self.norm2) - 1)


class Simulation:
    """One weight trained by one optimizer on white or AR(1) noise.

    Args:
        build: Makes the optimizer from a list with the one parameter.
        shape: Of the weight.
        norm: Of the weight at the start.
        effective_gradient: C, the RMS of ||g|| ||w||.
        correlation: Between the gradients of successive steps (AR(1)); of no effect if `noise` is given.
        noise: Of the gradients; white by default.
        seed: Of the random numbers.
    """

    def __init__(
        self,
        build: Build,
        shape: tuple[int, ...] = (32, 32),
        *,
        norm: float = 1.0,
        effective_gradient: float = 1.0,
        correlation: float = 0.0,
        noise: Noise | None = None,
        seed: int = 0,
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        self.weight = torch.nn.Parameter(direction * (norm / direction.norm()))
        self.optimizer = build([self.weight])
        self.family: Family = identify(self.optimizer)
        self.scale = effective_gradient / math.sqrt(direction.numel())
        self.noise = (noise or (correlated(correlation) if correlation else white))(self.generator, shape)
        self.second_order = bool(getattr(self.optimizer, "is_second_order", False))

    @property
    def group(self) -> dict[str, object]:
        """The one parameter group."""
        return self.optimizer.param_groups[0]

    @property
    def state(self) -> dict[str, object]:
        """The optimizer's state of the weight."""
        return getattr(self.optimizer, "_base_optimizer", self.optimizer).state[self.weight]

    def line(self):
        """The line at the present state."""
        pulls = self.family.decay_pulls([self.weight], [self.state], self.group) if self.state else None
        factor = float(pulls[0] / self.weight.detach().square().sum()) if pulls else None
        return self.family.line(self.group, tuple(self.weight.shape), state_factor=factor)

    def rescale(self, factor: float) -> None:
        """Multiplies the weight, as if it had grown there."""
        with torch.no_grad():
            self.weight.mul_(factor)

    def run(self, steps: int, learning_rates: Sequence[float] | None = None, sample: int = 25) -> Trace:
        """Steps the optimizer, under a schedule if one is given."""
        trace = Trace()
        for step in range(steps):
            if learning_rates is not None:
                for group in self.optimizer.param_groups:
                    group["lr"] = learning_rates[step]
            self._gradient()
            before = self.weight.detach().clone()
            trace.gradient2.append(float(self.weight.grad.detach().square().sum() * before.square().sum()))
            self.optimizer.step()
            change = self.weight.detach() - before
            trace.along.append(float((before * change).sum() / before.square().sum()))
            trace.change2.append(float(change.square().sum() / before.square().sum()))
            trace.angle2.append(angle_between(before, self.weight.detach()) ** 2)
            trace.norm2.append(float(before.square().sum()))
            trace.learning_rate.append(float(self.group["lr"]))
            if sample and step % sample == 0:
                angle = self.line().angular_update
                trace.line2.append(math.nan if angle is None else angle**2)
        return trace

    def _gradient(self) -> None:
        noise = next(self.noise)
        if self.second_order:
            loss = self.scale * (noise * self.weight).sum() / self.weight.norm()
            self.weight.grad = torch.autograd.grad(loss, self.weight, create_graph=True)[0]
            return
        weight = self.weight.detach()
        norm2 = weight.square().sum()
        tangent = noise - weight * ((noise * weight).sum() / norm2)
        self.weight.grad = tangent * (self.scale / norm2.sqrt())


def angle_between(one: Tensor, other: Tensor) -> float:
    """Angle by atan2 of the rejection and the projection, float64."""
    change = other - one
    length = one.norm()
    along = (one * change).sum() / length
    across = (change.square().sum() - along**2).clamp_min(0).sqrt()
    return float(torch.atan2(across, length + along))


def at_equilibrium(simulation: Simulation, *, rounds: int = 4, settle: int = 300) -> None:
    """Brings the weight to its equilibrium norm by the line's own prediction, so that few steps are needed."""
    for _ in range(rounds):
        trace = simulation.run(settle, sample=0)
        angle = math.sqrt(sum(trace.angle2[-100:]) / 100)
        norm = math.sqrt(trace.norm2[-1])
        target = simulation.line().equilibrium_norm(norm, angle)
        if target is None:
            return
        simulation.rescale(target / norm)
