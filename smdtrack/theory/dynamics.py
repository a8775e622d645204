"""How an optimizer moves a scale-invariant weight, in the few terms that the theory needs, and the line that follows.

A rule (see `rules_sgd` and its neighbours) turns hyper-parameters into `Dynamics`; `line_of` turns those into a `Line`.
"""

from dataclasses import dataclass, replace
from typing import Literal

from smdtrack.theory.finite_decay import overlap
from smdtrack.theory.line import Kind, Line, LineDescription
from smdtrack.theory.update_statistics import UpdateStatistics

DERIVED = "derived here (general line: R from the impulse response)"
ANY_GRADIENT = "exact for any autocorrelation of the gradients"
WHITE = "gradients uncorrelated in time"
ALL_AT_ONCE = "weight decay removes the whole weight in one step (gamma = {:.3g}): there is no equilibrium"
NO_EQUILIBRIUM = "weight decay is 0: the norm only grows, there is no equilibrium; the drift-corrected line holds"
IN_TRAINING = (
    "its decay rate depends on how large the gradients are: it is known only in training, from the optimizer's state"
)


@dataclass(frozen=True)
class Dynamics:
    """How one optimizer moves a weight of one shape under one setting of its hyper-parameters.

    The last six attributes describe the line in words. A rule sets those that depend on the hyper-parameters and leaves
    the others None; `described` then takes them from the optimizer's record.

    Attributes:
        updates: Statistics of the updates without weight decay; None if there is no line.
        step_size: What multiplies the filtered gradient, as a rule the learning rate.
        decay: gamma, the relative shrinking of the weight per step; gamma over the state factor if `decay_needs_state`.
        decay_needs_state: Whether weight decay is divided by a denominator that only the optimizer's state knows.
        coupled: Whether weight decay is part of the gradient, so that it passes through the optimizer's filter.
        first_order: Whether the line is known to first order in the decay rate only.
        norm_exponent: As in `Line`.
        decay_exponent: As in `Line`.
        trust: As in `Line`.
        fixed_angle: The angle per step in radian where a trust ratio sets it; None elsewhere.
        nesterov_momentum: a, if the memory can be read from the momentum buffer (see `memory_from_buffer`).
        has_equilibrium: False if no norm is an equilibrium whatever the weight decay (`reason` says why).
        title: The optimizer's name for people.
        kind: How the line is known.
        formula: The squared angle at equilibrium.
        source: Paper and equation, or "derived here".
        assumptions: What the line rests on.
        reason: Why there is no line, or no equilibrium.
    """

    updates: UpdateStatistics | None
    step_size: float = 0.0
    decay: float = 0.0
    decay_needs_state: bool = False
    coupled: bool = False
    first_order: bool = False
    norm_exponent: float = 0.0
    decay_exponent: float = 0.0
    trust: Literal["whole", "gradient"] | None = None
    fixed_angle: float | None = None
    nesterov_momentum: float | None = None
    has_equilibrium: bool = True
    title: str | None = None
    kind: Kind | None = None
    formula: str | None = None
    source: str | None = None
    assumptions: tuple[str, ...] | None = None
    reason: str | None = None


def no_line(reason: str, title: str | None = None) -> Dynamics:
    """Returns the dynamics of an optimizer for which no line can be drawn."""
    return Dynamics(None, title=title, kind="none", formula="", source="", assumptions=(), reason=reason)


def memory_from_buffer(momentum: float, alignment: float) -> float:
    r"""Returns R of SGD with Nesterov momentum a and coupled decay, from the optimizer's momentum buffer.

    It is `1 + 2 a^2 x / (1 - a)` with the alignment `x = <u, b>/|u|^2` of update u and buffer b. It holds for gradients
    correlated in any way, where the impulse response holds for white ones only.

    Derived here: with `b = a b' + g + wd w`, `u = g + wd w + a b`, `w' = w - lr u` and g orthogonal to w, the inner
    product `s = <w, b>` is stationary at `s (1 - a) = wd r - a lr <u, b>`. Then r = ||w||^2 changes per step by
    `-2 lr (wd r + a s) + lr^2 |u|^2 = -2 gamma r + lr^2 |u|^2 R` with gamma = lr wd/(1 - a).

    Args:
        momentum: a.
        alignment: x, from the means of both inner products over several steps; .812 for white gradients at a = .9.
    """
    return 1 + 2 * momentum**2 * alignment / (1 - momentum)


def with_buffer(dynamics: Dynamics) -> Dynamics:
    """Returns the dynamics in the words of the line that is read from the momentum buffer, if there is one."""
    if dynamics.nesterov_momentum is None or dynamics.updates is None:
        return dynamics
    return replace(
        dynamics,
        kind="from state",
        formula="2 lr wd / [(1-a) + 2 a^2 <u,b>/|u|^2]",
        source="derived here (from the momentum buffer)",
        assumptions=tuple(ANY_GRADIENT if text == WHITE else text for text in dynamics.assumptions or ()),
    )


def description_of(dynamics: Dynamics) -> LineDescription:
    """Returns the words for the line of these dynamics, once the state that it may need is known."""
    return LineDescription(
        optimizer=dynamics.title or "",
        kind=dynamics.kind or "closed form",
        formula=dynamics.formula or "",
        source=dynamics.source or "",
        assumptions=dynamics.assumptions or (),
        reason=dynamics.reason or _reason(dynamics),
    )


def line_of(dynamics: Dynamics, state_factor: float | None = None, alignment: float | None = None) -> Line:
    """Returns the line that follows from an optimizer's dynamics.

    Args:
        dynamics: Of the optimizer under its present hyper-parameters.
        state_factor: `<w, w/denom>/<w, w>`, needed if weight decay is divided by a denominator from the state.
        alignment: Of update and momentum buffer (see `memory_from_buffer`), used for Nesterov momentum.
    """
    if alignment is not None and dynamics.nesterov_momentum is not None and dynamics.updates is not None:
        memory = memory_from_buffer(dynamics.nesterov_momentum, alignment)
        if memory > 0:
            dynamics = replace(with_buffer(dynamics), updates=replace(dynamics.updates, memory=memory))
    words = description_of(dynamics)
    line = Line(
        words.kind,
        words.optimizer,
        words.formula,
        words.source,
        words.assumptions,
        dynamics.reason,
        norm_exponent=dynamics.norm_exponent,
        decay_exponent=dynamics.decay_exponent,
        step_size=dynamics.step_size,
        updates=dynamics.updates,
        trust=dynamics.trust,
        coupled=dynamics.coupled,
    )
    updates = dynamics.updates
    if updates is None:
        return replace(line, norm_exponent=None)
    line = replace(line, memory=updates.memory)
    if dynamics.decay_needs_state and dynamics.decay > 0:
        if state_factor is None:
            return replace(line, reason=IN_TRAINING)
        dynamics = replace(dynamics, decay=dynamics.decay * state_factor, decay_needs_state=False)
    gamma = dynamics.decay
    line = replace(line, decay_rate=gamma)
    if dynamics.fixed_angle is not None:
        return replace(line, angular_update=dynamics.fixed_angle)
    if not gamma < 1:
        return replace(line, decay_rate=None, reason=_reason(dynamics))
    if not dynamics.coupled and not dynamics.first_order:
        line = replace(line, overlap=overlap(updates.autocorrelation, gamma))
    if not dynamics.has_equilibrium:
        return line
    if gamma <= 0:
        return replace(line, decay_rate=0.0, angular_update=0.0, reason=dynamics.reason or _reason(dynamics))
    return replace(line, angular_update=line.drift_corrected(0.0))


def _reason(dynamics: Dynamics) -> str | None:
    """Returns why there is no equilibrium, or none yet, as far as the rule has not said it."""
    if dynamics.updates is None or dynamics.fixed_angle is not None or not dynamics.has_equilibrium:
        return None
    if dynamics.decay <= 0:
        return NO_EQUILIBRIUM
    if dynamics.decay_needs_state:
        return IN_TRAINING
    return None if dynamics.decay < 1 else ALL_AT_ONCE.format(dynamics.decay)
