"""Adam and its relatives: the gradient is divided by its own running size, the step keeps its length."""

from dataclasses import replace

import torch

from smdtrack.theory import updates as up
from smdtrack.theory.motion import DERIVED, WHITE, Motion, no_line
from smdtrack.theory.settings import Setting, as_float
from smdtrack.theory.updates import Updates

KOSSON = "Kosson, Messmer, Jaggi: Rotational Equilibrium, 2305.17212 (ICML 2024)"
SLOW_MOMENT = "second moment slow against the first, and fast against the norm"
FORMULA_AVERAGE = "2 lr wd (1-b1)/(1+b1)"
FORMULA_STATE = "2 gamma/R, gamma = lr wd H <w^2/denom>/<w^2>"


def normalised(
    setting: Setting,
    name: str,
    updates: Updates,
    *,
    coupled: bool,
    formula: str = "2 lr wd / R",
    source: str = DERIVED,
    own_share: float = 0.0,
) -> Motion:
    """A filter of normalised gradients, with decay beside the update or (coupled) inside the gradient.

    Derived here, coupled: the gradient `g + wd w` is divided by `denom = sqrt(v)`; to first order in wd the pull on w
    is `lr wd H w/denom`, times (1 - own_share), because v holds the very gradient that it divides: the term
    `-g (d denom/d wd)/denom^2` takes away `sum_k h_k (1 - b2) b2^k / H` of it. gamma goes as ||w||, denom as 1/||w||.
    """
    if coupled:
        return Motion(
            name,
            updates,
            step_size=setting.lr,
            decay=setting.lr * setting.weight_decay * updates.gain * (1 - own_share),
            from_state=True,
            decay_exponent=1.0,
            kind="from state",
            formula=FORMULA_STATE,
            source=DERIVED,
            assumptions=(WHITE, SLOW_MOMENT, "gradients of like size in all coordinates (3 % off at lognormal(1))"),
        )
    return Motion(
        name,
        updates,
        step_size=setting.lr,
        decay=setting.decoupled_decay,
        formula=formula,
        source=source,
        assumptions=(WHITE, SLOW_MOMENT),
    )


def own_share(taps_decay: float, beta2: float) -> float:
    """`sum_k h_k (1 - b2) b2^k / H`, h an average with decay b1: the part of v owed to the gradients in the update."""
    return (1 - taps_decay) * (1 - beta2) / (1 - taps_decay * beta2)


def adam(setting: Setting, *, coupled: bool, name: str) -> Motion:
    """Adam, AdamW, AdaBelief, LaProp, RAdam, Adopt, Adamax: an average of the first moment, R = (1+b1)/(1-b1)."""
    beta1, beta2 = setting.betas[:2]
    return normalised(
        setting,
        name,
        up.average(beta1),
        coupled=coupled,
        formula=FORMULA_AVERAGE,
        source=KOSSON,
        own_share=own_share(beta1, beta2),
    )


def torch_adam(setting: Setting) -> Motion:
    """torch.optim.Adam and AdamW, told apart by the group's flag (AdamW has none before torch 2.6)."""
    decoupled = setting.flag("decoupled_weight_decay") or isinstance(setting.optimizer, torch.optim.AdamW)
    return adam(setting, coupled=not decoupled, name="AdamW" if decoupled else "Adam")


def radam(setting: Setting) -> Motion:
    """torch.optim.RAdam: rectification goes to 1; decay decoupled by flag."""
    return adam(setting, coupled=not setting.flag("decoupled_weight_decay"), name="RAdam")


def adamax(setting: Setting) -> Motion:
    """torch.optim.Adamax: denominator is a decaying maximum, decay inside the gradient.

    The gradient in the update is rarely the one that set the maximum: no share of its own.
    """
    return normalised(setting, "Adamax", up.average(setting.betas[0]), coupled=True)


def adamw(setting: Setting) -> Motion:
    """timm AdamWLegacy, RAdamLegacy, LaProp, Adahessian and the like: decay beside the update."""
    return adam(setting, coupled=False, name=setting.name)


def adahessian(setting: Setting) -> Motion:
    """timm Adahessian: the gradient over |Hessian diagonal|^k.

    Derived here: for a scale-invariant weight g goes as 1/||w|| and the Hessian as 1/||w||^2, so that
    |u| ~ ||w||^(2k-1) and p = 1 - 2k. At the default k = 1 the update grows with the norm like a Newton step: no norm
    is an equilibrium, the norm grows or shrinks exponentially, and only the drift-corrected line holds.
    """
    motion = adam(setting, coupled=False, name="AdaHessian")
    exponent = 1 - 2 * float(setting.group.get("hessian_power", 1.0))
    if exponent > -1:
        return replace(motion, norm_exponent=exponent, source=DERIVED)
    return replace(
        motion,
        norm_exponent=-1.0,
        equilibrium=False,
        source=DERIVED,
        formula="(d ln||w||^2/dt + 2 lr wd) (1-b1)/(1+b1)",
        reason="the step goes with the norm (gradient over Hessian): no norm is an equilibrium; the drift-corrected "
        "line holds",
    )


def adabelief(setting: Setting) -> Motion:
    """timm AdaBelief: decay decoupled by default; `fixed_decay` takes the learning rate out of it."""
    motion = adam(setting, coupled=not setting.flag("decoupled_decay"), name="AdaBelief")
    if setting.flag("decoupled_decay") and setting.flag("fixed_decay"):
        return replace(motion, decay=setting.weight_decay, formula="2 wd (1-b1)/(1+b1)")
    return motion


def adopt(setting: Setting) -> Motion:
    """timm Adopt: each gradient over the moment of those before it; nothing of its own in the denominator."""
    return normalised(
        setting,
        "ADOPT",
        up.average(setting.betas[0]),
        coupled=not setting.flag("decoupled"),
        formula=FORMULA_AVERAGE,
    )


def nadam(setting: Setting) -> Motion:
    """torch.optim.NAdam and timm NAdamLegacy: Nesterov with a momentum that grows with the step t.

    u = (1 - mu_t) g + mu_{t+1} m, mu_t = b1 (1 - .5 * .96^(psi t)), up to bias corrections: R is that of `t`
    (unknown t: the limit).
    """
    beta1, beta2 = setting.betas[:2]
    growth = float(setting.group.get("momentum_decay", setting.group.get("schedule_decay", 4e-3)))

    def mu(step: int) -> float:
        return float(beta1 * (1 - 0.5 * 0.96 ** (step * growth)))

    now, past = (1 - beta1, beta1) if setting.step is None else (1 - mu(setting.step), mu(setting.step + 1))
    motion = normalised(
        setting,
        "NAdam",
        up.nesterov_average(beta1, round(now, 5), round(past, 5)),
        coupled=not setting.flag("decoupled_weight_decay"),
        formula="2 lr wd / R, R at the present momentum",
        own_share=own_share(beta1, beta2) * past + now * (1 - beta2),
    )
    return (
        motion
        if setting.step is not None
        else replace(motion, assumptions=(*motion.assumptions, "momentum schedule at its limit"))
    )


def nadamw(setting: Setting) -> Motion:
    """timm NAdamW: u = (1 - b1) g + b1 m; R = 14.16 at b1 = .9 (the AdamW line would be 17 % off)."""
    return normalised(
        setting,
        "NAdamW",
        up.nesterov_average(setting.betas[0]),
        coupled=False,
        formula="2 lr wd / R",
    )


def adamp(setting: Setting) -> Motion:
    """timm AdamP: projected updates, R = 1; Delta^2 = 2 lr wd wd_ratio, whatever the momentum."""
    beta = setting.betas[0]
    filtered = up.nesterov_average(beta) if setting.flag("nesterov") else up.average(beta)
    flat = up.from_autocorrelation(
        up.white().autocorrelation, gain=(filtered.energy or 1.0) ** 0.5, energy=filtered.energy
    )
    return Motion(
        "AdamP",
        flat,
        step_size=setting.lr,
        decay=setting.lr * setting.weight_decay * float(setting.group["wd_ratio"]),
        formula="2 lr wd wd_ratio",
        source="derived here from Heo et al., AdamP, 2006.08217",
        assumptions=("gradients orthogonal to the weight, so that every update is projected",),
    )


def adan(setting: Setting) -> Motion:
    """timm Adan: gamma = lr wd, or lr wd/(1 + lr wd) in its proximal form."""
    pull = setting.lr * setting.weight_decay
    motion = normalised(setting, "Adan", up.adan(*setting.betas[:2]), coupled=False, formula="2 gamma / R")
    return motion if setting.flag("no_prox") else replace(motion, decay=pull / (1 + pull))


def mars(setting: Setting) -> Motion:
    """timm Mars: a gradient corrected by its own change, then AdamW or Lion."""
    updates = up.mars(setting.betas[0], float(setting.group["gamma"]))
    if setting.group.get("mars_type") == "lion":
        updates = up.signs(updates)
    return normalised(setting, "MARS", updates, coupled=False, formula="2 lr wd / R")


def lion(setting: Setting) -> Motion:
    """timm Lion: signs of an average; R by the arcsine law."""
    motion = normalised(setting, "Lion", up.lion(*setting.betas[:2]), coupled=False, formula="2 lr wd / R")
    return replace(
        motion,
        assumptions=(
            "gradients uncorrelated in time (very sensitive: .78 of the line at AR(.5))",
            "many coordinates, Gaussian",
        ),
    )


def rmsprop(setting: Setting) -> Motion:
    """torch RMSprop and timm RMSpropTF: each gradient over a moment that holds it, then heavy-ball.

    Coupled: gamma = lr wd H alpha <w^2/denom>/<w^2>; alpha because v holds (1 - alpha) of the gradient it divides.
    """
    momentum = setting.momentum
    updates = up.heavy_ball(momentum) if momentum > 0 else up.white()
    return normalised(
        setting,
        "RMSprop",
        updates,
        coupled=not setting.flag("decoupled_decay"),
        formula="2 lr wd (1-a)/(1+a)",
        own_share=1 - float(setting.group["alpha"]),
    )


def adagrad(setting: Setting) -> Motion:
    """torch.optim.Adagrad: the denominator only grows; the line follows it quasi-statically."""
    return normalised(setting, "Adagrad", up.white(), coupled=True)


def adafactor(setting: Setting) -> Motion:
    """timm Adafactor with an explicit learning rate: normalised gradient, averaged if betas are given."""
    if setting.flag("relative_step"):
        return no_line("Adafactor", "the learning rate is relative to the weight's own size; give an explicit lr")
    beta1 = setting.group.get("beta1")
    return normalised(
        setting,
        "Adafactor",
        up.white() if beta1 is None else up.average(float(beta1)),
        coupled=False,
        formula="2 lr wd" if beta1 is None else FORMULA_AVERAGE,
    )


def adafactor_bv(setting: Setting) -> Motion:
    """timm AdafactorBigVision: an average by `momentum`; `unscaled_wd` takes the learning rate out of the decay."""
    momentum = setting.group.get("momentum")
    updates = up.white() if momentum is None else up.average(float(momentum))
    motion = normalised(setting, "Adafactor (Big Vision)", updates, coupled=False, formula=FORMULA_AVERAGE)
    if setting.flag("unscaled_wd"):
        share = setting.lr / as_float(setting.group["max_lr_snapshot"]) if setting.flag("corrected_weight_decay") else 1
        return replace(motion, decay=setting.weight_decay * share, formula="2 wd (1-b1)/(1+b1)")
    return motion
