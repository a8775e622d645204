"""A private float64 copy of a model; neither copying nor using it changes the original."""

import copy
from collections import OrderedDict
from typing import Any, cast

import torch
from torch import Tensor, nn

from smdtrack.notices import SmdtrackError, first_line

#: Replaces every eps: small enough to be invisible in float64, not zero, so that a variance of 0 gives no nan.
NO_EPS = 1e-20

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_CHECKPOINTING = ("grad_checkpointing", "gradient_checkpointing", "use_checkpoint")
_EPS_NAMES = ("eps", "epsilon", "norm_eps", "layer_norm_eps")


def unwrapped(model: nn.Module) -> nn.Module:
    """Strips the wrappers of `torch.compile`, DataParallel and DistributedDataParallel.

    Raises:
        SmdtrackError: The model is scripted, or its parameters are sharded over processes.
    """
    while True:
        if isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = cast(nn.Module, model._orig_mod)
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            break
    if isinstance(model, torch.jit.ScriptModule):
        raise SmdtrackError(f"{type(model).__name__} is a scripted module; audit the module that it was scripted from")
    if type(model).__name__ == "FullyShardedDataParallel" or any(
        type(parameter).__name__ == "DTensor" for parameter in model.parameters()
    ):
        raise SmdtrackError("the parameters are sharded over processes; audit the model before it is sharded")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise SmdtrackError("the model is on the meta device, its parameters have no values; move it to a real device")
    if any(isinstance(parameter, nn.parameter.UninitializedParameter) for parameter in model.parameters()):
        raise SmdtrackError("the model has lazy parameters; run one forward pass before the audit")
    return model


def _converted(tensor: Tensor, device: torch.device) -> Tensor:
    """A detached copy on `device`, in float64 where it is floating."""
    if tensor.is_meta:
        return tensor.detach()
    dtype = torch.float64 if tensor.is_floating_point() else tensor.dtype
    if tensor.is_complex():
        dtype = torch.complex128
    return tensor.detach().to(device=device, dtype=dtype, copy=True)


def private_copy(model: nn.Module, device: torch.device) -> tuple[nn.Module, dict[int, nn.Parameter]]:
    """Copies a model to float64 without its hooks.

    The float64 tensors are put into `deepcopy`'s memo beforehand. So float32 duplicates never exist, tied weights stay
    tied, and tensors with a history (`weight_norm` leaves one) do not stop the copying. Hooks are not copied, except
    those by which torch itself reparametrises a weight.

    Returns:
        The copy, and its parameters by the `id` of the parameters that they were copied from.

    Raises:
        SmdtrackError: An attribute of the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    parameters: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for key in _HOOKS:
            store = module.__dict__.get(key)
            # Also for empty ones: deepcopy then need not look into thousands of dicts.
            if store is not None:
                memo[id(store)] = OrderedDict(
                    (handle, copy.deepcopy(hook, {}))
                    for handle, hook in store.items()
                    if type(hook).__module__.startswith("torch.nn.utils")
                )
        if module.__dict__.get("_compiled_call_impl") is not None:
            memo[id(module.__dict__["_compiled_call_impl"])] = None
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in parameters:
                floating = parameter.is_floating_point() or parameter.is_complex()
                fresh = nn.Parameter(_converted(parameter, device), requires_grad=floating)
                memo[id(parameter)] = parameters[id(parameter)] = fresh
        for buffer in module.buffers(recurse=False):
            memo[id(buffer)] = _converted(buffer, device)
        for value in module.__dict__.values():
            if isinstance(value, Tensor) and id(value) not in memo:
                memo[id(value)] = _converted(value, device)
    for module in reversed(list(model.modules())):
        if isinstance(module.__dict__.get("_modules", {}).get("_orig_mod"), nn.Module):
            memo[id(module)] = copy.deepcopy(module._orig_mod, memo)
    try:
        duplicate = copy.deepcopy(model, memo)
    except Exception as error:
        raise SmdtrackError(f"cannot copy {type(model).__name__} for the audit: {first_line(error)}") from error
    return duplicate, parameters


class _LocalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over this process's batch only, followed by the activation that timm's `SyncBatchNormAct` has."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        for follower in ("drop", "act"):
            module = getattr(self, follower, None)
            if isinstance(module, nn.Module):
                output = module(output)
        return output


def _is_dropout(module: nn.Module) -> bool:
    """Whether a module only adds noise: dropout, drop-path, drop-block, stochastic depth, patch dropout."""
    name = type(module).__name__.lower()
    return next(module.children(), None) is None and ("drop" in name or "stochasticdepth" in name)


def remove_noise_and_eps(model: nn.Module) -> None:
    """Removes from a copy what hides exact invariance (noise, eps) and what costs time (collectives, checkpointing)."""
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.__class__ = _LocalBatchNorm  # type: ignore[assignment]
        if _is_dropout(module):
            module.training = False
        for key in _CHECKPOINTING:
            if module.__dict__.get(key) is True:
                setattr(module, key, False)
        for key in _EPS_NAMES:
            if isinstance(module.__dict__.get(key), float):
                setattr(module, key, NO_EPS)


def set_training_mode(duplicate: nn.Module) -> None:
    """Puts a copy into the mode in which the model trains.

    If any module is in training mode, every module keeps its flag: a batch norm that the user froze (`bn.eval()`) stays
    frozen. A model that is wholly in eval mode was just evaluated or will be trained. It is put into training mode by
    its own `train()`, because models that keep their batch norm frozen override that method.
    """
    if not any(module.training for module in duplicate.modules()):
        duplicate.train()
