"""What in a recipe is likely to surprise, and which change of it would help."""

import math
from collections.abc import Sequence

from smdtrack.planning.finding import Finding
from smdtrack.planning.lr_drops import review_drops
from smdtrack.planning.lr_schedule import corrected_variant
from smdtrack.planning.recipe import Recipe
from smdtrack.planning.relaxation import LineSegment
from smdtrack.planning.solve import round_to_digits
from smdtrack.planning.stages import Stage
from smdtrack.theory.line import Line

#: A stage shorter than this many time constants ends before the norm has followed the learning rate.
SHORT_STAGE = 1.0
#: Largest angular update, in radian per step, over which a loss can be followed by its gradient.
LARGE_ANGLE = 0.1
#: Time constants after which a deviation from equilibrium has fallen to 5 %.
SETTLED = 3
#: Largest share of a weight that may decay within the optimizer's memory, so that the norm averages over many updates.
MOST_DECAY_IN_MEMORY = 0.2


def review_line(recipe: Recipe, peak: Line) -> list[Finding]:
    """Returns what follows from optimizer, learning rate and weight decay alone.

    Args:
        recipe: the recipe.
        peak: the line at the largest learning rate.
    """
    found = []
    if peak.reason:
        # A line that training will reveal is no fault of the recipe.
        found.append(Finding("no-line", "note" if peak.kind == "from state" else "warning", peak.reason))
    angle = peak.angular_update or 0.0
    if angle > LARGE_ANGLE:
        change = (
            f"learning rate {recipe.lr * LARGE_ANGLE / angle:.2g}"
            if peak.trust is not None
            else f"weight decay {recipe.weight_decay * (LARGE_ANGLE / angle) ** 2:.2g}"
        )
        found.append(
            Finding(
                "large-angle",
                "warning",
                f"weights turn by {angle:.3g} rad per step, which is more than {LARGE_ANGLE}: the loss cannot be "
                "followed over such steps",
                f"{change} gives {LARGE_ANGLE} rad per step",
            )
        )
    share = (peak.decay_rate or 0.0) * (peak.memory or 0.0)
    if share > MOST_DECAY_IN_MEMORY and peak.trust is None:
        found.append(
            Finding(
                "strong-decay",
                "warning",
                f"weight decay is strong against the optimizer's memory: {share:.2g} of a weight decays within the "
                f"{peak.memory:.3g} steps over which updates resemble each other, so that the norm does not average "
                "over many of them, as the line assumes",
                f"weight decay {recipe.weight_decay * MOST_DECAY_IN_MEMORY / share:.2g} or less",
            )
        )
    return found + _review_clipping(recipe) + _review_average(recipe, peak)


def _review_clipping(recipe: Recipe) -> list[Finding]:
    if recipe.clip_grad is None:
        return []
    if recipe.clip_mode == "agc":
        message = (
            "adaptive gradient clipping (clip_mode agc) bounds the gradient by the weight's norm: wherever it clips, "
            "the equilibrium line does not hold"
        )
        return [Finding("clipping", "warning", message, "clip_mode norm keeps the line")]
    message = (
        f"gradients are clipped (clip_mode {recipe.clip_mode}): where that happens at every step, SGD's time constant "
        "doubles; its equilibrium line stays"
    )
    return [Finding("clipping", "note", message)]


def _review_average(recipe: Recipe, peak: Line) -> list[Finding]:
    """Compares the window of the average of weights (EMA) with the time constant."""
    if not recipe.model_ema or peak.time_constant is None:
        return []
    window = ema_window(recipe.model_ema_decay)
    if window <= peak.time_constant:
        return []
    turned = peak.lag_angle(round(window)) or 0.0
    return [
        Finding(
            "ema-window",
            "warning",
            f"the average of weights (model_ema_decay {recipe.model_ema_decay:g}) spans {window:,.0f} steps, longer "
            f"than the time constant of {peak.time_constant:,.0f}: weights turn by {turned:.2g} rad within it",
            f"model_ema_decay {1 - 1 / max(peak.time_constant, 2):.4g} spans one time constant",
        )
    ]


def ema_window(decay: float) -> float:
    """Returns the number of steps over which an exponential average with this decay per step reaches back."""
    return 1 / (1 - decay) if decay < 1 else math.inf


def review_schedule(
    recipe: Recipe,
    peak: Line,
    stages: Sequence[Stage],
    run_time_constants: float | None,
    segments: Sequence[LineSegment],
) -> list[Finding]:
    """Returns what follows from the schedule.

    Args:
        recipe: the recipe.
        peak: the line at the largest learning rate.
        stages: of the schedule.
        run_time_constants: length of the whole run in time constants; None if there is no time constant.
        segments: the schedule with its lines.
    """
    if run_time_constants is None or peak.trust is not None or not peak.angular_update:
        return []
    if run_time_constants < 1:
        return [_weak_decay(recipe, peak, run_time_constants)]
    found = _review_stages(stages)
    if run_time_constants < SETTLED:
        found.append(_weak_decay(recipe, peak, run_time_constants))
    warmup = next((stage for stage in stages if stage.name == "warm-up"), None)
    if warmup is not None and (warmup.time_constants or 0.0) > SETTLED:
        found.append(_long_warmup(warmup, segments, stages))
    found += review_drops(peak, stages)
    variant = corrected_variant(recipe.opt)
    if variant is not None and stages[-1].reached is False and not peak.coupled:
        found.append(
            Finding(
                "corrected-decay",
                "note",
                "at the end the angle falls behind its line, because the equilibrium norm shrinks with the learning "
                "rate and the norm cannot follow",
                f"opt {variant} has a corrected decay: its equilibrium norm stays, and the angle follows at once "
                "(Defazio, 2506.02285)",
            )
        )
    return found


def _review_stages(stages: Sequence[Stage]) -> list[Finding]:
    """Reports the stages that are shorter than their time constant, all in one finding."""
    short = [
        stage
        for stage in stages
        if stage.time_constants is not None and stage.time_constants < SHORT_STAGE and stage.name != "warm-up"
    ]
    if not short:
        return []
    listed = ", ".join(f"'{stage.name}' (epochs {stage.epochs}) {stage.time_constants:.2g}" for stage in short)
    change = "longer stages"
    if short[-1].time_constants:
        factor = SHORT_STAGE / short[-1].time_constants
        change += f": with {factor:.2g} times as many epochs '{short[-1].name}' lasts {SHORT_STAGE:g}"
    return [
        Finding(
            "short-stage",
            "warning",
            "in stages shorter than a time constant the norm cannot follow the learning rate, and the angle lags "
            f"behind its line; lengths in time constants: {listed}",
            change,
        )
    ]


def _weak_decay(recipe: Recipe, peak: Line, run_time_constants: float) -> Finding:
    """Reports a run that is too short, at its weight decay, to reach equilibrium."""
    factor = SETTLED / run_time_constants
    weak = run_time_constants < 1
    return Finding(
        "weak-decay",
        "warning" if weak else "note",
        f"weight decay is too weak to matter in this run: the run lasts {run_time_constants:.2g} time constants, and "
        f"equilibrium takes about {SETTLED}"
        if weak
        else f"the run lasts {run_time_constants:.2g} time constants, and equilibrium takes about {SETTLED}",
        f"weight decay {recipe.weight_decay * factor:.2g} gives {SETTLED} time constants within this run (angle "
        f"{(peak.angular_update or 0.0) * math.sqrt(factor):.3g} rad per step)",
    )


def _long_warmup(warmup: Stage, segments: Sequence[LineSegment], stages: Sequence[Stage]) -> Finding:
    """Reports a warm-up in which the norm has settled long before its end, with the length that would do."""
    steps_per_epoch = warmup.steps / (warmup.last_epoch - warmup.first_epoch)
    needed = warmup.steps * math.sqrt(SETTLED / (warmup.time_constants or SETTLED))
    return Finding(
        "long-warm-up",
        "note",
        f"the warm-up lasts {warmup.time_constants:.2g} time constants; the norm has settled after about {SETTLED}",
        f"warm-up of {round_to_digits(needed / steps_per_epoch, 2):g} epochs, as far as the norm is concerned",
    )
