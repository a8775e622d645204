"""All optimizer records in one table, and the search for the record of a class."""

import inspect

from smdtrack.theory.optimizer_info import OptimizerInfo
from smdtrack.theory.records_others import APEX, BITSANDBYTES
from smdtrack.theory.records_timm import TIMM
from smdtrack.theory.records_torch import TORCH

OPTIMIZERS: dict[str, OptimizerInfo] = {info.key: info for info in (*TORCH, *TIMM, *APEX, *BITSANDBYTES)}


def info_of(optimizer_class: type) -> OptimizerInfo | None:
    """Returns the record of an optimizer class; None if it has none.

    A subclass that keeps the `step` of a class with a record has the same record. A subclass with a `step` of its own
    may do anything and has none.
    """
    step = inspect.unwrap(getattr(optimizer_class, "step", optimizer_class))
    for ancestor in optimizer_class.__mro__:
        info = OPTIMIZERS.get(f"{ancestor.__module__.split('.')[0]}.{ancestor.__name__}")
        if info and inspect.unwrap(ancestor.__dict__.get("step", getattr(ancestor, "step", None))) is step:
            return info
    return None
