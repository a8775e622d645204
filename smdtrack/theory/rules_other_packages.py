"""Optimizers of apex and bitsandbytes whose settings are named differently from their relatives in torch and timm."""

from dataclasses import replace

from smdtrack.theory import filters
from smdtrack.theory.dynamics import Dynamics
from smdtrack.theory.group_settings import GroupSettings
from smdtrack.theory.rules_sgd import sgd


def apex_novograd(settings: GroupSettings) -> Dynamics:
    """apex FusedNovoGrad: weight decay after the moments unless the optimizer's `moment_mode` is 0."""
    beta = settings.betas[0]
    averaged = bool(settings.group.get("grad_averaging", True))
    updates = filters.moving_average(beta) if averaged else filters.heavy_ball(beta)
    inside = getattr(settings.optimizer, "moment_mode", 1) == 0
    return Dynamics(
        updates,
        step_size=settings.lr,
        decay=settings.lr * settings.weight_decay * (updates.gain if inside else 1.0),
        coupled=inside,
    )


def bitsandbytes_sgd(settings: GroupSettings) -> Dynamics:
    """bitsandbytes SGD: its kernel knows heavy-ball only and ignores `nesterov`; betas[0] holds the momentum."""
    momentum = settings.betas[0] if "betas" in settings.group else settings.momentum
    return sgd(replace(settings, group={**settings.group, "momentum": momentum, "nesterov": False}))
