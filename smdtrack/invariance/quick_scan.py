"""Models of plain layers in which nothing could make a weight scale-invariant, told by their modules alone."""

from torch import nn

_KNOWN = ("torch.nn", "torchvision.", "timm.")
_SUSPECTS = ("norm", "attention", "attn", "parametrized", "std", "ws", "grn", "softmax", "cosine")
_EPS = ("eps", "epsilon")


def nothing_normalises(model: nn.Module) -> bool:
    """Whether a model consists of torch's, torchvision's and timm's modules, none of which normalises.

    A module of unknown origin may normalise in its own forward, so that a model with one is never answered here.
    """
    for module in model.modules():
        kind = type(module)
        if not kind.__module__.startswith(_KNOWN):
            return False
        if any(suspect in kind.__name__.lower() for suspect in _SUSPECTS):
            return False
        if any(key in module.__dict__ for key in _EPS) or hasattr(module, "parametrizations"):
            return False
        if module.__dict__.get("_forward_pre_hooks"):
            return False
    return True
