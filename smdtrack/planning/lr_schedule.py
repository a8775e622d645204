"""The learning rate of every step of a timm recipe: timm's own scheduler, stepped over a dummy optimizer."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from smdtrack.notices import SmdtrackError

SCHEDULES = ("cosine", "tanh", "step", "multistep", "poly", "plateau", "wsd", "rsqrt", "constant", "none")
_PIECES = 4000


@dataclass(frozen=True)
class Piece:
    """Consecutive steps under one learning rate.

    Attributes:
        epoch: in which they begin (a fraction within an epoch).
        steps: how many.
        lr: in force.
    """

    epoch: float
    steps: int
    lr: float


def optimizer_of(
    name: str,
    lr: float,
    weight_decay: float,
    shape: tuple[int, ...],
    arguments: Mapping[str, Any],
) -> Optimizer:
    """A real optimizer over one weight of the given shape, made by timm's factory.

    Raises:
        SmdtrackError: where the hyper-parameters are refused, with the optimizer's own words.
    """
    from timm.optim import create_optimizer_v2

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            weight = torch.nn.Parameter(torch.empty(shape, device="meta"))
            optimizer: Optimizer = create_optimizer_v2([weight], name, lr=lr, weight_decay=weight_decay, **arguments)
    except (TypeError, ValueError, AssertionError, ImportError, ArithmeticError, LookupError) as error:
        raise SmdtrackError(f"--opt {name} cannot be made with these hyper-parameters: {error}") from error
    return optimizer


def pieces(
    optimizer: Optimizer,
    steps_per_epoch: int,
    options: Mapping[str, Any],
) -> tuple[list[Piece], list[str]]:
    """The schedule as timm's train.py would step it.

    Args:
        optimizer: a dummy whose lr is the base learning rate; it is used up.
        steps_per_epoch: optimizer steps.
        options: `sched`, `epochs`, `warmup_epochs`, ... named as in train.py.

    Returns:
        Pieces in order, and remarks on what could not be known.

    Raises:
        SmdtrackError: an unknown schedule, or one that timm refuses.
    """
    from timm.scheduler import create_scheduler_v2
    from timm.scheduler.scheduler_factory import scheduler_kwargs

    sched = str(options["sched"])
    known = ", ".join(SCHEDULES)
    arguments = scheduler_kwargs(_Options(options))
    if arguments.get("decay_epochs") is None:
        arguments["decay_epochs"] = 0.2 if sched in ("wsd", "rsqrt") else 90
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler, epochs = create_scheduler_v2(optimizer, **arguments, updates_per_epoch=steps_per_epoch)
    except (AssertionError, ValueError, TypeError, ArithmeticError) as error:
        reason = str(error).rstrip(".") or "its options are out of range"
        raise SmdtrackError(f"--sched {sched!r} is refused by timm: {reason}; it may know {known}") from error
    if scheduler is None and sched != "none":
        raise SmdtrackError(f"--sched {sched!r} is not a schedule of this timm's; it may know {known}")
    remarks = []
    if sched == "plateau":
        remarks.append("a plateau schedule depends on the metric: shown as if it never dropped")
    group = optimizer.param_groups[0]
    whole: list[Piece] = []
    on_updates = bool(options.get("sched_on_updates")) and scheduler is not None
    for epoch in range(int(epochs)):
        if scheduler is None or not on_updates:
            if scheduler is not None and epoch > 0:
                scheduler.step(epoch) if sched != "plateau" else _warm(scheduler, epoch)
            whole.append(Piece(epoch, steps_per_epoch, float(group["lr"])))
            continue
        stride = max(1, round(int(epochs) * steps_per_epoch / _PIECES))
        for first in range(0, steps_per_epoch, stride):
            count = min(stride, steps_per_epoch - first)
            middle = epoch * steps_per_epoch + first + count // 2
            if middle > 0:
                scheduler.step_update(middle)
            whole.append(Piece(epoch + first / steps_per_epoch, count, float(group["lr"])))
    return whole, remarks


def _warm(scheduler: Any, epoch: int) -> None:
    """A plateau scheduler asks for a metric; one that always improves never drops."""
    scheduler.step(epoch, metric=float(epoch))


class _Options:
    """Options as attributes, which timm's helper wants."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.__dict__.update(options)
