"""Optimizers that treat a weight as a matrix (Muon, Kron), and those that have no line at all."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from smdtrack.theory import filters
from smdtrack.theory.dynamics import DERIVED, WHITE, Dynamics, no_line
from smdtrack.theory.group_settings import GroupSettings
from smdtrack.theory.optimizer_info import GRADIENT, SCALE_FREE, SQUARED_GRADIENT, StatePowers
from smdtrack.theory.rules_adam import FORMULA_AVERAGE, KOSSON, SLOW_MOMENT, adam, nadamw

STAND_IN = "a smaller weight of the same aspect ratio stands in"


def muon(settings: GroupSettings) -> Dynamics:
    """torch.optim.Muon: orthogonalised averages; R is calibrated for the weight's shape."""
    updates = settings.calibrate(settings.optimizer, settings.group, settings.shape)
    return Dynamics(updates, step_size=settings.lr, decay=settings.decoupled_decay)


def timm_muon(settings: GroupSettings) -> Dynamics:
    """timm Muon and AdaMuon; weights whose shape does not suit are trained by AdamW or NAdamW instead."""
    group = settings.group
    if _is_routed_to_muon(settings):
        return replace(muon(settings), title="AdaMuon" if group.get("algo") == "adamuon" else None)
    scaled = replace(settings, group={**group, "lr": settings.lr * float(group.get("fallback_lr_scale", 1.0))})
    nesterov = settings.flag("nesterov")
    return replace(
        nadamw(scaled) if nesterov else adam(scaled),
        title=f"{'NAdamW' if nesterov else 'AdamW'} (Muon's fallback for this shape)",
        kind="closed form",
        formula="2 lr wd / R" if nesterov else FORMULA_AVERAGE,
        source=DERIVED if nesterov else KOSSON,
        assumptions=(WHITE, SLOW_MOMENT),
    )


def _is_routed_to_muon(settings: GroupSettings) -> bool:
    group = settings.group
    if group.get("use_fallback", False):
        return False
    if "use_muon" in group:
        return bool(group["use_muon"])
    # The choice is timm's own function, because it changes between versions.
    from timm.optim.muon import _is_suitable_for_muon

    with torch.device("meta"):
        return bool(_is_suitable_for_muon(torch.empty(settings.shape)))


def timm_muon_powers(state: Mapping[str, Any]) -> StatePowers:
    """Returns how timm Muon's state scales: AdaMuon's second moment is that of orthogonalised updates."""
    squares = SCALE_FREE if state.get("use_muon") else SQUARED_GRADIENT
    return {"momentum_buffer": GRADIENT, "exp_avg": GRADIENT, "exp_avg_sq": squares}


def kron(settings: GroupSettings) -> Dynamics:
    """timm Kron (PSGD): an average, whitened and capped in RMS; decay is added after the whitening in all variants.

    While the whitening changes at every step it takes memory out of the updates: the angle is then 11 % above the line
    (for a 16 x 16 weight). Once the default schedule has brought the changes down to one in thirty steps, it is within
    2 %.
    """
    return Dynamics(
        filters.moving_average(settings.momentum),
        step_size=settings.lr,
        decay=settings.decoupled_decay,
    )


def adadelta(settings: GroupSettings) -> Dynamics:
    """torch.optim.Adadelta."""
    return no_line("the step size is the optimizer's own running one: it has no stationary value")


def madgrad(settings: GroupSettings) -> Dynamics:
    """timm MADGRAD."""
    return no_line("dual averaging anchored at the first weights: updates do not forget old gradients")


def rprop(settings: GroupSettings) -> Dynamics:
    """torch.optim.Rprop."""
    return no_line("its step sizes adapt to the signs of the gradients: the learning rate is only where they start")
