"""How an optimizer moves a weight, in the few terms that the theory needs, and the line that follows."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from smdtrack.theory.line import Kind, Line
from smdtrack.theory.updates import Updates

DERIVED = "derived here (general line: R from the impulse response)"
ANY_GRADIENT = "exact for any autocorrelation of the gradients"
WHITE = "gradients uncorrelated in time"
ALL_AT_ONCE = "lr x wd takes away the whole weight in one step (gamma = {:.3g}): there is no equilibrium"
NO_EQUILIBRIUM = "weight decay is 0: the norm only grows, there is no equilibrium; the drift-corrected line holds"

IN_TRAINING = (
    "its decay rate depends on how large the gradients are: it is known only in training, from the optimizer's state"
)


@dataclass(frozen=True)
class Motion:
    """One optimizer under one setting of its hyper-parameters.

    Attributes:
        updates: statistics of the updates without the decay; None where there is no line.
        decay: gamma, or what the state's factor multiplies to give gamma when `from_state`.
        filtered_decay: weight decay goes through the same linear filter as the gradient (coupled L2).
        from_state: weight decay passes through a normalisation that only the optimizer's state knows.
        norm_exponent, decay_exponent, step_size, trust: as in `Line`.
        fixed_angle: the equilibrium angle where a trust ratio sets it.
        nesterov_momentum: a, where the memory can be read from the momentum buffer (see `memory_from_buffer`).
        equilibrium: False where no norm is one, whatever the decay (`reason` says why).
    """

    optimizer: str
    updates: Updates | None
    step_size: float = 0.0
    decay: float = 0.0
    from_state: bool = False
    filtered_decay: bool = False
    norm_exponent: float = 0.0
    decay_exponent: float = 0.0
    trust: Literal["whole", "gradient"] | None = None
    fixed_angle: float | None = None
    nesterov_momentum: float | None = None
    equilibrium: bool = True
    kind: Kind = "closed form"
    formula: str = "2 gamma / R"
    source: str = DERIVED
    assumptions: tuple[str, ...] = (WHITE,)
    reason: str | None = None


def no_line(optimizer: str, reason: str) -> Motion:
    """An optimizer for which no line can be drawn."""
    return Motion(optimizer, None, kind="none", reason=reason, formula="", source="", assumptions=())


def memory_from_buffer(momentum: float, alignment: float) -> float:
    r"""R of SGD with Nesterov momentum and coupled decay, from `x = <u, b>/|u|^2`: 1 + 2 a^2 x / (1 - a).

    Exact for gradients correlated in any way, where the impulse response takes them for white. Derived here: with
    `b = a b' + g + wd w`, `u = g + wd w + a b`, `w' = w - lr u` and g orthogonal to w, `s = <w, b>` is stationary at
    `s (1 - a) = wd r - a lr <u, b>`, and r = ||w||^2 changes per step by
    `-2 lr (wd r + a s) + lr^2 |u|^2 = -2 gamma r + lr^2 |u|^2 R`, gamma = lr wd/(1 - a).

    Args:
        momentum: a.
        alignment: x, of means over several steps; .812 for white gradients at a = .9.
    """
    return 1 + 2 * momentum**2 * alignment / (1 - momentum)


def line_of(motion: Motion, state_factor: float | None = None, alignment: float | None = None) -> Line:
    """The line that follows from a motion.

    Args:
        motion: of the optimizer.
        state_factor: needed where weight decay passes through the state.
        alignment: of update and momentum buffer (`memory_from_buffer`), used where the motion is Nesterov's.
    """
    if alignment is not None and motion.nesterov_momentum is not None and motion.updates is not None:
        memory = memory_from_buffer(motion.nesterov_momentum, alignment)
        if memory > 0:
            motion = replace(
                motion,
                updates=replace(motion.updates, memory=memory),
                kind="from state",
                formula="2 lr wd / [(1-a) + 2 a^2 <u,b>/|u|^2]",
                source="derived here (from the momentum buffer)",
                assumptions=tuple(ANY_GRADIENT if said == WHITE else said for said in motion.assumptions),
            )
    line = Line(
        motion.kind,
        motion.optimizer,
        motion.formula,
        motion.source,
        motion.assumptions,
        motion.reason,
        norm_exponent=motion.norm_exponent,
        decay_exponent=motion.decay_exponent,
        step_size=motion.step_size,
        updates=motion.updates,
        trust=motion.trust,
        filtered_decay=motion.filtered_decay,
    )
    if motion.updates is None:
        return replace(line, norm_exponent=None)
    memory = motion.updates.memory
    if motion.from_state and motion.decay > 0:
        if state_factor is None:
            return replace(line, memory=memory, reason=IN_TRAINING)
        gamma = motion.decay * state_factor
    else:
        gamma = motion.decay
    if motion.fixed_angle is not None:
        return replace(line, memory=memory, decay_rate=gamma, angular_update=motion.fixed_angle)
    if not motion.equilibrium:
        return replace(line, memory=memory, decay_rate=gamma)
    if not gamma < 1:
        return replace(line, memory=memory, reason=ALL_AT_ONCE.format(gamma))
    if gamma <= 0:
        return replace(line, memory=memory, decay_rate=0.0, angular_update=0.0, reason=motion.reason or NO_EQUILIBRIUM)
    return replace(line, memory=memory, decay_rate=gamma, angular_update=math.sqrt(2 * gamma / memory))
