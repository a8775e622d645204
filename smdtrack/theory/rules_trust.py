"""LAMB and LARS: a trust ratio makes the step a share of the weight's norm, and the angle follows from lr alone."""

import math
from dataclasses import replace

from smdtrack.theory import updates as up
from smdtrack.theory.motion import WHITE, Motion
from smdtrack.theory.rules_adam import adam
from smdtrack.theory.rules_sgd import response, sgd
from smdtrack.theory.settings import Setting

DERIVED = "derived here (a chord of length lr ||w||)"


def lamb(setting: Setting) -> Motion:
    """timm Lamb: ||step|| = lr ||w||; at a steady norm Delta = 2 asin(lr/2), whatever wd.

    Without weight decay the ratio is not applied (unless `always_adapt`) and LAMB is Adam. With `trust_clip` the ratio
    is at most 1: derived here, at equilibrium the ratio would be `lr R/(2 wd)` (growth lr^2 R against decay
    2 lr wd ratio), so that above 1 the clip holds and LAMB is AdamW. With decoupled decay nothing ties the norm:
    d ln||w||^2/dt = lr^2 R - 2 lr wd.
    """
    lr, decay, beta = setting.lr, setting.weight_decay, setting.betas[0]
    # without averaging the first moment is a sum, which the normalisation takes out again
    updates = up.average(beta)
    if decay == 0 and not setting.flag("always_adapt"):
        return replace(adam(setting, coupled=False, name="LAMB"), reason=None)
    angle = 2 * math.asin(min(1.0, lr / 2))
    decoupled = setting.flag("decoupled_decay")
    motion = Motion(
        "LAMB",
        updates,
        step_size=lr,
        decay=lr**2 * updates.memory / 2,
        norm_exponent=-1.0,
        decay_exponent=1.0,
        trust="whole",
        fixed_angle=angle,
        formula="Delta = 2 asin(lr/2)",
        source=DERIVED,
        assumptions=("norm steady over a step",),
    )
    if setting.flag("trust_clip") and not decoupled and decay > 0 and lr * updates.memory > 2 * decay:
        return replace(
            adam(setting, coupled=False, name="LAMB (ratio clipped at 1)"),
            assumptions=("the trust ratio stands at its bound of 1, as it does at equilibrium for lr R > 2 wd",),
        )
    if decoupled:
        return replace(
            motion,
            decay=setting.decoupled_decay,
            decay_exponent=0.0,
            reason="the norm has no equilibrium: d ln||w||^2/dt = lr^2 R - 2 lr wd",
            assumptions=("norm steady over a step", *(("trust ratio below 1",) if setting.flag("trust_clip") else ())),
        )
    return motion


def lars(setting: Setting) -> Motion:
    """timm Lars: the gradient (with its decay) is scaled to tc ||w||, then momentum.

    Derived here: with q = wd ||w||/|g| the decay is `lr tc H q/(1+q)` and the update `lr tc sqrt(S) ||w||/(1+q)`.
    At equilibrium `q (1+q) = lr tc H/2`, hence Delta = tc lr sqrt(S)/(1+q): wd-free.
    With `trust_clip` (LARC) the ratio is min(1, tc/(|g|/||w|| + wd)/lr): either the SGD line (ratio 1), or the line
    above with tc in place of lr tc; at SGD's equilibrium |g|/||w|| = sqrt(2 gamma)/(lr H), which tells which.
    """
    lr, trust = setting.lr, float(setting.group["trust_coeff"])
    updates, name = response(setting)
    name = name.replace("SGD", "LARS")
    plain = sgd(setting)
    if setting.weight_decay == 0 and not setting.flag("always_adapt"):
        return plain
    if setting.flag("trust_clip"):
        name = name.replace("LARS", "LARC")
        gradient_share = math.sqrt(2 * plain.decay) / (lr * updates.gain) if lr > 0 else 0.0
        if trust >= lr * (gradient_share + setting.weight_decay):
            return replace(
                plain,
                optimizer=f"{name} (ratio clipped at 1)",
                assumptions=(
                    *plain.assumptions,
                    "trust_coeff ||w||/(|g| + wd ||w||) above lr, as it is at equilibrium",
                ),
            )
        lr = 1.0
    pull = lr * trust * updates.gain
    share = (math.sqrt(1 + 2 * pull) - 1) / pull if pull else 1.0
    if setting.weight_decay == 0:
        share = 1.0
    return Motion(
        name,
        updates,
        step_size=lr * trust,
        decay=pull * (1 - share),
        norm_exponent=-1.0,
        decay_exponent=2.0,
        trust="gradient",
        fixed_angle=pull * share / math.sqrt(updates.memory),
        formula="Delta = tc lr sqrt(S)/(1+q), q(1+q) = lr tc H/2",
        assumptions=(WHITE,),
        source="derived here (trust ratio before decay and momentum)",
    )
