"""Adam and its relatives: the gradient is divided by its own running size, so that the step keeps its length."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from smdtrack.theory import filters
from smdtrack.theory.calibration import CALIBRATED
from smdtrack.theory.dynamics import DERIVED, WHITE, Dynamics, no_line
from smdtrack.theory.group_settings import GroupSettings, as_float
from smdtrack.theory.update_statistics import UpdateStatistics

Group = Mapping[str, Any]
KOSSON = "Kosson, Messmer, Jaggi: Rotational Equilibrium, 2305.17212 (ICML 2024)"
SLOW_MOMENT = (
    "the second moment changes slowly compared with the first; for time constant and equilibrium norm, also quickly "
    "compared with the norm"
)
FORMULA_AVERAGE = "2 lr wd (1-b1)/(1+b1)"
FORMULA_STATE = "2 gamma/R, gamma = lr wd H <w^2/denom>/<w^2>"
SIGNS = (
    "gradients uncorrelated in time (very sensitive: .78 of the line at AR(.5))",
    "many coordinates, Gaussian",
)
NEWTON_STEP = (
    "the step is proportional to the norm (gradient over Hessian), so that no norm is an equilibrium; "
    "the drift-corrected line holds"
)


def normalised(settings: GroupSettings, updates: UpdateStatistics) -> Dynamics:
    """Returns the dynamics of filtered normalised gradients, with decoupled or coupled weight decay.

    Derived here for coupled decay: the gradient `g + wd w` is divided by `denom = sqrt(v)`. To first order in wd, the
    decay moves w by `lr wd H w/denom`, times (1 - own_share). The last factor comes from v, which contains the gradient
    that it divides: the term `-g (d denom/d wd)/denom^2` takes away `own_share = sum_k h_k (1 - b2) b2^k / H` of the
    decay. gamma is proportional to ||w||, because denom is proportional to 1/||w||.

    Args:
        settings: Of the weight.
        updates: Statistics of the filtered normalised gradients.
    """
    if not settings.coupled:
        return Dynamics(updates, step_size=settings.lr, decay=settings.decoupled_decay)
    return Dynamics(
        updates,
        step_size=settings.lr,
        decay=settings.lr * settings.weight_decay * updates.gain * (1 - settings.own_share),
        decay_needs_state=True,
        coupled=True,
        decay_exponent=1.0,
        kind="from state",
        formula=FORMULA_STATE,
        source=DERIVED,
        assumptions=(
            WHITE,
            SLOW_MOMENT,
            "gradients of similar size in all coordinates (3 % off if their sizes are lognormal(1))",
        ),
    )


def average_share(group: Group, step: int | None = None) -> float:
    """Returns the own share (see `normalised`) of a moving average h with decay b1: (1-b1)(1-b2)/(1-b1 b2)."""
    beta1, beta2 = (as_float(beta) for beta in group["betas"][:2])
    return (1 - beta1) * (1 - beta2) / (1 - beta1 * beta2)


def rmsprop_share(group: Group, step: int | None = None) -> float:
    """Returns the own share of RMSprop, whose momentum filters gradients that are already divided: 1 - alpha."""
    return 1 - as_float(group["alpha"])


def nadam_share(group: Group, step: int | None) -> float:
    """Returns the own share of NAdam at a step."""
    now, past = nadam_weights(group, step)
    return average_share(group) * past + now * (1 - as_float(group["betas"][1]))


def nadam_weights(group: Group, step: int | None) -> tuple[float, float]:
    """Returns the weights of gradient and average in NAdam's update, `1 - mu_t` and `mu_{t+1}`.

    mu_t = b1 (1 - .5 * .96^(psi t)); if the step is not known, its limit b1.
    """
    beta1 = as_float(group["betas"][0])
    growth = float(group.get("momentum_decay", group.get("schedule_decay", 4e-3)))

    def mu(step: int) -> float:
        return float(beta1 * (1 - 0.5 * 0.96 ** (step * growth)))

    return (1 - beta1, beta1) if step is None else (round(1 - mu(step), 5), round(mu(step + 1), 5))


def adam(settings: GroupSettings) -> Dynamics:
    """Adam, AdamW, RAdam, LaProp, Adamax and the like: an average of normalised gradients, R = (1+b1)/(1-b1).

    If the second moment forgets as fast as the first, the two are correlated and R is calibrated.
    """
    beta1, beta2 = settings.betas[:2]
    if not settings.coupled and 0 < beta2 <= beta1:
        return _calibrated_for_fast_moment(settings)
    return normalised(settings, filters.moving_average(beta1))


def _calibrated_for_fast_moment(settings: GroupSettings) -> Dynamics:
    dynamics = normalised(settings, settings.calibrate(settings.optimizer, settings.group, None))
    return replace(
        dynamics,
        kind="calibrated",
        formula="2 lr wd / R, R calibrated because b2 <= b1",
        source=CALIBRATED,
        assumptions=(WHITE,),
    )


def torch_adam(settings: GroupSettings) -> Dynamics:
    """torch.optim.Adam, which is AdamW if its group says `decoupled_weight_decay`; apex FusedAdam by its own switch."""
    return replace(adam(settings), title="Adam" if settings.coupled else "AdamW")


def adahessian(settings: GroupSettings) -> Dynamics:
    """timm Adahessian: the gradient over |diagonal of the Hessian|^k.

    Derived here: for a scale-invariant weight g is proportional to 1/||w|| and the Hessian to 1/||w||^2, so that
    |u| ~ ||w||^(2k-1) and p = 1 - 2k. At the default k = 1 the update grows with the norm like a Newton step: no norm
    is an equilibrium, the norm grows or shrinks exponentially, and only the drift-corrected line holds.
    """
    dynamics = adam(settings)
    exponent = 1 - 2 * float(settings.group.get("hessian_power", 1.0))
    if exponent > -1:
        return replace(dynamics, norm_exponent=exponent)
    return replace(
        dynamics,
        norm_exponent=-1.0,
        has_equilibrium=False,
        formula="(d ln||w||^2/dt + 2 lr wd) (1-b1)/(1+b1)",
        reason=NEWTON_STEP,
    )


def adabelief(settings: GroupSettings) -> Dynamics:
    """timm AdaBelief: decay decoupled by default; its switch `fixed_decay` takes the learning rate out of the decay."""
    dynamics = adam(settings)
    if not settings.coupled and settings.flag("fixed_decay"):
        return replace(dynamics, decay=settings.weight_decay, formula="2 wd (1-b1)/(1+b1)")
    return dynamics


def nadam(settings: GroupSettings) -> Dynamics:
    """torch.optim.NAdam and timm NAdamLegacy: Nesterov momentum that grows with the step t.

    Up to bias corrections `u = (1 - mu_t) g + mu_{t+1} m`, mu_t = b1 (1 - .5 * .96^(psi t)). R is that of the present
    step; if the step is not known, that of the limit.
    """
    now, past = nadam_weights(settings.group, settings.step)
    dynamics = normalised(settings, filters.nesterov_average(settings.betas[0], now, past))
    if settings.step is not None:
        return dynamics
    usual = dynamics.assumptions or (WHITE, SLOW_MOMENT)
    return replace(dynamics, assumptions=(*usual, "momentum schedule at its limit"))


def nadamw(settings: GroupSettings) -> Dynamics:
    """timm NAdamW: u = (1 - b1) g + b1 m; R = 14.16 at b1 = .9 (AdamW's line would be 17 % off)."""
    return normalised(settings, filters.nesterov_average(settings.betas[0]))


def adamp(settings: GroupSettings) -> Dynamics:
    """timm AdamP: projected updates, R = 1; Delta^2 = 2 lr wd wd_ratio, whatever the momentum."""
    beta = settings.betas[0]
    filtered = filters.nesterov_average(beta) if settings.flag("nesterov") else filters.moving_average(beta)
    return Dynamics(
        filters.projected(filtered),
        step_size=settings.lr,
        decay=settings.lr * settings.weight_decay * float(settings.group["wd_ratio"]),
    )


def adan(settings: GroupSettings) -> Dynamics:
    """timm Adan: gamma = lr wd, or lr wd/(1 + lr wd) in its proximal form."""
    pull = settings.lr * settings.weight_decay
    dynamics = normalised(settings, filters.adan(*settings.betas[:2]))
    return dynamics if settings.flag("no_prox") else replace(dynamics, decay=pull / (1 + pull))


def mars(settings: GroupSettings) -> Dynamics:
    """timm Mars: a gradient corrected by its own change, then AdamW or Lion."""
    updates = filters.mars(settings.betas[0], float(settings.group["gamma"]))
    return normalised(settings, filters.signs(updates) if settings.group.get("mars_type") == "lion" else updates)


def lion(settings: GroupSettings) -> Dynamics:
    """timm Lion: signs of an average; R by the arcsine law."""
    return normalised(settings, filters.lion(*settings.betas[:2]))


def rmsprop(settings: GroupSettings) -> Dynamics:
    """torch RMSprop and timm RMSpropTF: each gradient over a moment that contains it, then heavy-ball momentum.

    Coupled: gamma = lr wd H alpha <w^2/denom>/<w^2>. The factor alpha appears because v contains (1 - alpha) of the
    gradient that it divides.
    """
    momentum = settings.momentum
    return normalised(settings, filters.heavy_ball(momentum) if momentum > 0 else filters.identity())


def adagrad(settings: GroupSettings) -> Dynamics:
    """torch.optim.Adagrad: the denominator only grows; the line follows it quasi-statically."""
    return normalised(settings, filters.identity())


def adafactor(settings: GroupSettings) -> Dynamics:
    """timm Adafactor with an explicit learning rate: normalised gradients, averaged if betas are given."""
    if settings.flag("relative_step"):
        return no_line("the learning rate is relative to the weight's own size; give an explicit lr")
    beta1 = settings.group.get("beta1")
    if beta1 is None:
        return replace(normalised(settings, filters.identity()), formula="2 lr wd")
    return normalised(settings, filters.moving_average(float(beta1)))


def adafactor_bv(settings: GroupSettings) -> Dynamics:
    """timm AdafactorBigVision: averaged by `momentum`; `unscaled_wd` takes the learning rate out of the decay."""
    momentum = settings.group.get("momentum")
    updates = filters.identity() if momentum is None else filters.moving_average(float(momentum))
    dynamics = normalised(settings, updates)
    if settings.flag("unscaled_wd"):
        corrected = settings.flag("corrected_weight_decay")
        share = settings.lr / as_float(settings.group["max_lr_snapshot"]) if corrected else 1
        return replace(dynamics, decay=settings.weight_decay * share, formula="2 wd (1-b1)/(1+b1)")
    return dynamics


def ademamix(settings: GroupSettings) -> Dynamics:
    """bitsandbytes AdEMAMix: two averages over one denominator."""
    beta1, _, beta3 = settings.betas[:3]
    return normalised(settings, filters.two_averages(beta1, beta3, float(settings.group.get("alpha", 5.0))))
