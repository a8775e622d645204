"""SGD and its relatives: the step is proportional to the gradient, so that |u| ~ 1/||w||."""

from smdtrack.theory import filters
from smdtrack.theory.dynamics import ANY_GRADIENT, DERIVED, WHITE, Dynamics
from smdtrack.theory.group_settings import GroupSettings
from smdtrack.theory.update_statistics import UpdateStatistics

WAN = "Wan, Zhu, Zhang, Sun: Spherical Motion Dynamics, 2006.08419 (dampening: derived here)"
SLOW_SCHEDULE = "the learning rate changes little within 1/(1 - momentum) steps"
PROJECTED = "gradients orthogonal to the weight, so that every update is projected"


def momentum_filter(settings: GroupSettings) -> tuple[UpdateStatistics, str]:
    """Returns the filter of torch's SGD with these settings, and the name of the variant."""
    momentum, nesterov = settings.momentum, settings.flag("nesterov")
    if momentum == 0:
        return filters.identity(), "SGD"
    if nesterov:
        return filters.nesterov(momentum), "SGD with Nesterov momentum"
    return filters.heavy_ball(momentum, float(settings.group.get("dampening", 0.0))), "SGD with momentum"


def sgd(settings: GroupSettings) -> Dynamics:
    """torch.optim.SGD: weight decay is part of the gradient, gamma = lr wd H.

    Heavy-ball: Delta^2 = 2 lr wd (1 - tau)/(1 + a). Nesterov, which is what timm calls `sgd`: Delta^2 = 2 lr wd F(a),
    F = [(1-a)(1+a)^3 + a^4]/(1+a) = .7063 at a = .9, for white gradients. With the momentum buffer b it is
    2 lr wd / [(1-a) + 2 a^2 <u,b>/|u|^2], for any gradients.
    """
    updates, title = momentum_filter(settings)
    nesterov = settings.momentum != 0 and settings.flag("nesterov")
    return Dynamics(
        updates,
        step_size=settings.lr,
        decay=settings.lr * settings.weight_decay * updates.gain,
        norm_exponent=1.0,
        coupled=True,
        nesterov_momentum=settings.momentum if nesterov else None,
        title=title,
        formula="2 lr wd [(1-a)(1+a)^3 + a^4]/(1+a)" if nesterov else None,
        source=DERIVED if nesterov else None,
        assumptions=(WHITE, SLOW_SCHEDULE) if nesterov else (ANY_GRADIENT, SLOW_SCHEDULE),
    )


def sgdw(settings: GroupSettings) -> Dynamics:
    """timm SGDW: weight decay multiplies the weight, gamma = lr wd (corrected in `sgdc`); R as for SGD."""
    updates, title = momentum_filter(settings)
    return Dynamics(
        updates,
        step_size=settings.lr,
        decay=settings.decoupled_decay,
        norm_exponent=1.0,
        title=title.replace("SGD", "SGDW"),
    )


def sgdp(settings: GroupSettings) -> Dynamics:
    """timm SGDP: updates are projected onto the sphere's tangent, R = 1; Delta^2 = 2 lr wd wd_ratio/(1 - a)."""
    momentum = settings.momentum
    updates, _ = momentum_filter(settings)
    return Dynamics(
        filters.projected(updates),
        step_size=settings.lr,
        decay=settings.lr * settings.weight_decay * float(settings.group["wd_ratio"]) / (1 - momentum),
        norm_exponent=1.0,
    )


def novograd(settings: GroupSettings) -> Dynamics:
    """timm NvNovoGrad: the gradient over its own running norm, through a sum b m + g with gain 1/(1 - b1)."""
    beta = settings.betas[0]
    updates = filters.moving_average(beta) if settings.flag("grad_averaging") else filters.heavy_ball(beta)
    decay = settings.lr * settings.weight_decay * updates.gain if settings.coupled else settings.decoupled_decay
    return Dynamics(
        updates,
        step_size=settings.lr,
        decay=decay,
        coupled=settings.coupled,
        formula="2 lr wd/(1+b1)" if settings.coupled else None,
    )
