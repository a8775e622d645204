"""What a rule may look at: the hyper-parameters of one parameter group, as plain numbers, and the weight's shape."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from smdtrack.theory.update_statistics import UpdateStatistics

#: Returns the update statistics of this optimizer, measured by running it; see `calibration.calibrated`.
Calibrate = Callable[[Optimizer, Mapping[str, Any], tuple[int, ...] | None], UpdateStatistics]


@dataclass(frozen=True)
class GroupSettings:
    """The settings under which one weight is trained.

    Attributes:
        group: The parameter group.
        shape: Of the weight.
        optimizer: For switches that are attributes of the optimizer and not of its groups.
        title: The optimizer's name for people.
        coupled: Whether weight decay is added to the gradient before the optimizer processes it.
        calibrate: Measures update statistics that have no closed form.
        step: Number of steps taken, for optimizers whose momentum depends on it; None if it is not known.
        own_share: By how much a denominator weakens coupled weight decay, because it contains the gradient that it
            divides (see `rules_adam.normalised`).
    """

    group: Mapping[str, Any]
    shape: tuple[int, ...]
    optimizer: Optimizer
    title: str
    coupled: bool
    calibrate: Calibrate
    step: int | None = None
    own_share: float = 0.0

    @property
    def lr(self) -> float:
        """The learning rate."""
        return as_float(self.group["lr"])

    @property
    def weight_decay(self) -> float:
        """Weight decay as the group states it; 0 if it has none."""
        return as_float(self.group.get("weight_decay", 0.0))

    @property
    def momentum(self) -> float:
        """SGD-like momentum; 0 if the group has none."""
        return as_float(self.group.get("momentum") or 0.0)

    @property
    def betas(self) -> tuple[float, ...]:
        """The betas as floats."""
        return tuple(as_float(beta) for beta in self.group["betas"])

    def flag(self, name: str) -> bool:
        """Returns a switch of the group; False if the group has none of that name."""
        return bool(self.group.get(name, False))

    @property
    def decoupled_decay(self) -> float:
        """gamma of decay that multiplies the weight: lr wd, or lr^2 wd / lr_max if corrected (Defazio, 2506.02285)."""
        if self.flag("corrected_weight_decay"):
            return self.lr**2 / as_float(self.group["max_lr_snapshot"]) * self.weight_decay
        return self.lr * self.weight_decay


def as_float(value: Any) -> float:
    """Returns a hyper-parameter as a float; waits for the device if it is a tensor there."""
    return float(value.detach()) if isinstance(value, Tensor) else float(value)
