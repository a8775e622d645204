"""The reference line of one weight under one setting of the hyper-parameters."""

import math
from dataclasses import dataclass, field
from typing import Literal

from smdtrack.theory.updates import Updates

Kind = Literal["closed form", "from state", "calibrated", "approximate", "none"]


@dataclass(frozen=True)
class Line:
    r"""What theory says of one weight: angle, norm, time constant, angle over k steps.

    Everything follows from `w_{t+1} = (1 - gamma) w_t - u_t` with u orthogonal to w but for the optimizer's memory:

    $$\Delta^2 = \frac{2\gamma + d\ln\|w\|^2/dt}{R}, \qquad \|w\|^2_{eq} = \frac{|u|^2 R}{2\gamma}$$

    Derived here: ||w||^2 changes per step by `|u|^2 R - 2 gamma ||w||^2` (see `updates`); divide by ||w||^2 and write
    the angular update `Delta = |u| / ||w||`. Assumes gradients that are uncorrelated in time unless `assumptions` says
    otherwise, angles that are small, and a learning rate that changes slowly against the optimizer's memory.

    Attributes:
        kind: how the line is known; "none" comes with a `reason`.
        optimizer: name of the family.
        formula: for people.
        source: paper and equation, or "derived here".
        assumptions: what limits it.
        reason: why there is no line (kind "none"), or why there is no equilibrium; None otherwise.
        decay_rate: gamma, the relative shrinkage of the weight per step; None where only the state tells.
        memory: R.
        norm_exponent: p where |u| ~ ||w||^-p at a fixed effective gradient ||g|| ||w||: 1 for SGD, 0 for normalised
            updates, -1 where a trust ratio makes the step proportional to the norm.
        decay_exponent: q where gamma ~ ||w||^q: 0 unless weight decay passes through the normalisation.
        angular_update: at equilibrium, radian per optimizer step (RMS); None where there is no equilibrium.
        updates: statistics of the updates; None where there is no line.
        step_size: multiplies the filtered gradient (lr, as a rule): |u| = step_size sqrt(S) |gradient|.
        filtered_decay: weight decay passes through the momentum (coupled L2).
        trust: for trust ratios: "whole" (LAMB: the step is lr ||w||) or "gradient" (LARS: before decay and momentum).
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
    updates: Updates | None = field(default=None, repr=False)
    step_size: float | None = None
    trust: Literal["whole", "gradient"] | None = None
    filtered_decay: bool = False

    def drift_corrected(self, log_norm2_drift: float) -> float | None:
        """The line at the present rate of change of the norm: sqrt(max(0, (2 gamma + d ln||w||^2/dt) / R)).

        Derived here to second order in gamma, for norms far above equilibrium, where both terms all but cancel: under
        steady updates ||w||^2 nears its equilibrium `|u|^2 R/(2 gamma)` at a rate c, so that
        `Delta^2 = (2 gamma/R) (1 + drift/c)`, c = -2 ln(1 - gamma), and with decay inside the momentum, which the pull
        leaves with the mean delay k of the filter, -2 ln(1 - gamma (1 + gamma k)).

        Holds out of equilibrium, also without weight decay. With a trust ratio the step follows the norm and the
        present angle is (LAMB) or solves (LARS, see `trust_ratio`) a line of its own.

        Args:
            log_norm2_drift: change of ln ||w||^2 per optimizer step.
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
        """The norm at which the weight would stop growing and shrinking under the gradients measured now.

        Derived here: at a fixed effective gradient the angle goes as ||w||^-(1+p) and the squared line as ||w||^q, so
        that `norm * (angle / line)^(1 / (1 + p + q/2))` is where they meet. For SGD this is
        `||w||^4 = H^2 C^2 / (2 gamma)`, for AdamW `||w||^2 = lr d c / (2 wd)`. The angle is preferred to the gradient
        because it carries the gradients' correlation; without one (None, 0) an SGD-like weight falls back on C.

        Args:
            norm: RMS of ||w|| over a window.
            angular_update: RMS of the angle over the same window, radian per step.
            effective_gradient: RMS of ||g|| ||w|| over the same window.
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
        """Steps in which a deviation of the norm from its equilibrium falls by e.

        Derived here: `dr/dt = -2 gamma r + A r^-p` with gamma ~ r^(q/2), r = ||w||^2, linearised at equilibrium. It is
        `1/(4 gamma)` = (1-a)/(4 lr wd) for SGD (exact for ||w||^4) and `1/(2 gamma)` for AdamW (exact for ||w||^2).
        """
        if not self.decay_rate or not self.angular_update or self.norm_exponent is None:
            return None
        stiffness = 2 * (1 + self.norm_exponent) + self.decay_exponent
        return 1 / (self.decay_rate * stiffness) if stiffness > 0 else None

    def lag_angle(self, steps: int) -> float | None:
        """Angle between the weight now and `steps` steps later, at equilibrium, in radian.

        Derived here: the k updates add up to `|u|^2 k R_k` with R_k = 1 + 2 sum_{j<k} (1 - j/k) rho_j, and a diffusion
        on the sphere that has gone theta keeps a cosine of exp(-theta^2/2).
        """
        if not self.angular_update or self.updates is None:
            return None
        straight = self.angular_update**2 * steps * self.updates.memory_over(steps)
        return math.acos(max(-1.0, min(1.0, math.exp(-straight / 2))))

    def linear_scaling_ratio(self, factor: int) -> float | None:
        """theta_k at batch B over the angle of one step at batch kB and k times the learning rate: sqrt(R_k).

        1 would be perfect linear scaling; with momentum it is more (1.88, 3.14, 4.02 at k = 4, 16, 64 for a = .9),
        bounded by sqrt(k) and, for large k, by sqrt(R).
        """
        return None if self.updates is None else math.sqrt(self.updates.memory_over(factor))
