"""The weight decay, or the learning rate, under which a recipe has a wanted angular update."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from smdtrack.notices import SmdtrackError
from smdtrack.planning.lr_schedule import line_at_peak
from smdtrack.planning.recipe import Recipe
from smdtrack.theory.line import Line

#: Relative error at which the search ends. Settings are rounded to four digits afterwards.
_TOLERANCE = 1e-9
_MOST_ITERATIONS = 80
#: Iterations that trust the proportion of squared angle and weight decay. It fails where a weight decays within the
#: optimizer's memory; then the interval is halved.
_MOST_PROPORTIONAL = 8
#: Where the search begins if the recipe has no weight decay of its own.
_FIRST_WEIGHT_DECAY = 1e-4


@dataclass(frozen=True)
class Solution:
    """A recipe with a wanted angle.

    Attributes:
        recipe: with the setting changed.
        line: of that recipe; its angular update is the wanted one.
        setting: which of the recipe's settings was changed.
    """

    recipe: Recipe
    line: Line
    setting: Literal["lr", "weight_decay"]


def solve_for_angle(recipe: Recipe, angle: float, shape: tuple[int, ...]) -> Solution:
    """Returns the recipe with the weight decay that gives an angular update at its learning rate.

    Under a trust ratio (LAMB, LARS) the angle depends on the learning rate alone, so that is changed instead.

    The squared angle is proportional to the weight decay, up to terms of higher order. The search multiplies the
    setting by the ratio that would be right without them, until the recipe predicts the wanted angle. If that leads out
    of the interval in which the setting must lie, the interval is halved instead.

    Args:
        recipe: all other settings.
        angle: wanted angular update, radian per step at the largest learning rate.
        shape: of the weight.

    Raises:
        SmdtrackError: The optimizer has no equilibrium line, or the angle is out of its reach.
    """
    setting: Literal["lr", "weight_decay"] = "weight_decay"
    current = recipe if recipe.weight_decay > 0 else replace(recipe, weight_decay=_FIRST_WEIGHT_DECAY)
    line = line_at_peak(current, shape)
    if not line.angular_update:
        # The recipe's own decay may be too strong for a line. A weak one tells whether there is any.
        current = replace(current, weight_decay=_FIRST_WEIGHT_DECAY)
        line = line_at_peak(current, shape)
    if not line.angular_update:
        raise SmdtrackError(f"{recipe.opt} has no equilibrium angle: {line.reason or 'its line is not known'}")
    if line.trust is not None:
        setting = "lr"
    exponent = 1 if setting == "lr" else 2
    too_low, too_high = 0.0, math.inf
    for iteration in range(_MOST_ITERATIONS):
        if line.angular_update and abs(line.angular_update / angle - 1) < _TOLERANCE:
            return _rounded(current, setting, angle, shape)
        value = current.lr if setting == "lr" else current.weight_decay
        if not line.angular_update or line.angular_update > angle:
            # Without a line the decay removes the whole weight in one step, which is too much as well.
            too_high = min(too_high, value)
        else:
            too_low = max(too_low, value)
        proposal = value * (angle / line.angular_update) ** exponent if line.angular_update else math.nan
        if not too_low < proposal < too_high or (iteration > _MOST_PROPORTIONAL and 0 < too_low < too_high < math.inf):
            proposal = math.sqrt(too_low * too_high)
        if not (math.isfinite(proposal) and proposal > 0):
            break
        current = replace(current, **_setting(current, setting, proposal))
        line = line_at_peak(current, shape)
    raise SmdtrackError(
        f"an angle of {angle:.4g} rad per step is out of reach for {recipe.opt}: "
        f"{line.reason or 'no setting predicts it'}"
    )


def _setting(recipe: Recipe, name: Literal["lr", "weight_decay"], value: float) -> dict[str, Any]:
    """Returns the changes that give a recipe's setting a value."""
    return {"lr": value, "min_lr": min(recipe.min_lr, value)} if name == "lr" else {"weight_decay": value}


def _rounded(recipe: Recipe, setting: Literal["lr", "weight_decay"], angle: float, shape: tuple[int, ...]) -> Solution:
    """Rounds the setting to four digits, to be written down, and checks that it still predicts the angle."""
    value = round_to_digits(getattr(recipe, setting))
    rounded = replace(recipe, **_setting(recipe, setting, value))
    line = line_at_peak(rounded, shape)
    if not line.angular_update or abs(line.angular_update / angle - 1) > 1e-3:
        raise SmdtrackError(f"an angle of {angle:.4g} rad per step is out of reach for {recipe.opt}")
    return Solution(rounded, line, setting)


def round_to_digits(value: float, digits: int = 4) -> float:
    """Returns a number rounded to significant digits."""
    return float(f"{value:.{digits - 1}e}")
