"""Which angle and which norm a translated recipe shall have: pure arithmetic on equilibrium lines."""

import math

from smdtrack.notices import SmdtrackError
from smdtrack.planning.recipe import Recipe
from smdtrack.planning.target import Match
from smdtrack.theory.line import Line


def matched_angle(line: Line, factor: float, match: Match, growth: float | None = None) -> float:
    """Returns the angle of one new step, in radian, if it covers as many images as `factor` old steps.

    "epoch": the decay per image stays the same, hence `Delta' = sqrt(k) Delta` up to terms of higher order in gamma.
    Over many steps the weight then turns as far per image as before: over n old steps the squared angle tends to
    `2 gamma n`, whatever the momentum.
    "step": the angle of one step stays the same.
    "k-steps": the angle of k old steps with gradients uncorrelated in time, `Delta' = theta_k` (see `Line.lag_angle`).

    Args:
        line: before.
        factor: k; below 1 if the new step covers fewer images.
        match: see `Target`.
        growth: measured squared angle over k steps over that of one, for "k-steps"; None for that of white gradients.

    Raises:
        SmdtrackError: The line has no equilibrium, or the memory that "k-steps" needs is not known.
    """
    if not line.angular_update:
        raise SmdtrackError(f"{line.optimizer} has no equilibrium angle")
    if match == "step" or factor == 1:
        return line.angular_update
    if match == "epoch":
        return line.angular_update * math.sqrt(factor)
    if growth is None:
        if line.updates is None:
            raise SmdtrackError(f"the angle of {line.optimizer} over several steps is not known")
        growth = growth_over(line, max(factor, 1 / factor))
    if factor > 1:
        return math.acos(math.exp(-(line.angular_update**2) * growth / 2))
    # The reverse: 1/k new steps shall turn as far as one old step.
    return math.sqrt(-2 * math.log(math.cos(line.angular_update)) / growth)


def growth_over(line: Line, steps: float) -> float:
    """Returns k R_k: the squared sum of k updates over the square of one, for white gradients.

    Between whole numbers k R_k is linear in k, since `k R_k = k + 2 sum_{j<k} (k - j) rho_j`.
    """
    assert line.updates is not None
    below = math.floor(steps)
    lower, upper = (count * line.updates.memory_over(count) for count in (below, below + 1))
    return lower + (steps - below) * (upper - lower)


def typical_rms(shape: tuple[int, ...]) -> float:
    """Returns the RMS of a weight's elements after He initialisation, sqrt(2 / fan_out).

    Source: He et al., 1502.01852, equation 14; fan_out as in timm's ResNets: output channels times kernel size.
    """
    return math.sqrt(2 / (shape[0] * math.prod(shape[2:])))


def relative_update(line: Line) -> float:
    """Returns the length of an update over the norm at equilibrium, `sqrt(2 gamma / R)` to first order in gamma."""
    return math.sqrt(2 * (line.decay_rate or 0.0) / (line.memory or 1.0))


def equilibrium_rms(line: Line, recipe: Recipe, shape: tuple[int, ...]) -> float | None:
    """Returns the RMS of a weight's elements at equilibrium; None if it depends on the size of the gradients.

    Derived here: a normalised update has elements of RMS `lr sqrt(S)` and a length of `sqrt(2 gamma/R) ||w||`.
    LAMB's trust ratio is ||w|| over the length of the normalised update, and it settles where the decay balances the
    growth, at `lr R / (2 wd)`.
    """
    if line.updates is None or line.updates.energy is None or not line.angular_update:
        return None
    if line.trust == "whole" and recipe.weight_decay > 0:
        return math.sqrt(line.updates.energy) * recipe.lr * line.updates.memory / (2 * recipe.weight_decay)
    if line.norm_exponent != 0 or line.trust is not None:
        return None
    rms = (line.step_size or recipe.lr) * math.sqrt(line.updates.energy) / relative_update(line)
    # NovoGrad divides by the norm of the whole gradient instead of its elements' size.
    return rms / math.sqrt(math.prod(shape)) if line.optimizer == "NovoGrad" else rms
