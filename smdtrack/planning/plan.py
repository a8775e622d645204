"""What a recipe will reach: the line, the predicted path stage by stage, and which change of the recipe would help."""

from dataclasses import dataclass

from smdtrack.planning.advice import find_problems, suggest_changes, suggest_for_angle
from smdtrack.planning.lr_schedule import ignored_settings, lr_segments, make_optimizer
from smdtrack.planning.recipe import Recipe
from smdtrack.planning.relaxation import LineSegment, relax
from smdtrack.planning.stages import Stage, split_into_stages, summarize_stage, time_constants
from smdtrack.theory import identify
from smdtrack.theory.line import Line

#: Weight decay with which the line is computed for a wanted angle if the recipe has none: any positive one will do,
#: because the squared angle is proportional to it.
_SOME_WEIGHT_DECAY = 1e-4


@dataclass(frozen=True)
class Plan:
    """A recipe's prediction.

    Attributes:
        peak: the line at the largest learning rate.
        stages: in order.
        curve: (optimizer steps done, line, predicted angle) at the end of each segment of the schedule, for a plot;
            empty if no angle can be predicted.
        time_constants: length of the whole run; None if there is no time constant.
        problems: what is likely to surprise, a sentence each.
        changes: what would change it, a sentence each.
        notes: which settings were ignored or could not be known, a sentence each.
    """

    peak: Line
    stages: tuple[Stage, ...]
    curve: tuple[tuple[int, float, float], ...]
    time_constants: float | None
    problems: tuple[str, ...]
    changes: tuple[str, ...]
    notes: tuple[str, ...]


def make_plan(
    recipe: Recipe,
    steps_per_epoch: int,
    *,
    shape: tuple[int, ...] = (64, 64, 3, 3),
    start_norm: float = 1.0,
    wanted_angle: float | None = None,
) -> Plan:
    """Predicts a whole training from its recipe.

    Args:
        recipe: optimizer, schedule and length.
        steps_per_epoch: optimizer steps in an epoch.
        shape: of the weight, for optimizers whose line depends on it (Muon).
        start_norm: initial norm over the equilibrium norm at the largest learning rate.
        wanted_angle: angular update at the largest learning rate, radian per step, for which a change is suggested.

    Raises:
        SmdtrackError: The optimizer or the scheduler refuses the recipe's settings.
    """
    optimizer = make_optimizer(recipe, shape)
    family = identify(optimizer)
    group = dict(optimizer.param_groups[0])
    schedule, notes = lr_segments(optimizer, recipe, steps_per_epoch)
    peak_lr = max(segment.lr for segment in schedule)
    peak = family.line({**group, "lr": peak_lr}, shape)
    segments = [LineSegment(part.steps, family.line({**group, "lr": part.lr}, shape)) for part in schedule]
    states = relax(segments, peak, start_norm) if peak.angular_update else []
    warmup_epochs = recipe.warmup_epochs if recipe.warms_up else 0
    stages = tuple(
        summarize_stage(name, schedule, segments, states, first, last)
        for name, first, last in split_into_stages(schedule, warmup_epochs)
    )
    steps, curve = 0, []
    for segment, state in zip(segments, states, strict=False):
        steps += segment.steps
        curve.append((steps, segment.line.angular_update or 0.0, state.angle))
    total = time_constants(segments)
    changes = suggest_changes(peak, stages, total, recipe.weight_decay)
    if wanted_angle is not None:
        decay = recipe.weight_decay or _SOME_WEIGHT_DECAY
        line = family.line({**group, "lr": peak_lr, "weight_decay": decay}, shape)
        changes.append(suggest_for_angle(wanted_angle, decay, line))
    return Plan(
        peak,
        stages,
        tuple(curve),
        total,
        problems=tuple(find_problems(peak, stages, total, segments)),
        changes=tuple(changes),
        notes=(*recipe.notes(), *ignored_settings(recipe), *notes),
    )
