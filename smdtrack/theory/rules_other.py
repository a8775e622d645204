"""Rules for what has to be run, what can only be read, and what has no line."""

import math
from collections.abc import Callable
from dataclasses import replace

from smdtrack.theory import rules_adam, rules_sgd
from smdtrack.theory import updates as up
from smdtrack.theory.calibration import CannotRunError, calibrated
from smdtrack.theory.decay_response import probe
from smdtrack.theory.motion import WHITE, Motion, no_line
from smdtrack.theory.settings import Setting

Rule = Callable[[Setting], Motion]
CALIBRATED = "derived here (autocorrelation of the real optimizer's updates on white noise)"


def cautious(rule: Rule) -> Rule:
    """A rule whose optimizer may mask updates that oppose the gradient (Liang et al., 2411.16085): R by calibration."""

    def masked(setting: Setting) -> Motion:
        motion = rule(setting)
        if not setting.flag("caution") or motion.updates is None or motion.trust is not None:
            return motion
        updates = calibrated(setting.optimizer, setting.group)
        motion = replace(
            motion,
            updates=updates,
            kind="calibrated",
            optimizer=f"cautious {motion.optimizer}",
            formula="2 gamma / R, R calibrated",
            source=CALIBRATED,
        )
        if motion.from_state:
            # the calibrated gain holds the pull of the mask and the gradient's own share of its denominator
            motion = replace(motion, decay=setting.lr * setting.weight_decay * updates.gain)
        return motion

    return masked


def muon(setting: Setting) -> Motion:
    """timm Muon and AdaMuon: orthogonalised averages, R by calibration for this shape; else the AdamW fallback."""
    group = setting.group
    from timm.optim.muon import _is_suitable_for_muon  # the routing is timm's own, and it changes

    if "use_muon" in group and not group.get("use_fallback", False):
        routed = bool(group["use_muon"])
    else:
        import torch

        with torch.device("meta"):
            routed = not group.get("use_fallback", False) and bool(_is_suitable_for_muon(torch.empty(setting.shape)))
    if not routed:
        scaled = replace(setting, group={**group, "lr": setting.lr * float(group.get("fallback_lr_scale", 1.0))})
        fallback = (
            rules_adam.nadamw(scaled)
            if setting.flag("nesterov")
            else rules_adam.adam(scaled, coupled=False, name="AdamW")
        )
        return replace(fallback, optimizer=f"{fallback.optimizer} (Muon's fallback for this shape)")
    updates = calibrated(setting.optimizer, group, setting.shape)
    return Motion(
        "AdaMuon" if group.get("algo") == "adamuon" else "Muon",
        updates,
        step_size=setting.lr,
        decay=setting.decoupled_decay,
        kind="calibrated",
        formula="2 lr wd / R, R calibrated for the shape",
        source=CALIBRATED,
        assumptions=(WHITE, "a smaller weight of the same aspect ratio stands in"),
    )


def kron(setting: Setting) -> Motion:
    """timm Kron (PSGD): an average, whitened and capped in RMS; decay is added after the whitening in all variants.

    The whitening takes memory out of the updates while it changes at every step: the angle is then 11 % above the line
    (at a 16 x 16 weight), and within 2 % once the default schedule has brought the updates down to one in thirty.
    """
    return Motion(
        "PSGD Kron",
        up.average(setting.momentum),
        step_size=setting.lr,
        decay=setting.decoupled_decay,
        kind="approximate",
        formula="2 lr wd (1-b)/(1+b)",
        assumptions=(WHITE, "the preconditioner is updated rarely: past the annealing of its update probability"),
    )


def approximate(rule: Rule, because: str) -> Rule:
    """A rule taken over from a twin whose code was read, not run."""

    def borrowed(setting: Setting) -> Motion:
        motion = rule(setting)
        return (
            motion
            if motion.updates is None
            else replace(motion, kind="approximate", assumptions=(*motion.assumptions, because))
        )

    return borrowed


def adadelta(setting: Setting) -> Motion:
    """torch.optim.Adadelta."""
    return no_line("Adadelta", "the step size is the optimizer's own running one: it has no stationary value")


def madgrad(setting: Setting) -> Motion:
    """timm MADGRAD."""
    return no_line("MADGRAD", "dual averaging anchored at the first weights: updates do not forget old gradients")


def fused_adam(setting: Setting) -> Motion:
    """apex FusedAdam: `adam_w_mode` of the optimizer decides."""
    decoupled = bool(getattr(setting.optimizer, "adam_w_mode", 1))
    return rules_adam.adam(setting, coupled=not decoupled, name="AdamW" if decoupled else "Adam")


def fused_novograd(setting: Setting) -> Motion:
    """apex FusedNovoGrad: decay outside the moments unless `reg_inside_moment`."""
    beta = setting.betas[0]
    averaged = bool(setting.group.get("grad_averaging", True))
    updates = up.average(beta) if averaged else up.heavy_ball(beta)
    inside = getattr(setting.optimizer, "moment_mode", 1) == 0
    return Motion(
        "NovoGrad",
        updates,
        step_size=setting.lr,
        decay=setting.lr * setting.weight_decay * (updates.gain if inside else 1.0),
        formula="2 gamma / R",
    )


def bnb_sgd(setting: Setting) -> Motion:
    """bitsandbytes SGD: its kernel knows heavy-ball only, `nesterov` goes unused; betas[0] holds the momentum."""
    momentum = setting.betas[0] if "betas" in setting.group else setting.momentum
    return rules_sgd.sgd(replace(setting, group={**setting.group, "momentum": momentum, "nesterov": False}))


def bnb_adam(setting: Setting) -> Motion:
    """bitsandbytes Adam and AdamW: the same kernel, decay beside the update in both (its issues 10 and 2010)."""
    return rules_adam.adam(setting, coupled=False, name="AdamW")


def bnb_ademamix(setting: Setting) -> Motion:
    """bitsandbytes AdEMAMix: two averages over one denominator."""
    beta1, _, beta3 = setting.betas[:3]
    updates = up.two_averages(beta1, beta3, float(setting.group.get("alpha", 5.0)))
    return rules_adam.normalised(setting, "AdEMAMix", updates, coupled=False)


def unknown(setting: Setting) -> Motion:
    """An optimizer without a rule: calibrated, and probed for how decay and scale enter."""
    name = setting.name
    if setting.flag("relative_step"):
        return no_line(name, "the learning rate is relative to the weight's own size")
    try:
        updates = calibrated(setting.optimizer, setting.group, setting.shape if len(setting.shape) > 1 else None)
        seen = probe(setting.optimizer, setting.group)
    except CannotRunError as error:
        return no_line(name, str(error))
    if seen.follows_weight:
        return no_line(name, "its step follows the weight's norm in a way that is not known")
    if not math.isfinite(updates.memory) or updates.memory <= 0:
        return no_line(name, f"its updates on white noise have a memory of {updates.memory:.3g}")
    if seen.decay_needs_state and setting.weight_decay > 0:
        return no_line(name, "weight decay passes through its normalisation, whose state is not known")
    return Motion(
        name,
        updates,
        step_size=setting.lr,
        decay=seen.decay(setting.lr, setting.weight_decay),
        norm_exponent=seen.norm_exponent,
        kind="calibrated",
        formula="2 gamma / R, both measured on white noise",
        source=CALIBRATED,
        assumptions=(WHITE, "an optimizer without a rule of its own: calibrated, its decay measured, too"),
    )
