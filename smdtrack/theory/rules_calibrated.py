"""Dynamics that are measured by running the optimizer: cautious variants, and optimizers without a record."""

import math
from dataclasses import replace

from smdtrack.theory.calibration import CALIBRATED, CannotRunError
from smdtrack.theory.decay_response import decay_response
from smdtrack.theory.dynamics import WHITE, Dynamics, no_line
from smdtrack.theory.finite_decay import angle_at_fixed_norm
from smdtrack.theory.fixed_norm import FixedNorm, fixed_norm
from smdtrack.theory.group_settings import GroupSettings
from smdtrack.theory.own_process import in_own_process
from smdtrack.theory.update_statistics import UpdateStatistics

FIXED_NORM = "the optimizer keeps the norm fixed: there is no balance of growth and decay, and the angle is set by lr"


def cautious(dynamics: Dynamics, settings: GroupSettings) -> Dynamics:
    """Returns the dynamics of the cautious variant, which masks updates that oppose the gradient; R by calibration.

    Source: Liang et al., Cautious Optimizers, 2411.16085, for the optimizer.
    """
    if dynamics.updates is None or dynamics.trust is not None:
        return dynamics
    updates = settings.calibrate(settings.optimizer, settings.group, None)
    dynamics = replace(
        dynamics,
        updates=updates,
        title=f"cautious {dynamics.title}",
        kind="calibrated",
        formula="2 gamma / R, R calibrated",
        source=CALIBRATED,
    )
    if not dynamics.decay_needs_state:
        return dynamics
    # The measured gain contains the effect of the mask and of the gradient's own share of its denominator.
    return replace(dynamics, decay=settings.lr * settings.weight_decay * updates.gain)


def unknown(settings: GroupSettings) -> Dynamics:
    """An optimizer without a record: its update statistics and its response to weight decay and scale are measured."""
    if settings.flag("relative_step"):
        return no_line("the learning rate is relative to the weight's own size")
    shape = settings.shape if len(settings.shape) > 1 else None
    try:
        updates = settings.calibrate(settings.optimizer, settings.group, shape)
        response = decay_response(settings.optimizer, settings.group, in_own_process)
        fixed = fixed_norm(settings.optimizer, settings.group)
    except CannotRunError as error:
        return no_line(str(error))
    if fixed is not None:
        return _of_fixed_norm(settings, updates, fixed)
    if not response.follows_lr:
        return no_line("its step is not proportional to the learning rate")
    if response.follows_weight:
        return no_line("its step follows the weight's norm in a way that is not known")
    if not math.isfinite(updates.memory) or updates.memory <= 0:
        return no_line(f"its updates on white noise have a memory of {updates.memory:.3g}")
    if response.decay_needs_state and settings.weight_decay > 0:
        return no_line("weight decay passes through its normalisation, whose state is not known")
    return Dynamics(
        updates,
        step_size=settings.lr,
        decay=response.decay(settings.lr, settings.weight_decay),
        norm_exponent=response.norm_exponent,
        kind="calibrated",
        formula="2 gamma / R, both measured on white noise",
        source=CALIBRATED,
        assumptions=(
            WHITE,
            "an optimizer that smdtrack has no formula for: its memory and decay were calibrated by running it",
        ),
    )


def _of_fixed_norm(settings: GroupSettings, updates: UpdateStatistics, fixed: FixedNorm) -> Dynamics:
    """The norm stays as it is and the learning rate sets the angle; like LAMB, with neither growth nor decay."""
    if fixed.follows_gradient or not fixed.follows_lr:
        depends = "the size of the gradients" if fixed.follows_gradient else "more than the learning rate"
        return no_line(f"it keeps the weight's norm fixed, and the angle depends on {depends}")
    return Dynamics(
        updates,
        step_size=settings.lr,
        norm_exponent=-1.0,
        trust="whole",
        fixed_angle=angle_at_fixed_norm(updates.autocorrelation, (fixed.angle_over_lr * settings.lr) ** 2),
        kind="calibrated",
        formula=f"Delta = {fixed.angle_over_lr:.4g} lr, less what the memory adds along the weight",
        source="derived here (angle of the real optimizer's steps on white noise)",
        assumptions=("the optimizer keeps the weight's norm fixed", "the angle does not depend on the weight's shape"),
        reason=FIXED_NORM,
    )
