"""What a translation keeps and what it cannot keep, in sentences."""

import math

from smdtrack.planning.advice import LARGE_ANGLE
from smdtrack.planning.matching import typical_rms
from smdtrack.planning.recipe import Recipe
from smdtrack.planning.target import SGD_LEARNING_RATE, Target
from smdtrack.theory.dynamics import ANY_GRADIENT, WHITE
from smdtrack.theory.line import Line


def explain(
    source: Recipe,
    after_recipe: Recipe,
    before: Line,
    after: Line,
    target: Target,
    shape: tuple[int, ...],
    *,
    same_schedule: bool,
) -> tuple[list[str], list[str]]:
    """Returns what is kept and what is not, a sentence each.

    Args:
        source: the recipe before.
        after_recipe: its translation.
        before: the line before.
        after: the line of the translation.
        target: what was asked for.
        shape: of the weight for which the angle is kept.
        same_schedule: whether the angle follows the same power of the learning rate as before.
    """
    k = target.step_factor
    kept = [_kept_angle(k, target)]
    lost = []
    moved = after_recipe.lr != source.lr or after_recipe.weight_decay != source.weight_decay
    if moved:
        kept += _norm_sentences(source, before, after, target, shape)
    if source.opt != after_recipe.opt:
        dropped = [name for name in ("opt_betas", "opt_eps", "opt_kwargs") if getattr(source, name)]
        dropped = [name for name in dropped if name not in target.settings]
        if dropped:
            lost.append(f"{', '.join(dropped)} of {source.opt}: dropped, {after_recipe.opt} has its own defaults")
    lost += _time_constant_sentences(before, after, k)
    if k != 1 and target.match == "k-steps" and target.growth is None:
        lost.append(
            "k-steps assumes gradients uncorrelated in time; on real networks they are anticorrelated, and the angle "
            "over 16 and 64 steps was 16 % and 40 % smaller than assumed here (small networks on digits)"
        )
    if not same_schedule and source.sched in ("cosine", "tanh", "wsd", "rsqrt"):
        lost.append(
            f"the shape of the {source.sched} schedule: the angle follows another power of the learning rate, so it is "
            "kept at the largest and the smallest learning rate but not between them"
        )
    if ANY_GRADIENT in before.assumptions and any(WHITE in text for text in after.assumptions):
        lost.append(
            f"exactness: the line of {before.optimizer} holds for any gradients, that of {after.optimizer} for "
            f"gradients uncorrelated in time; expect {'ten' if 'Lion' in after.optimizer else 'a few'} percent"
        )
    if moved:
        lost.append(
            "biases, norm layers' gains and the classifier: they are not scale-invariant and follow the learning rate "
            "itself; check them by a short run"
        )
    if (after.angular_update or 0.0) > LARGE_ANGLE:
        lost.append(
            f"small angles: {after.angular_update:.3g} rad per step is more than {LARGE_ANGLE}, over which the loss "
            "can hardly be followed"
        )
    if source.clip_grad and (moved or k != 1):
        lost.append("clip_grad: its threshold belongs to the old gradients; set it anew")
    if source.layer_decay and not same_schedule:
        lost.append("layer_decay: the angle of early layers follows another power of it")
    if after.optimizer.startswith("Muon") and source.opt != after_recipe.opt:
        shown = "x".join(str(size) for size in shape)
        lost.append(f"other shapes: the angle of {after.optimizer} depends on the shape; it is kept for {shown}")
    return kept, lost


def _kept_angle(k: float, target: Target) -> str:
    match = target.match
    if k == 1 or match == "step":
        return "the angle of one step at the largest learning rate"
    if match == "epoch":
        return "the decay per epoch, and with it the time constant in epochs and the angle over many steps"
    if k > 1:
        kept = f"the angle of {k:.4g} old steps, now turned by one step"
        if target.growth is None:
            return kept
        return f"{kept}, by the measured ratio of {math.sqrt(target.growth):.3g} to one step"
    return f"the angle of one old step, now turned by {1 / k:.4g} steps"


def _norm_sentences(source: Recipe, before: Line, after: Line, target: Target, shape: tuple[int, ...]) -> list[str]:
    """Says what the free choice of the learning rate was used for."""
    if target.lr is not None and after.trust is None:
        return ["the learning rate that was asked for"]
    if after.norm_exponent == 1 and before.norm_exponent != 1:
        return [f"nothing else: only lr x weight decay is determined, lr {SGD_LEARNING_RATE:g} is a common choice"]
    if after.trust == "gradient":
        return []
    if before.norm_exponent == 1 and after.norm_exponent != 1:
        return [
            f"the norm of a fresh weight: it begins at its equilibrium norm, RMS {typical_rms(shape):.3g} per element "
            "(He initialisation)"
        ]
    noise = ", with gradient noise that falls as the root of the batch" if target.batch_factor != 1 else ""
    return [f"the equilibrium norm{noise if before.norm_exponent == 1 else ''}"]


def _time_constant_sentences(before: Line, after: Line, k: float) -> list[str]:
    """Compares the time constants per image: the angle fixes the decay, and the decay fixes the time constant."""
    if before.time_constant is None or after.time_constant is None:
        return []
    ratio = after.time_constant * k / before.time_constant
    if abs(ratio - 1) < 0.01:
        return []
    unit = "in steps" if k == 1 else "in epochs"
    return [f"the time constant: {ratio:.3g} times as long {unit}, because the angle already fixes the decay rate"]
