"""A recipe's optimizer and the learning rate of each of its steps, both made by timm's own factories."""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from smdtrack.names import did_you_mean
from smdtrack.notices import SmdtrackError, first_line
from smdtrack.planning import timm_parts
from smdtrack.planning.recipe import Recipe
from smdtrack.theory.family import identify
from smdtrack.theory.line import Line

SCHEDULES = ("cosine", "tanh", "step", "multistep", "poly", "plateau", "wsd", "rsqrt", "constant", "none")
#: timm's default for the epochs between the drops of a step schedule.
DEFAULT_DECAY_EPOCHS = 90
#: Segments in which a schedule that changes at every update is computed at most. More show nothing new in a table or a
#: plot, and each costs one evaluation of the line.
_MOST_SEGMENTS = 4000
#: Constructor arguments that a recipe sets by other names, so that `opt_kwargs` must not set them again.
_SET_ELSEWHERE = {"lr": "lr", "weight_decay": "weight_decay", "momentum": "momentum", "opt": "opt"}


@dataclass(frozen=True)
class LrSegment:
    """Consecutive optimizer steps at one learning rate.

    Attributes:
        epoch: where the segment begins, counted from 0; a fraction within an epoch.
        steps: number of optimizer steps.
        lr: learning rate in all of them.
    """

    epoch: float
    steps: int
    lr: float


def check_optimizer(name: str) -> None:
    """Raises `SmdtrackError`, with near names, if timm does not know the optimizer or cannot create it here."""
    known = [str(entry) for entry in timm_parts.optim().list_optimizers()]
    bare = name.lower().removeprefix("lookahead_")
    if bare not in known:
        hint = did_you_mean(bare, known) or "`smdtrack predict --list` shows all of them"
        raise SmdtrackError(f"timm has no optimizer {name!r}; {hint}")
    if isinstance(_info(name).opt_class, str):
        # An optimizer of another package. The catalogue imports the whole of timm, so it is asked only about these.
        from smdtrack.theory.catalogue import absent

        missing = absent(bare)
        if missing:
            raise SmdtrackError(f"optimizer {name!r} {missing}")


def check_schedule(name: str) -> None:
    """Raises `SmdtrackError`, with near names, for a schedule that no version of timm has."""
    if name not in SCHEDULES:
        hint = did_you_mean(name, SCHEDULES) or f"schedules are {', '.join(SCHEDULES)}"
        raise SmdtrackError(f"timm has no schedule {name!r}; {hint}")


def make_optimizer(recipe: Recipe, shape: tuple[int, ...]) -> Optimizer:
    """Returns the recipe's optimizer over one weight of the given shape, which holds no data.

    Raises:
        SmdtrackError: The optimizer refuses its settings; the message quotes it.
    """
    timm_optim = timm_parts.optim()
    arguments = {**timm_optim.optimizer_kwargs(recipe), **_further_arguments(recipe)}
    weight = torch.nn.Parameter(torch.empty(shape, device="meta"))
    try:
        with warnings.catch_warnings(), timm_parts.without_compiler():
            warnings.simplefilter("ignore")
            optimizer: Optimizer = timm_optim.create_optimizer_v2([weight], **arguments)
    except (TypeError, ValueError, AssertionError, ImportError, ArithmeticError, LookupError) as error:
        raise SmdtrackError(f"optimizer {recipe.opt!r} refuses these settings: {first_line(error)}") from error
    return optimizer


def line_at_peak(recipe: Recipe, shape: tuple[int, ...]) -> Line:
    """Returns the equilibrium line of a weight of this shape at the recipe's learning rate.

    Raises:
        SmdtrackError: The optimizer refuses its settings.
    """
    optimizer = make_optimizer(recipe, shape)
    return identify(optimizer).line(optimizer.param_groups[0], shape)


def schedule_exponent(recipe: Recipe, shape: tuple[int, ...]) -> float:
    """Returns e, where the equilibrium angle follows a schedule of the learning rate as lr^e; to the nearest half.

    As a rule the decay rate is proportional to the learning rate, so that e = 1/2. Under a trust ratio, and under a
    corrected decay (lr^2 wd / lr_max), e = 1. Read off from the line at the learning rate and at half of it; strong
    decay adds terms of higher order, which rounding removes.

    Args:
        recipe: one with an equilibrium angle.
        shape: of the weight.
    """
    optimizer = make_optimizer(recipe, shape)
    family, group = identify(optimizer), optimizer.param_groups[0]
    angles = [family.line({**group, "lr": lr}, shape).angular_update or 0.0 for lr in (recipe.lr, recipe.lr / 2)]
    return round(2 * math.log2(angles[0] / angles[1])) / 2 if min(angles) > 0 else 0.5


def ignored_settings(recipe: Recipe) -> list[str]:
    """Returns a sentence for each setting of the optimizer that timm ignores for this one."""
    info = _info(recipe.opt)
    given = {"opt_betas": recipe.opt_betas and not info.has_betas, "opt_eps": recipe.opt_eps and not info.has_eps}
    return [f"timm ignores {name} for {recipe.opt}, which has none" for name, ignored in given.items() if ignored]


def corrected_variant(name: str) -> str | None:
    """Returns timm's name of the same optimizer with a decay that follows lr^2 (Defazio), such as adamc for adamw."""
    variant = name.lower().removesuffix("w") + "c"
    if variant not in timm_parts.optim().list_optimizers():
        return None
    return variant if (_info(variant).defaults or {}).get("corrected_weight_decay") else None


def _info(name: str) -> Any:
    """Returns timm's `OptimInfo` of an optimizer, for Lookahead that of the optimizer inside it."""
    return timm_parts.optim().get_optimizer_info(name.lower().removeprefix("lookahead_"))


def _further_arguments(recipe: Recipe) -> dict[str, Any]:
    """Returns `opt_kwargs`, checked against the settings that have names of their own."""
    info = _info(recipe.opt)
    if recipe.opt_betas and info.has_betas and len(recipe.opt_betas) != info.num_betas:
        raise SmdtrackError(f"{recipe.opt} takes {info.num_betas} betas, not {len(recipe.opt_betas)}")
    taken = dict(_SET_ELSEWHERE)
    if recipe.opt_betas:
        taken["betas"] = "opt_betas"
    if recipe.opt_eps is not None:
        taken["eps"] = "opt_eps"
    for name, setting in taken.items():
        if name in recipe.opt_kwargs:
            raise SmdtrackError(f"opt_kwargs sets {name!r}, which {setting} already sets")
    return dict(recipe.opt_kwargs)


def lr_segments(optimizer: Optimizer, recipe: Recipe, steps_per_epoch: int) -> tuple[list[LrSegment], list[str]]:
    """Returns the learning rates of a whole training, and sentences on what could not be known.

    timm's scheduler is stepped as timm's train.py steps it. A schedule that changes at every update is read at up to
    4000 points.

    Args:
        optimizer: from `make_optimizer`; its learning rate ends up as that of the last step.
        recipe: schedule and length.
        steps_per_epoch: optimizer steps in an epoch.

    Raises:
        SmdtrackError: timm does not know the schedule, or refuses its settings.
    """
    timm_scheduler = timm_parts.scheduler()
    known = ", ".join(SCHEDULES)
    arguments = timm_scheduler.scheduler_kwargs(recipe)
    if arguments.get("decay_epochs") is None:
        # The default of newer timm versions; those up to 1.0.20 do not accept None.
        arguments["decay_epochs"] = 0.2 if recipe.sched in ("wsd", "rsqrt") else DEFAULT_DECAY_EPOCHS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler, epochs = timm_scheduler.create_scheduler_v2(
                optimizer, **arguments, updates_per_epoch=steps_per_epoch
            )
    except (AssertionError, ValueError, TypeError, ArithmeticError) as error:
        reason = str(error).rstrip(".") or "its settings are out of range"
        raise SmdtrackError(f"timm refuses the schedule {recipe.sched!r}: {reason}; schedules are {known}") from error
    if scheduler is None and recipe.sched != "none":
        raise SmdtrackError(f"this version of timm has no schedule {recipe.sched!r}; schedules are {known}")
    notes = []
    if recipe.sched == "plateau":
        notes.append("a plateau schedule depends on the validation metric; it is shown as if it never dropped")
    group = optimizer.param_groups[0]
    segments: list[LrSegment] = []
    on_updates = recipe.sched_on_updates and scheduler is not None
    stride = max(1, round(int(epochs) * steps_per_epoch / _MOST_SEGMENTS))
    for epoch in range(int(epochs)):
        if not on_updates:
            if scheduler is not None and epoch > 0:
                _step_epoch(scheduler, recipe.sched, epoch)
            segments.append(LrSegment(epoch, steps_per_epoch, float(group["lr"])))
            continue
        for first in range(0, steps_per_epoch, stride):
            count = min(stride, steps_per_epoch - first)
            middle = epoch * steps_per_epoch + first + count // 2
            if middle > 0:
                scheduler.step_update(middle)
            segments.append(LrSegment(epoch + first / steps_per_epoch, count, float(group["lr"])))
    return segments, notes


def _step_epoch(scheduler: Any, sched: str, epoch: int) -> None:
    """Steps a scheduler to an epoch. A plateau scheduler gets a metric that always improves, so it never drops."""
    if sched == "plateau":
        scheduler.step(epoch, metric=float(epoch))
    else:
        scheduler.step(epoch)
