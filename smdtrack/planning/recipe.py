"""The settings of a timm training that decide how far its weights turn: optimizer, learning rate, decay, schedule."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from smdtrack.notices import SmdtrackError

#: Schedules that end at `min_lr`.
ENDS_AT_MIN_LR = ("cosine", "tanh", "poly", "wsd", "rsqrt")
#: Schedules in which `decay_rate` is the factor of one drop of the learning rate. For `poly` it is an exponent.
DROPS_BY_DECAY_RATE = ("step", "multistep", "plateau")


@dataclass(frozen=True)
class Recipe:
    """One recipe. Every attribute has the name, the meaning and (if optional) the default that timm's train.py has.

    timm's own `optimizer_kwargs` and `scheduler_kwargs` read a `Recipe` as they read train.py's parsed arguments.

    Raises:
        SmdtrackError: Two settings contradict each other.
    """

    lr: float
    weight_decay: float
    opt: str = "sgd"
    momentum: float = 0.9
    opt_eps: float | None = None
    opt_betas: tuple[float, ...] | None = None
    opt_kwargs: Mapping[str, Any] = field(default_factory=dict)
    sched: str = "cosine"
    sched_on_updates: bool = False
    epochs: int = 300
    warmup_epochs: float = 5
    warmup_lr: float = 1e-5
    warmup_prefix: bool = False
    min_lr: float = 0.0
    decay_epochs: float | None = None
    decay_milestones: tuple[float, ...] = (90, 180, 270)
    decay_rate: float = 0.1
    cooldown_epochs: float = 0
    patience_epochs: int = 10
    lr_cycle_mul: float = 1.0
    lr_cycle_decay: float = 0.5
    lr_cycle_limit: int = 1
    lr_k_decay: float = 1.0
    lr_decay_fn: str | None = None
    lr_stable_timescale: float | None = None
    lr_noise: tuple[float, ...] | None = None
    lr_noise_pct: float = 0.67
    lr_noise_std: float = 1.0
    seed: int = 42
    batch_size: int | None = None
    layer_decay: float | None = None
    layer_decay_min_scale: float = 0.0
    layer_decay_no_opt_scale: float | None = None
    clip_grad: float | None = None
    clip_mode: str = "norm"
    model_ema: bool = False
    model_ema_decay: float = 0.9998

    def __post_init__(self) -> None:
        if self.sched in ENDS_AT_MIN_LR and self.min_lr > self.lr:
            raise SmdtrackError(f"min_lr {self.min_lr!r} is above the learning rate {self.lr!r}")
        if self.sched in DROPS_BY_DECAY_RATE and self.decay_rate > 1:
            raise SmdtrackError(
                f"decay_rate {self.decay_rate!r} would raise the learning rate; a factor from 0 to 1 lowers it"
            )

    @property
    def warms_up(self) -> bool:
        """Whether the schedule begins with a warm-up."""
        return self.sched != "none" and self.warmup_epochs > 0

    def notes(self) -> list[str]:
        """Returns what a reader of the prediction must know about these settings, one sentence each."""
        found = []
        if self.warms_up and self.warmup_epochs >= self.epochs and not self.warmup_prefix:
            found.append(f"warm-up ({self.warmup_epochs:g} epochs) takes the whole run ({self.epochs:g} epochs)")
        return found


def scaled_lr(
    opt: str,
    lr_base: float,
    batch_size: int,
    *,
    lr_base_size: int = 256,
    lr_base_scale: str = "",
    world_size: int = 1,
    grad_accum_steps: int = 1,
) -> float:
    """Returns the learning rate that timm's train.py derives from `lr_base` and the batch size.

    The rate grows in proportion to the batch, and with its square root for optimizers whose name contains `ada` or
    `lamb`, unless `lr_base_scale` says otherwise.

    Args:
        opt: timm's name of the optimizer.
        lr_base: learning rate for a batch of `lr_base_size`.
        batch_size: images per process and backward pass.
        lr_base_size: the batch that `lr_base` is meant for.
        lr_base_scale: "sqrt", "linear", or empty for timm's choice by the optimizer's name.
        world_size: number of processes.
        grad_accum_steps: backward passes per optimizer step.
    """
    ratio = batch_size * world_size * grad_accum_steps / lr_base_size
    scale = lr_base_scale or ("sqrt" if any(part in opt.lower() for part in ("ada", "lamb")) else "linear")
    return lr_base * (math.sqrt(ratio) if scale == "sqrt" else ratio)
