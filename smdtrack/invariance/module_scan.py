"""Recognises models of plain layers, in which nothing can make a weight scale-invariant, by their modules alone."""

from torch import nn

_KNOWN_LIBRARIES = ("torch.nn", "torchvision.", "timm.")
_NAMES_OF_NORMALISING = ("norm", "attention", "attn", "parametrized", "std", "ws", "grn", "softmax", "cosine")
_EPS_NAMES = ("eps", "epsilon")


def has_no_normalisation(model: nn.Module) -> bool:
    """Whether a model consists of torch's, torchvision's and timm's modules, none of which normalises.

    Any other module may normalise in its forward, so a model that contains one never counts.
    """
    for module in model.modules():
        kind = type(module)
        if not kind.__module__.startswith(_KNOWN_LIBRARIES):
            return False
        if any(part in kind.__name__.lower() for part in _NAMES_OF_NORMALISING):
            return False
        if any(key in module.__dict__ for key in _EPS_NAMES) or hasattr(module, "parametrizations"):
            return False
        # A hook or a forward of the instance's own may normalise, too.
        if any(module.__dict__.get(key) for key in ("_forward_hooks", "_forward_pre_hooks", "forward")):
            return False
    return True
