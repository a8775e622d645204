"""The audit of a model whose parameters are sharded over processes (FSDP2)."""

import copy
from collections.abc import Sequence
from typing import Any

from torch import distributed as dist
from torch import nn

from smdtrack.invariance import Audit, audit
from smdtrack.notices import SmdtrackError
from smdtrack.tracking.measure.sharding import is_dtensor

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_CONTENTS = ("_parameters", "_buffers", "_modules")


def is_sharded(model: nn.Module) -> bool:
    """Whether any of a model's parameters is distributed over processes."""
    return any(is_dtensor(parameter) for parameter in model.parameters())


def agreed(value: Any) -> Any:
    """Returns the first process's value in every process. A collective: every process must call it."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def audit_sharded(model: nn.Module, example_input: Any) -> Audit:
    """Audits a model whose parameters are sharded: all processes gather a full copy, the first one audits it.

    Raises:
        SmdtrackError: In every process, if the audit fails.
    """
    duplicate = unsharded_copy(model)
    result: Audit | None = None
    failure = ""
    if dist.get_rank() == 0:
        try:
            result = audit(duplicate, example_input)
        except Exception as error:
            failure = str(error)
    result, failure = agreed((result, failure))
    if result is None:
        raise SmdtrackError(failure)
    return result


def unsharded_copy(model: nn.Module) -> nn.Module:
    """Returns a copy of a model with whole parameters and without hooks. A collective: every process must call it.

    FSDP2 replaces each module's class by a subclass that cannot be copied. While the model is copied, the modules have
    their original classes.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for key in _HOOKS:
            if module.__dict__.get(key):
                memo[id(module.__dict__[key])] = type(module.__dict__[key])()
        for key, value in module.__dict__.items():
            # fully_shard stores process groups in its modules; those cannot be copied.
            entries = value.values() if isinstance(value, dict) and key not in _CONTENTS else ()
            if any(type(entry).__module__.startswith("torch.distributed") for entry in entries):
                memo[id(value)] = {}
    for parameter in model.parameters():
        full = parameter.full_tensor() if is_dtensor(parameter) else parameter  # type: ignore[attr-defined]
        memo[id(parameter)] = nn.Parameter(full.detach().clone(), requires_grad=parameter.requires_grad)
    wrapped = [(module, type(module)) for module in model.modules() if "FSDPModule" in _bases(type(module))]
    try:
        for module, kind in wrapped:
            module.__class__ = kind.__mro__[2]
        return copy.deepcopy(model, memo)
    finally:
        for module, kind in wrapped:
            module.__class__ = kind


def _bases(kind: type) -> Sequence[str]:
    return [base.__name__ for base in kind.__bases__]
