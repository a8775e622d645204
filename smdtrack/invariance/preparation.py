"""Prepares a copied model for the audit: training mode, no noise, no eps, no collectives."""

import re

import torch
from torch import Tensor, nn

from smdtrack.invariance.computation_mode import NO_EPS

_CHECKPOINTING = ("grad_checkpointing", "gradient_checkpointing", "use_checkpoint")
_EPS_NAME = re.compile(r"(^|_)eps(ilon)?(_|\d|$)")
#: An attribute with such a name and a larger value is something else.
_LARGEST_EPS = 1.0


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


def remove_noise_and_eps(model: nn.Module, dtype: torch.dtype = torch.float64) -> None:
    """Removes from a copy what hides exact invariance (noise, eps) and what costs time (collectives, checkpointing).

    Eps that are not attributes with such a name are removed while the model computes (see `ComputationMode`).
    """
    no_eps = NO_EPS[dtype]
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        if isinstance(module, nn.SyncBatchNorm):
            module.__class__ = _LocalBatchNorm  # type: ignore[assignment]
        if _is_dropout(module):
            module.training = False
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            module.sparse = False  # Its gradient is then an ordinary tensor.
        for key in _CHECKPOINTING:
            if module.__dict__.get(key) is True:
                setattr(module, key, False)
        for key, value in list(module.__dict__.items()):
            if isinstance(value, float) and 0 < value <= _LARGEST_EPS and _EPS_NAME.search(key):
                setattr(module, key, no_eps)
        for key, buffer in module._buffers.items():
            if buffer is not None and buffer.numel() == 1 and buffer.is_floating_point() and _EPS_NAME.search(key):
                buffer.fill_(no_eps)


def set_training_mode(duplicate: nn.Module) -> None:
    """Puts a copy into the mode in which the model trains.

    If any module is in training mode, every module keeps its flag: a batch norm that the user froze (`bn.eval()`) stays
    frozen. A model that is wholly in eval mode was just evaluated or will be trained. It is put into training mode by
    its own `train()`, because models that keep their batch norm frozen override that method.
    """
    if not any(module.training for module in duplicate.modules()):
        duplicate.train()
