"""The reference line of one weight under one setting of the hyper-parameters."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from smdtrack.theory import filters, finite_decay
from smdtrack.theory.update_statistics import UpdateStatistics

#: How a line is known: a formula of the hyper-parameters; read from the optimizer's state during training; measured by
#: running the optimizer on noise; taken over without proof; not at all.
Kind = Literal["closed form", "from state", "calibrated", "approximate", "none"]
#: Drift of ln ||w||^2 per step below which it does not change the memory of sign updates: 1 % within 100 steps.
_SLOW_DRIFT = 1e-4


@dataclass(frozen=True)
class LineDescription:
    """A line in words, without its numbers.

    Attributes:
        optimizer: The optimizer's name for people.
        kind: How the line is known; "none" comes with a `reason`.
        formula: The squared angular update at equilibrium, in terms of the hyper-parameters.
        source: Paper and equation, or "derived here".
        assumptions: What the line rests on.
        reason: Why there is no line, or no equilibrium, or none before training; None otherwise.
    """

    optimizer: str
    kind: Kind
    formula: str = ""
    source: str = ""
    assumptions: tuple[str, ...] = ()
    reason: str | None = None


@dataclass(frozen=True)
class Line:
    r"""What theory predicts for one weight: its angle per step, norm, time constant and angle over many steps.

    Everything follows from `w_{t+1} = (1 - gamma) w_t - u_t`, where u is orthogonal to w except for what the
    optimizer's memory adds. To first order in the decay rate gamma:

    $$\Delta^2 = \frac{2\gamma + d\ln\|w\|^2/dt}{R}, \qquad \|w\|^2_{eq} = \frac{|u|^2 R}{2\gamma}$$

    Derived here: ||w||^2 changes per step by `|u|^2 R - 2 gamma ||w||^2` (see `update_statistics`). Divide by ||w||^2
    and write `Delta = |u| / ||w||` for the angular update. `formula` states this first order. The numbers hold for any
    decay rate and angle (see `finite_decay`). Unless `assumptions` says otherwise, it is assumed that gradients are
    uncorrelated in time and that the learning rate changes slowly compared with the optimizer's memory.

    Attributes:
        kind: How the line is known; "none" comes with a `reason`.
        optimizer: The optimizer's name for people.
        formula: The squared angular update at equilibrium, in terms of the hyper-parameters.
        source: Paper and equation, or "derived here".
        assumptions: What the line rests on.
        reason: Why there is no line (kind "none"), or why there is no equilibrium; None otherwise.
        decay_rate: gamma, the relative shrinking of the weight per step; None if only the optimizer's state tells it.
        memory: R, by how much the growth of ||w||^2 exceeds that under uncorrelated updates.
        norm_exponent: p in |u| ~ ||w||^-p at a fixed effective gradient ||g|| ||w||: 1 for SGD, 0 for normalised
            updates, -1 if a trust ratio makes the step proportional to the norm.
        decay_exponent: q in gamma ~ ||w||^q: 0 unless weight decay passes through the normalisation.
        angular_update: At equilibrium, radian per optimizer step (RMS); None if there is no equilibrium.
        updates: Statistics of the updates; None if there is no line.
        step_size: What multiplies the filtered gradient, as a rule lr: |u| = step_size sqrt(S) |gradient|.
        trust: For trust ratios, "whole" (LAMB: the step is lr ||w||) or "gradient" (LARS: before decay and momentum).
        coupled: Whether weight decay is part of the gradient, so that it passes through the optimizer's filter.
        overlap: A of `finite_decay`, if weight decay multiplies the weight; None if it is part of the gradient, if a
            trust ratio sets the step, in Lookahead, or if the decay rate is not known.
    """

    kind: Kind
    optimizer: str
    formula: str = ""
    source: str = ""
    assumptions: tuple[str, ...] = ()
    reason: str | None = None
    decay_rate: float | None = None
    memory: float | None = None
    norm_exponent: float | None = None
    decay_exponent: float = 0.0
    angular_update: float | None = None
    updates: UpdateStatistics | None = field(default=None, repr=False)
    step_size: float | None = None
    trust: Literal["whole", "gradient"] | None = None
    coupled: bool = False
    overlap: float | None = None

    def drift_corrected(self, log_norm2_drift: float) -> float | None:
        """Returns the angle in radian per step at the present rate of change of the norm; None if there is no line.

        To first order it is `sqrt(max(0, (2 gamma + d ln||w||^2/dt) / R))`. It holds out of equilibrium, also without
        weight decay. With a trust ratio the step follows the norm: LAMB's angle does not depend on the drift, and
        LARS's solves an equation of its own (see `rules_trust`).

        If weight decay multiplies the weight, the angle is that of `finite_decay`. If it is part of the gradient, the
        squared chord is `(2 gamma/R) (1 + drift/c)`. Derived here to second order in gamma, because far above
        equilibrium the two terms nearly cancel: c is the rate at which ||w||^2 approaches its equilibrium under steady
        updates. Decay inside a filter acts with the filter's mean delay k: c = -2 ln(1 - gamma (1 + gamma k)).

        Args:
            log_norm2_drift: Change of ln ||w||^2 per optimizer step.
        """
        if self.memory is None or self.decay_rate is None:
            return None
        if self.trust == "whole":
            return self.angular_update
        if self.trust == "gradient" and self.updates is not None and self.step_size:
            pull = self.step_size * self.updates.gain
            share = (math.sqrt(max(0.0, 1 + 2 * pull + log_norm2_drift)) - 1) / pull
            return max(0.0, pull * share / math.sqrt(self.memory))
        if self.overlap is not None:
            return finite_decay.angle(self.decay_rate, self._overlap_at(log_norm2_drift), math.expm1(log_norm2_drift))
        squared = 2 * self.decay_rate + log_norm2_drift * self.relaxation
        return finite_decay.angle_of_chord(squared / self.memory)

    def _overlap_at(self, log_norm2_drift: float) -> float:
        """Returns A at a drift: for signs of filtered gradients it depends on how fast the norm changes."""
        assert self.overlap is not None
        if self.updates is None or not self.updates.are_signs or abs(log_norm2_drift) < _SLOW_DRIFT:
            return self.overlap
        drifting = filters.signs_under_drift(self.updates, log_norm2_drift)
        decay_rate = self.decay_rate or 0.0
        still = finite_decay.overlap(self.updates.autocorrelation, decay_rate)
        return self.overlap * finite_decay.overlap(drifting.autocorrelation, decay_rate) / still

    @property
    def relaxation(self) -> float:
        """2 gamma / c of decay that is part of the gradient, nearly 1; see `drift_corrected`."""
        if not self.decay_rate or self.decay_rate >= 0.5:
            return 1.0
        delay = self.updates.delay if self.coupled and self.updates is not None else 0.0
        rate = self.decay_rate * (1 + self.decay_rate * delay)
        return -self.decay_rate / math.log1p(-rate) if rate < 1 else 1.0

    @property
    def drift_memory(self) -> float | None:
        """The drift of ln ||w||^2 per step over the rise of the squared angle that it causes: R to first order.

        Derived here from `finite_decay`: the squared chord is `x (1 - 2 g A) + g^2`, and x rises by
        `growth/(1 + 2 (1 - g) A)`.
        """
        if self.overlap is None or self.decay_rate is None:
            return self.memory
        rest = 1 - 2 * self.decay_rate * self.overlap
        return (1 + 2 * (1 - self.decay_rate) * self.overlap) / rest if rest > 0 else self.memory

    @property
    def expected_memory(self) -> float | None:
        """What `measured_memory` gives under white gradients: R, less what decay forgets of the older updates."""
        return self.memory if self.overlap is None else 1 + 2 * self.overlap

    def with_memory(self, memory: float) -> "Line":
        """Returns this line for updates with another memory R, as measured by `measured_memory` over earlier steps.

        Args:
            memory: R, larger than 0.
        """
        if self.memory is None or self.decay_rate is None or self.trust is not None or not memory > 0:
            return self
        line = replace(self, memory=memory, overlap=None if self.overlap is None else (memory - 1) / 2)
        return replace(line, angular_update=line.drift_corrected(0.0)) if self.angular_update else line

    def with_constant_gradient_norm(self) -> "Line":
        """Returns this line for gradients that are clipped to the same norm at every step.

        The update then no longer depends on ||w||: p = 0 instead of 1. The angle at equilibrium stays the same. The
        time constant doubles, and the equilibrium norm and the factor of `rescale_factor` change. If all weights are
        clipped by their common norm, this holds for weights whose norms change together.
        """
        return replace(self, norm_exponent=0.0) if self.norm_exponent == 1.0 else self

    def equilibrium_norm(
        self,
        norm: float,
        angular_update: float | None,
        effective_gradient: float | None = None,
    ) -> float | None:
        """Returns the norm at which the weight would neither grow nor shrink under the gradients measured now.

        Derived here: at a fixed effective gradient the angle goes as ||w||^-(1+p) and the squared line as ||w||^q. They
        meet at `norm * (angle / line)^(1 / (1 + p + q/2))`. For SGD this is `||w||^4 = H^2 C^2 / (2 gamma)`, for AdamW
        `||w||^2 = lr d c / (2 wd)`. The angle is preferred to the gradient because it contains the effect of correlated
        gradients. Without an angle, the effective gradient C is used for SGD-like optimizers.

        Args:
            norm: RMS of ||w|| over a window.
            angular_update: RMS of the angle over the same window, radian per step.
            effective_gradient: RMS of ||g|| ||w|| over the same window.

        Returns:
            The norm, or None if it is not known or a trust ratio ties the step to the norm.
        """
        if not self.angular_update or self.norm_exponent is None or self.trust is not None:
            return None
        if angular_update:
            exponent = 1 / (1 + self.norm_exponent + self.decay_exponent / 2)
            return float(norm * (angular_update / self.angular_update) ** exponent)
        if effective_gradient and self.norm_exponent == 1 and self.step_size and self.updates and self.decay_rate:
            pull = self.step_size * self.updates.gain * effective_gradient
            return float((pull**2 / (2 * self.decay_rate)) ** 0.25)
        return None

    @property
    def time_constant(self) -> float | None:
        """Number of steps in which a deviation of the norm from its equilibrium falls by a factor of e.

        Derived here: `dr/dt = -2 gamma r + A r^-p` with gamma ~ r^(q/2), r = ||w||^2, linearised at equilibrium. It is
        `1/(4 gamma)` = (1-a)/(4 lr wd) for SGD (exact for ||w||^4) and `1/(2 gamma)` for AdamW (exact for ||w||^2).
        """
        if not self.decay_rate or not self.angular_update or self.norm_exponent is None:
            return None
        stiffness = 2 * (1 + self.norm_exponent) + self.decay_exponent
        return 1 / (self.decay_rate * stiffness) if stiffness > 0 else None

    def lag_angle(self, steps: int, angular_update: float | None = None) -> float | None:
        """Returns the angle in radian between the weight now and `steps` steps later.

        Derived here: the sum of k updates has the squared length `|u|^2 k R_k`, R_k = 1 + 2 sum_{j<k} (1 - j/k) rho_j.
        A diffusion on the sphere over the distance theta leaves a mean cosine of exp(-theta^2/2). At equilibrium under
        decay that multiplies the weight, the cosine of `finite_decay.cosine_after` is used, which is exact.

        Args:
            steps: k.
            angular_update: Radian per step, measured or drift-corrected; None for that at equilibrium. Divided by the
                angle that follows from the measured one, a measured angle over k steps shows by how much correlated
                gradients shorten the path.
        """
        if self.updates is None:
            return None
        if angular_update is None and self.angular_update and self.overlap is not None and self.decay_rate:
            relative = finite_decay.relative_update(self.decay_rate, self.overlap)
            cosine = finite_decay.cosine_after(steps, self.updates.autocorrelation, self.decay_rate, relative)
            return math.acos(max(-1.0, min(1.0, cosine)))
        per_step = self.angular_update if angular_update is None else angular_update
        if not per_step:
            return None
        straight = per_step**2 * steps * self.updates.memory_over(steps)
        return math.acos(max(-1.0, min(1.0, math.exp(-straight / 2))))

    def linear_scaling_ratio(self, factor: int) -> float | None:
        """Returns sqrt(R_k): how much further k steps turn a weight than one step at k times batch size and lr.

        1 would be perfect linear scaling. With momentum it is more: 1.88, 3.14, 4.02 at k = 4, 16, 64 for a = .9. It is
        at most sqrt(k) and approaches sqrt(R) for large k.
        """
        return None if self.updates is None else math.sqrt(self.updates.memory_over(factor))
