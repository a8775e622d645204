"""The record of one optimizer: everything that the theory knows of it, in one place."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.optim import Optimizer

from smdtrack.theory.denominators import Denominators
from smdtrack.theory.dynamics import DERIVED, WHITE, Dynamics
from smdtrack.theory.group_settings import GroupSettings
from smdtrack.theory.line import Kind

#: Turns hyper-parameters into the dynamics of a weight. What it leaves None in words is taken from the record.
Rule = Callable[[GroupSettings], Dynamics]
#: Tells whether weight decay is added to the gradient under a parameter group of the optimizer.
IsCoupled = Callable[[Optimizer, Mapping[str, Any]], bool]
#: By entry of the optimizer's state for a weight: the power of ||w|| with which the tensor scales.
StatePowers = Mapping[str, int]

#: Powers for `StatePowers`. A gradient of a scale-invariant weight is proportional to 1/||w||.
GRADIENT, SQUARED_GRADIENT, WEIGHT, SCALE_FREE = -1, -2, 1, 0


def never(optimizer: Optimizer, group: Mapping[str, Any]) -> bool:
    """Weight decay multiplies the weight itself (decoupled), whatever the settings."""
    return False


def always(optimizer: Optimizer, group: Mapping[str, Any]) -> bool:
    """Weight decay is added to the gradient (coupled), whatever the settings."""
    return True


def unless(flag: str) -> IsCoupled:
    """Weight decay is added to the gradient unless the group has this switch on."""
    return lambda optimizer, group: not group.get(flag, False)


def unless_attribute(name: str, default: Any) -> IsCoupled:
    """Weight decay is added to the gradient unless this attribute of the optimizer is true."""
    return lambda optimizer, group: not getattr(optimizer, name, default)


@dataclass(frozen=True)
class OptimizerInfo:
    """What the theory knows of one optimizer class.

    Attributes:
        key: Top-level package and class name, as "torch.SGD". Subclasses that keep the class's `step` share the record.
        title: The optimizer's name for people; the rule may give a more exact one.
        rule: Turns hyper-parameters into the dynamics of a weight.
        formula: The squared angular update at equilibrium in terms of the hyper-parameters, with decoupled decay if the
            optimizer has it.
        source: Paper and equation, or "derived here".
        assumptions: What the line rests on, whatever the settings.
        kind: How the line is known.
        is_coupled: Whether weight decay is added to the gradient.
        denominators: What coupled weight decay is divided by, read from the optimizer's state; None if by nothing.
        own_share: By how much the denominator weakens the decay, because it contains the gradient that it divides: a
            function of the parameter group and the step count. None: not at all.
        eps_power: How eps enters the denominator: 1 if it is added to it, 2 if it is added to its square.
        momentum_entry: Entry of the state whose inner product with the weight's change makes the line of coupled
            Nesterov momentum exact; None if there is none.
        state_powers: How each tensor of the state scales with ||w||, or a function of the state that tells it; None if
            the state does not follow the weight's norm, so that weights cannot be rescaled.
        depends_on_shape: Whether the line depends on the shape of the weight.
        depends_on_step: Whether the line depends on the number of steps taken, which is then read from the state.
        calibrate_if_cautious: Whether the switch `caution` changes the update statistics, so that they are measured.
        verified: False if the optimizer's code was read, but never run against the line.
    """

    key: str
    title: str
    rule: Rule
    formula: str = "2 lr wd / R"
    source: str = DERIVED
    assumptions: tuple[str, ...] = (WHITE,)
    kind: Kind = "closed form"
    is_coupled: IsCoupled = never
    denominators: Denominators | None = None
    own_share: Callable[[Mapping[str, Any], int | None], float] | None = None
    eps_power: int = 1
    momentum_entry: str | None = None
    state_powers: StatePowers | Callable[[Mapping[str, Any]], StatePowers] | None = field(default_factory=dict)
    depends_on_shape: bool = False
    depends_on_step: bool = False
    calibrate_if_cautious: bool = False
    verified: bool = True

    @property
    def package(self) -> str:
        """The package that the optimizer comes from."""
        return self.key.split(".")[0]
