"""Reading hyper-parameters from a parameter group, whatever type they have there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


@dataclass(frozen=True)
class Setting:
    """What a rule may look at: one parameter group, the weight's shape, the optimizer, and how far the run is."""

    group: Mapping[str, Any]
    shape: tuple[int, ...]
    optimizer: Optimizer
    name: str
    step: int | None = None

    @property
    def lr(self) -> float:
        """Learning rate (a 0-d tensor counts as its value)."""
        return as_float(self.group["lr"])

    @property
    def weight_decay(self) -> float:
        """Weight decay as the group has it."""
        return as_float(self.group.get("weight_decay", 0.0))

    @property
    def momentum(self) -> float:
        """SGD-like momentum; 0 where there is none."""
        return as_float(self.group.get("momentum") or 0.0)

    @property
    def betas(self) -> tuple[float, ...]:
        """Betas as floats."""
        return tuple(as_float(beta) for beta in self.group["betas"])

    def flag(self, name: str) -> bool:
        """A switch of the group, off where the group has none of that name."""
        return bool(self.group.get(name, False))

    @property
    def decoupled_decay(self) -> float:
        """gamma of a decay that multiplies the weight itself: lr wd, or lr^2 wd / lr_max (Defazio, 2506.02285)."""
        if self.flag("corrected_weight_decay"):
            return self.lr**2 / as_float(self.group["max_lr_snapshot"]) * self.weight_decay
        return self.lr * self.weight_decay


def as_float(value: Any) -> float:
    """A hyper-parameter as a float. A tensor on an accelerator is read once per change (see `Family.line`)."""
    return float(value.detach()) if isinstance(value, Tensor) else float(value)
