"""What a recipe will reach: the line, the predicted path stage by stage, and which change of the recipe would help."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from smdtrack.planning.advice import review_line, review_schedule
from smdtrack.planning.finding import Finding
from smdtrack.planning.lr_schedule import ignored_settings, lr_segments, make_optimizer
from smdtrack.planning.model_weights import WeightGroup, group_weights, spread
from smdtrack.planning.recipe import Recipe
from smdtrack.planning.relaxation import LineSegment, WeightState, relax
from smdtrack.planning.solve import Solution, solve_for_angle
from smdtrack.planning.stages import Stage, split_into_stages, summarize_stage, time_constants
from smdtrack.theory.family import identify
from smdtrack.theory.line import Line

#: Initial norms that are considered if they are not known, over the equilibrium norm at the largest learning rate.
UNKNOWN_START_NORMS = (0.25, 1.0, 4.0)


@dataclass(frozen=True)
class Plan:
    """A recipe's prediction.

    Attributes:
        recipe: of the prediction.
        peak: the line at the largest learning rate.
        steps_per_epoch: optimizer steps in an epoch; None if not given.
        groups: the model's decayed weights by learning rate; empty without a model.
        start_norms: initial norms (low, middle, high) over the equilibrium norm from which the path was predicted.
        start_known: whether they were given or measured, and not assumed.
        stages: in order; empty without a schedule.
        curve: (optimizer steps done, line, predicted angle) at the end of each segment of the schedule, for a plot;
            empty if no angle can be predicted.
        time_constants: length of the whole run; None without a schedule or a time constant.
        findings: what is likely to surprise.
        solution: the recipe with the wanted angle; None if none was asked for.
        notes: which settings were ignored or could not be known, a sentence each.
    """

    recipe: Recipe
    peak: Line
    steps_per_epoch: int | None
    groups: tuple[WeightGroup, ...]
    start_norms: tuple[float, ...]
    start_known: bool
    stages: tuple[Stage, ...]
    curve: tuple[tuple[int, float, float], ...]
    time_constants: float | None
    findings: tuple[Finding, ...]
    solution: Solution | None
    notes: tuple[str, ...]


def make_plan(
    recipe: Recipe,
    steps_per_epoch: int | None = None,
    *,
    with_schedule: bool = True,
    shape: tuple[int, ...] = (64, 64, 3, 3),
    start_norm: float | None = None,
    model: nn.Module | None = None,
    effective_gradient: float | None = None,
    wanted_angle: float | None = None,
) -> Plan:
    """Predicts a training from its recipe.

    Args:
        recipe: optimizer, schedule and length.
        steps_per_epoch: optimizer steps in an epoch; needed for the schedule.
        with_schedule: whether to follow the schedule, or to compute only the line at the recipe's learning rate.
        shape: of the weight, for optimizers whose line depends on it (Muon).
        start_norm: initial norm over the equilibrium norm at the largest learning rate; None if unknown.
        model: a timm model whose weights have their initial values, for their groups, shapes and norms.
        effective_gradient: `||g|| ||w||` to assume for the equilibrium norm of SGD-like optimizers.
        wanted_angle: angular update in radian per step for which the setting is searched.

    Raises:
        SmdtrackError: The optimizer or the scheduler refuses the recipe's settings, or the wanted angle is out of
            reach.
    """
    optimizer = make_optimizer(recipe, shape)
    family = identify(optimizer)
    group = dict(optimizer.param_groups[0])

    def line_at(lr: float) -> Line:
        return family.line({**group, "lr": lr}, shape)

    groups = tuple(group_weights(model, recipe, effective_gradient)) if model is not None else ()
    measured = spread(groups) if start_norm is None else (start_norm,)
    start_norms = measured or UNKNOWN_START_NORMS
    peak = line_at(recipe.lr)
    stages: tuple[Stage, ...] = ()
    curve: tuple[tuple[int, float, float], ...] = ()
    total = None
    notes = [*recipe.notes(), *ignored_settings(recipe)]
    findings = []
    if with_schedule and steps_per_epoch is not None:
        schedule, further_notes = lr_segments(optimizer, recipe, steps_per_epoch)
        notes += further_notes
        peak = line_at(max(segment.lr for segment in schedule))
        segments = [LineSegment(part.steps, line_at(part.lr)) for part in schedule]
        paths = [relax(segments, peak, norm) for norm in start_norms] if peak.angular_update else []
        warmup_epochs = recipe.warmup_epochs if recipe.warms_up else 0
        stages = tuple(
            summarize_stage(name, schedule, segments, paths, first, last)
            for name, first, last in split_into_stages(schedule, warmup_epochs)
        )
        curve = _curve(segments, paths[len(paths) // 2] if paths else [])
        total = time_constants(segments)
        findings = review_schedule(recipe, peak, stages, total, segments)
    findings = review_line(recipe, peak) + findings + _review_groups(recipe, groups, total)
    if recipe.layer_decay is not None and not groups:
        notes.append("layer_decay lowers the learning rate of early layers; their lines need a model")
    solution = None if wanted_angle is None else solve_for_angle(recipe, wanted_angle, shape)
    return Plan(
        recipe,
        peak,
        steps_per_epoch,
        groups,
        start_norms,
        measured is not None,
        stages,
        curve,
        total,
        tuple(findings),
        solution,
        tuple(notes),
    )


def _curve(segments: Sequence[LineSegment], states: Sequence[WeightState]) -> tuple[tuple[int, float, float], ...]:
    steps, points = 0, []
    for segment, state in zip(segments, states, strict=False):
        steps += segment.steps
        points.append((steps, segment.line.angular_update or 0.0, state.angle))
    return tuple(points)


def _review_groups(recipe: Recipe, groups: Sequence[WeightGroup], total: float | None) -> list[Finding]:
    """Reports what layer decay does to lr x weight decay of the first layers."""
    if not groups or groups[0].lr_scale == 1:
        return []
    slowest = groups[0]
    message = (
        f"layer_decay multiplies lr x weight decay of the first layers by {slowest.lr_scale:.3g}: their angle is "
        f"{slowest.line.angular_update or 0.0:.3g} rad per step"
    )
    if total is None:
        return [Finding("layer-decay", "note", message)]
    left = total * slowest.lr_scale
    message += f", and the run lasts {left:.2g} of their time constants"
    change = f"a layer_decay nearer to 1 than {recipe.layer_decay:g}"
    return [Finding("layer-decay", "warning" if left < 1 <= total else "note", message, change)]
