"""SGD and its relatives: the step follows the gradient's length (|u| ~ 1/||w||)."""

import math

from smdtrack.theory import updates as up
from smdtrack.theory.motion import ANY_GRADIENT, DERIVED, WHITE, Motion
from smdtrack.theory.settings import Setting
from smdtrack.theory.updates import Updates

WAN = "Wan, Zhu, Zhang, Sun: Spherical Motion Dynamics, 2006.08419 (dampening: derived here)"
SLOW_SCHEDULE = "learning rate changes slowly against 1/(1 - momentum) steps"


def response(setting: Setting) -> tuple[Updates, str]:
    """Impulse response of torch's SGD buffer, and the name of the variant."""
    momentum, nesterov = setting.momentum, setting.flag("nesterov")
    if momentum == 0:
        return up.white(), "SGD"
    if nesterov:
        return up.nesterov(momentum), "SGD with Nesterov momentum"
    return up.heavy_ball(momentum, float(setting.group.get("dampening", 0.0))), "SGD with momentum"


def sgd(setting: Setting) -> Motion:
    """torch.optim.SGD: decay inside the gradient, gamma = lr wd H.

    Heavy-ball: Delta^2 = 2 lr wd (1 - tau)/(1 + a). Nesterov, which is what timm's `sgd` means: Delta^2 = 2 lr wd F(a),
    F = [(1-a)(1+a)^3 + a^4]/(1+a) = .7063 at a = .9, with white gradients; with the momentum buffer at hand
    2 lr wd / [(1-a) + 2 a^2 <u,b>/|u|^2], with any gradients.
    """
    updates, name = response(setting)
    nesterov = setting.momentum != 0 and setting.flag("nesterov")
    formula = "2 lr wd [(1-a)(1+a)^3 + a^4]/(1+a)" if nesterov else "2 lr wd (1-tau)/(1+a)"
    return Motion(
        name,
        updates,
        step_size=setting.lr,
        decay=setting.lr * setting.weight_decay * updates.gain,
        norm_exponent=1.0,
        filtered_decay=True,
        formula=formula,
        nesterov_momentum=setting.momentum if nesterov else None,
        source=DERIVED if nesterov else WAN,
        assumptions=(WHITE if nesterov else ANY_GRADIENT, SLOW_SCHEDULE),
    )


def sgdw(setting: Setting) -> Motion:
    """timm SGDW: decay multiplies the weight, gamma = lr wd (sgdc: corrected); R as for SGD."""
    updates, name = response(setting)
    return Motion(
        name.replace("SGD", "SGDW"),
        updates,
        step_size=setting.lr,
        decay=setting.decoupled_decay,
        norm_exponent=1.0,
        formula="2 lr wd / R, R = H^2/S",
        assumptions=(WHITE, SLOW_SCHEDULE),
    )


def sgdp(setting: Setting) -> Motion:
    """timm SGDP: updates are projected onto the sphere's tangent, R = 1; Delta^2 = 2 lr wd wd_ratio/(1 - a)."""
    momentum = setting.momentum
    decay = setting.lr * setting.weight_decay * float(setting.group["wd_ratio"]) / (1 - momentum)
    updates, _ = response(setting)
    flat = up.from_autocorrelation(
        up.white().autocorrelation, gain=math.sqrt(updates.energy or 1.0), energy=updates.energy
    )
    return Motion(
        "SGDP",
        flat,
        step_size=setting.lr,
        decay=decay,
        norm_exponent=1.0,
        formula="2 lr wd wd_ratio/(1-a)",
        source="derived here from Heo et al., AdamP, 2006.08217",
        assumptions=("gradients orthogonal to the weight, so that every update is projected",),
    )


def novograd(setting: Setting) -> Motion:
    """timm NvNovoGrad: the gradient over its own running norm, through a sum b m + g with gain 1/(1 - b1)."""
    beta = setting.betas[0]
    updates = up.average(beta) if setting.flag("grad_averaging") else up.heavy_ball(beta)
    coupled = not setting.flag("decoupled_decay")
    decay = setting.lr * setting.weight_decay * updates.gain if coupled else setting.decoupled_decay
    return Motion(
        "NovoGrad",
        updates,
        step_size=setting.lr,
        decay=decay,
        filtered_decay=coupled,
        formula="2 lr wd/(1+b1)" if coupled else "2 lr wd (1-b1)/(1+b1)",
    )
