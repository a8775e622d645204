"""LAMB and LARS: a trust ratio makes the step a share of the weight's norm, so that the angle follows from lr alone."""

import math
from dataclasses import replace

from smdtrack.theory import filters
from smdtrack.theory.dynamics import WHITE, Dynamics
from smdtrack.theory.group_settings import GroupSettings
from smdtrack.theory.rules_adam import FORMULA_AVERAGE, KOSSON, SLOW_MOMENT, adam
from smdtrack.theory.rules_sgd import WAN, momentum_filter, sgd

STEADY_NORM = "norm steady over a step"
ADAFACTOR = (
    WHITE,
    "the weight's RMS is above eps[1], so that the step is a share of it",
    "normalised gradients have an RMS of 1; clipping at d = 1 makes it 1 % less for a weight of 1000 elements",
)
CHORD = "derived here (a chord of length lr ||w||)"


def lamb(settings: GroupSettings) -> Dynamics:
    """timm Lamb: ||step|| = lr ||w||; at a steady norm Delta = 2 asin(lr/2), whatever the weight decay.

    Without weight decay the ratio is not applied (unless `always_adapt`) and LAMB is Adam. With `trust_clip` the ratio
    is at most 1. Derived here: at equilibrium the ratio would be `lr R/(2 wd)`, because growth lr^2 R balances decay
    2 lr wd ratio; above 1 it is clipped and LAMB is AdamW. With decoupled decay no norm is an equilibrium:
    d ln||w||^2/dt = lr^2 R - 2 lr wd.

    If the first moment is a sum instead of an average, the normalisation takes the factor out again.
    """
    lr, decay = settings.lr, settings.weight_decay
    updates = filters.moving_average(settings.betas[0])
    as_adamw = replace(
        adam(settings),
        formula=FORMULA_AVERAGE,
        source=KOSSON,
        assumptions=(WHITE, SLOW_MOMENT),
    )
    if decay == 0 and not settings.flag("always_adapt"):
        return as_adamw
    decoupled = settings.flag("decoupled_decay")
    if settings.flag("trust_clip") and not decoupled and decay > 0 and lr * updates.memory > 2 * decay:
        return replace(
            as_adamw,
            title="LAMB (ratio clipped at 1)",
            assumptions=("the trust ratio is clipped at 1, as it is at equilibrium for lr R > 2 wd",),
        )
    dynamics = Dynamics(
        updates,
        step_size=lr,
        decay=lr**2 * updates.memory / 2,
        norm_exponent=-1.0,
        decay_exponent=1.0,
        trust="whole",
        fixed_angle=2 * math.asin(min(1.0, lr / 2)),
        assumptions=(STEADY_NORM,),
    )
    if not decoupled:
        return dynamics
    return replace(
        dynamics,
        decay=settings.decoupled_decay,
        decay_exponent=0.0,
        reason="the norm has no equilibrium: d ln||w||^2/dt = lr^2 R - 2 lr wd",
        assumptions=(STEADY_NORM, *(("trust ratio below 1",) if settings.flag("trust_clip") else ())),
    )


def lars(settings: GroupSettings) -> Dynamics:
    """timm Lars: the gradient with its decay is scaled to the length tc ||w||, then filtered by momentum.

    Derived here: with q = wd ||w||/|g| the decay is `lr tc H q/(1+q)` and the update `lr tc sqrt(S) ||w||/(1+q)`. At
    equilibrium `q (1+q) = lr tc H/2`, so that Delta = tc lr sqrt(S)/(1+q) does not depend on the weight decay.

    With `trust_clip` (LARC) the ratio is min(1, tc/(|g|/||w|| + wd)/lr). It is either 1, which gives the SGD line, or
    the line above with tc in place of lr tc. Which one holds follows from |g|/||w|| = sqrt(2 gamma)/(lr H) at SGD's
    equilibrium.
    """
    lr, trust = settings.lr, float(settings.group["trust_coeff"])
    updates, title = momentum_filter(settings)
    title = title.replace("SGD", "LARS")
    plain = sgd(settings)
    plain = replace(plain, formula=plain.formula or "2 lr wd (1-tau)/(1+a)", source=plain.source or WAN)
    if settings.weight_decay == 0 and not settings.flag("always_adapt"):
        return plain
    if settings.flag("trust_clip"):
        title = title.replace("LARS", "LARC")
        gradient_share = math.sqrt(2 * plain.decay) / (lr * updates.gain) if lr > 0 else 0.0
        if trust >= lr * (gradient_share + settings.weight_decay):
            return replace(
                plain,
                title=f"{title} (ratio clipped at 1)",
                assumptions=(
                    *(plain.assumptions or ()),
                    "trust_coeff ||w||/(|g| + wd ||w||) above lr, as it is at equilibrium",
                ),
            )
        lr = 1.0
    pull = lr * trust * updates.gain
    share = (math.sqrt(1 + 2 * pull) - 1) / pull if pull else 1.0
    if settings.weight_decay == 0:
        share = 1.0
    return Dynamics(
        updates,
        step_size=lr * trust,
        decay=pull * (1 - share),
        norm_exponent=-1.0,
        decay_exponent=2.0,
        trust="gradient",
        fixed_angle=pull * share / math.sqrt(updates.memory),
        title=title,
    )


def torch_adafactor(settings: GroupSettings) -> Dynamics:
    """torch.optim.Adafactor: a normalised gradient, scaled to a share of the weight's size; decay beside it.

    Derived here: the step across the weight has the length `rho ||w||` with rho = min(lr, 1/sqrt(step)), and decay
    leaves (1 - lr wd) of the weight, so that tan(angle) = rho/(1 - lr wd). No norm is an equilibrium:
    d ln||w||^2/dt = rho^2 - 2 lr wd. If that is negative, the weight shrinks until eps[1] sets the step.
    """
    rho = min(settings.lr, settings.step**-0.5) if settings.step else settings.lr
    return Dynamics(
        filters.identity(),
        step_size=rho,
        decay=settings.decoupled_decay,
        norm_exponent=-1.0,
        trust="whole",
        fixed_angle=math.atan2(rho, 1 - settings.decoupled_decay),
        reason="the norm has no equilibrium: d ln||w||^2/dt = min(lr, 1/sqrt(step))^2 - 2 lr wd",
    )
