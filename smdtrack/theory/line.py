"""The reference line of one weight under one setting of the hyper-parameters."""

import math
from dataclasses import dataclass, field
from typing import Literal

from smdtrack.theory.update_statistics import UpdateStatistics

#: How a line is known: a formula of the hyper-parameters; read from the optimizer's state during training; measured by
#: running the optimizer on noise; taken over without proof; not at all.
Kind = Literal["closed form", "from state", "calibrated", "approximate", "none"]


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
    optimizer's memory adds:

    $$\Delta^2 = \frac{2\gamma + d\ln\|w\|^2/dt}{R}, \qquad \|w\|^2_{eq} = \frac{|u|^2 R}{2\gamma}$$

    Derived here: ||w||^2 changes per step by `|u|^2 R - 2 gamma ||w||^2` (see `update_statistics`). Divide by ||w||^2
    and write `Delta = |u| / ||w||` for the angular update. Unless `assumptions` says otherwise, it is assumed that
    gradients are uncorrelated in time, that angles are small, and that the learning rate changes slowly compared with
    the optimizer's memory.

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
        filtered_decay: Whether weight decay passes through the momentum (coupled L2).
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
    filtered_decay: bool = False

    def drift_corrected(self, log_norm2_drift: float) -> float | None:
        """Returns the angle in radian per step at the present rate of change of the norm; None if there is no line.

        It is `sqrt(max(0, (2 gamma + d ln||w||^2/dt) / R))` and holds out of equilibrium, also without weight decay.
        With a trust ratio the step follows the norm: LAMB's angle does not depend on the drift, and LARS's solves an
        equation of its own (see `rules_trust`).

        Derived here to second order in gamma, because far above equilibrium the two terms nearly cancel. Under steady
        updates ||w||^2 approaches its equilibrium `|u|^2 R/(2 gamma)` at a rate c, so that
        `Delta^2 = (2 gamma/R) (1 + drift/c)` with c = -2 ln(1 - gamma). Decay inside the momentum acts with the mean
        delay k of the filter: then c = -2 ln(1 - gamma (1 + gamma k)).

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
        return math.sqrt(max(0.0, (2 * self.decay_rate + log_norm2_drift * self._relaxation) / self.memory))

    @property
    def _relaxation(self) -> float:
        """2 gamma / c, nearly 1; see `drift_corrected`."""
        if not self.decay_rate or self.decay_rate >= 0.5:
            return 1.0
        delay = self.updates.delay if self.filtered_decay and self.updates is not None else 0.0
        rate = self.decay_rate * (1 + self.decay_rate * delay)
        return -self.decay_rate / math.log1p(-rate) if rate < 1 else 1.0

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

    def lag_angle(self, steps: int) -> float | None:
        """Returns the angle in radian between the weight now and `steps` steps later, at equilibrium.

        Derived here: the sum of k updates has the squared length `|u|^2 k R_k`, R_k = 1 + 2 sum_{j<k} (1 - j/k) rho_j.
        A diffusion on the sphere over the distance theta leaves a mean cosine of exp(-theta^2/2).
        """
        if not self.angular_update or self.updates is None:
            return None
        straight = self.angular_update**2 * steps * self.updates.memory_over(steps)
        return math.acos(max(-1.0, min(1.0, math.exp(-straight / 2))))

    def linear_scaling_ratio(self, factor: int) -> float | None:
        """Returns sqrt(R_k): how much further k steps turn a weight than one step at k times batch size and lr.

        1 would be perfect linear scaling. With momentum it is more: 1.88, 3.14, 4.02 at k = 4, 16, 64 for a = .9. It is
        at most sqrt(k) and approaches sqrt(R) for large k.
        """
        return None if self.updates is None else math.sqrt(self.updates.memory_over(factor))
