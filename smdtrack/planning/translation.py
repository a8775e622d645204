r"""The same angular update under another optimizer, batch size or length of training.

The angle of one step is `Delta^2 = 2 gamma / R`, with the decay rate gamma and the optimizer's memory R. A wanted angle
therefore fixes the product of learning rate and weight decay. A second condition fixes each of them: the equilibrium
norm stays the same.

Derived here: an update has the length `lr sqrt(S) s / ||w||^p`. S is the energy of the optimizer's filter, p the norm
exponent (1 for SGD, 0 for normalised updates) and s the size of the gradient: `||g|| ||w||` for SGD, and 1 per element
for normalised updates. At equilibrium this length is `Delta ||w||`. With the same norm before and after (primed):

$$\frac{lr'}{lr} = \frac{\Delta'}{\Delta} \sqrt{\frac{S}{S'}} \, \frac{s}{s'}$$

In SGD the noise of the gradient falls with the square root of the batch: a batch k times as large has
`s' = s / sqrt(k)`. With `Delta' = sqrt(k) Delta` this gives `lr' = k lr` for SGD and `lr' = sqrt(k) lr` for AdamW: the
linear and the square-root scaling rule.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from smdtrack.notices import SmdtrackError
from smdtrack.planning.lr_schedule import DEFAULT_DECAY_EPOCHS, SCHEDULES, line_at_peak, schedule_exponent
from smdtrack.planning.matching import equilibrium_rms, matched_angle, relative_update, typical_rms
from smdtrack.planning.recipe import ENDS_AT_MIN_LR, Recipe
from smdtrack.planning.solve import round_to_digits, solve_for_angle
from smdtrack.planning.target import SGD_LEARNING_RATE, Target
from smdtrack.planning.translation_text import explain
from smdtrack.theory.line import Line

_WITH_CYCLES = ("cosine", "tanh", "poly")
#: Settings that are lengths in epochs, and the schedules that use them.
_LENGTHS = {
    "warmup_epochs": tuple(schedule for schedule in SCHEDULES if schedule != "none"),
    "decay_epochs": ("step", "wsd", "rsqrt"),
    "decay_milestones": ("multistep",),
    "cooldown_epochs": _WITH_CYCLES,
    "lr_stable_timescale": ("rsqrt",),
}


@dataclass(frozen=True)
class Translation:
    """A recipe and its translation.

    Attributes:
        before, after: the recipes.
        line_before, line_after: their lines at the largest learning rate.
        changes: settings that differ, by name, with their new values.
        kept: what stays the same, a sentence each.
        not_kept: what cannot stay the same or does not carry over, a sentence each.
    """

    before: Recipe
    after: Recipe
    line_before: Line
    line_after: Line
    changes: dict[str, Any]
    kept: tuple[str, ...]
    not_kept: tuple[str, ...]


def translate(recipe: Recipe, target: Target, shape: tuple[int, ...] = (64, 64, 3, 3)) -> Translation:
    """Returns a recipe with the same angular update under another optimizer, batch size or length.

    Args:
        recipe: to translate.
        target: what is asked for.
        shape: of the weight for which the angle is kept.

    Raises:
        SmdtrackError: One of the optimizers has no equilibrium line, or the target contradicts itself.
    """
    before = line_at_peak(recipe, shape)
    if not before.angular_update:
        raise SmdtrackError(f"the recipe has no equilibrium angle to keep: {before.reason or 'its line is not known'}")
    factor = target.step_factor
    wanted = _wanted_angle(recipe, before, target, shape)
    changed = _with_optimizer(recipe, target)
    if target.epochs is not None:
        changed = _with_length(changed, target.epochs / recipe.epochs, target.epochs)
    if recipe.model_ema and factor != 1:
        changed = replace(changed, model_ema_decay=round_to_digits(recipe.model_ema_decay**factor))
    untouched = changed.opt == recipe.opt and math.isclose(wanted, before.angular_update) and target.batch_factor == 1
    if untouched and target.lr is None:
        after_recipe, after = changed, line_at_peak(changed, shape)
    else:
        after_recipe, after = _solve(changed, target, before, wanted, recipe, shape)
    exponents = schedule_exponent(recipe, shape), schedule_exponent(after_recipe, shape)
    # LARC's angle does not follow the learning rate while its ratio is not clipped: no schedule translates to that.
    after_recipe = _with_scaled_schedule(recipe, after_recipe, exponents[0] / exponents[1] if exponents[1] else 1.0)
    if recipe.batch_size is not None and target.batch_factor != 1:
        after_recipe = replace(after_recipe, batch_size=round(recipe.batch_size * target.batch_factor))
    changes = {
        entry.name: getattr(after_recipe, entry.name)
        for entry in fields(Recipe)
        if getattr(after_recipe, entry.name) != getattr(recipe, entry.name)
    }
    kept, not_kept = explain(
        recipe, after_recipe, before, after, target, shape, same_schedule=exponents[0] == exponents[1]
    )
    return Translation(recipe, after_recipe, before, after, changes, tuple(kept), tuple(not_kept))


def _wanted_angle(recipe: Recipe, before: Line, target: Target, shape: tuple[int, ...]) -> float:
    """Returns the angle that a step of the translated recipe shall turn, in radian."""
    factor = target.step_factor
    if target.match == "epoch" and factor != 1 and before.trust is None:
        # Exactly k times the decay per step. `matched_angle` is this angle to first order in the decay.
        line = line_at_peak(replace(recipe, weight_decay=recipe.weight_decay * factor), shape)
        if not line.angular_update:
            raise SmdtrackError(f"the decay per epoch cannot be kept at {factor:.4g} times the batch: {line.reason}")
        return line.angular_update
    return matched_angle(before, factor, target.match, target.growth)


def _solve(
    changed: Recipe, target: Target, before: Line, wanted: float, source: Recipe, shape: tuple[int, ...]
) -> tuple[Recipe, Line]:
    """Chooses the learning rate by the equilibrium norm and then the weight decay by the angle."""
    if target.lr is not None:
        changed = _at_lr(changed, target.lr)
    first = solve_for_angle(changed, wanted, shape)
    if first.setting == "lr":
        if target.lr is not None and not math.isclose(target.lr, first.recipe.lr, rel_tol=1e-3):
            raise SmdtrackError(
                f"{changed.opt} has this angle only at a learning rate of {first.recipe.lr:.6g}, not {target.lr:.6g}: "
                "its trust ratio sets the angle by the learning rate alone"
            )
        return _with_norm_of_trust_ratio(first.recipe, first.line, before, source, shape)
    if target.lr is not None:
        return first.recipe, first.line
    lr = _lr_for_norm(first.line, before, source, target.batch_factor, shape)
    if lr is None:
        lr = source.lr if before.norm_exponent == first.line.norm_exponent else SGD_LEARNING_RATE
    solution = solve_for_angle(_at_lr(changed, round_to_digits(lr)), wanted, shape)
    return solution.recipe, solution.line


def _at_lr(recipe: Recipe, lr: float) -> Recipe:
    return replace(recipe, lr=lr, min_lr=min(recipe.min_lr, lr))


def _lr_for_norm(
    after: Line, before: Line, source: Recipe, batch_factor: float, shape: tuple[int, ...]
) -> float | None:
    """Returns the learning rate that keeps the equilibrium norm; None if it cannot be told."""
    energy = None if after.updates is None else after.updates.energy
    energy_before = None if before.updates is None else before.updates.energy
    if energy is None or energy_before is None:
        return None
    if after.norm_exponent == 1:
        if before.norm_exponent != 1 or not before.angular_update:
            return None
        ratio = relative_update(after) / relative_update(before) * math.sqrt(energy_before / energy)
        return source.lr * ratio * math.sqrt(batch_factor)
    if after.norm_exponent != 0:
        return None
    rms = equilibrium_rms(before, source, shape) or typical_rms(shape)
    length = math.sqrt(math.prod(shape)) if after.optimizer == "NovoGrad" else 1.0
    return relative_update(after) * rms * length / math.sqrt(energy)


def _with_norm_of_trust_ratio(
    recipe: Recipe, line: Line, before: Line, source: Recipe, shape: tuple[int, ...]
) -> tuple[Recipe, Line]:
    """Sets LAMB's weight decay so that the equilibrium norm is kept. LARS keeps the decay that it has."""
    energy = None if line.updates is None else line.updates.energy
    if line.trust != "whole" or energy is None or line.updates is None:
        return recipe, line
    rms = equilibrium_rms(before, source, shape) or typical_rms(shape)
    decay = math.sqrt(energy) * recipe.lr * line.updates.memory / (2 * rms)
    changed = replace(recipe, weight_decay=round_to_digits(decay))
    return changed, line_at_peak(changed, shape)


def _with_optimizer(recipe: Recipe, target: Target) -> Recipe:
    """Returns the recipe under the new optimizer. Settings that belong to the old optimizer are dropped."""
    if target.opt is None or target.opt == recipe.opt:
        return replace(recipe, **target.settings)
    dropped: dict[str, Any] = {"opt_betas": None, "opt_eps": None, "opt_kwargs": {}}
    return replace(recipe, opt=target.opt, **{**dropped, **target.settings})


def _with_length(recipe: Recipe, factor: float, epochs: int) -> Recipe:
    """Returns the recipe with all its lengths in epochs multiplied, rounded to whole epochs if they were whole."""
    scaled: dict[str, Any] = {"epochs": epochs}
    if recipe.sched == "step" and recipe.decay_epochs is None:
        recipe = replace(recipe, decay_epochs=DEFAULT_DECAY_EPOCHS)
    for name, schedules in _LENGTHS.items():
        value = getattr(recipe, name)
        if not value or (name == "decay_epochs" and value < 1) or recipe.sched not in schedules:
            continue
        several = isinstance(value, tuple)
        values = [_scaled_length(entry, factor) for entry in (value if several else (value,))]
        scaled[name] = tuple(values) if several else values[0]
    return replace(recipe, **scaled)


def _scaled_length(value: float, factor: float) -> float:
    return max(1, round(value * factor)) if value == int(value) else round_to_digits(value * factor, 3)


def _with_scaled_schedule(source: Recipe, recipe: Recipe, exponent: float) -> Recipe:
    """Scales the schedule's other learning rates, so that the angle falls and rises by the same factors as before.

    Args:
        source: the recipe before.
        recipe: its translation so far.
        exponent: power of the old relative learning rate that gives the new one.
    """

    def scaled(lr: float) -> float:
        return round_to_digits(recipe.lr * (lr / source.lr) ** exponent) if lr > 0 else lr

    changes: dict[str, Any] = {}
    if source.warms_up:
        changes["warmup_lr"] = scaled(source.warmup_lr)
    if source.sched in ENDS_AT_MIN_LR or source.sched == "plateau":
        changes["min_lr"] = scaled(source.min_lr)
    if exponent != 1:
        if source.sched in ("step", "multistep", "plateau"):
            changes["decay_rate"] = round_to_digits(source.decay_rate**exponent)
        elif source.sched == "poly":
            changes["decay_rate"] = round_to_digits(source.decay_rate * exponent)
    return replace(recipe, **changes)
