"""All optimizers that timm knows, with their kind of line, including those whose packages are not installed."""

import warnings
from dataclasses import dataclass

import torch

from smdtrack.theory.family import identify
from smdtrack.theory.optimizer_table import OPTIMIZERS

#: Shape for which the lines are described; timm's Muon accepts it.
_SHAPE = (64, 64)


@dataclass(frozen=True)
class Entry:
    """One optimizer of timm's registry.

    Attributes:
        name: As timm's `--opt` takes it.
        kind: Of its line, with timm's default settings.
        formula: The squared equilibrium angle.
        source: Paper and equation, or "derived here".
        reason: Why there is no line or no equilibrium; if a package is missing, its name.
        installed: Whether the optimizer can be created here.
    """

    name: str
    kind: str
    formula: str
    source: str
    reason: str | None
    installed: bool


def entry(name: str) -> Entry:
    """Returns the entry of one optimizer.

    Raises:
        ValueError: If timm does not know the name.
    """
    from timm.optim import create_optimizer_v2, get_optimizer_info

    found = get_optimizer_info(name).opt_class
    missing = absent(name)
    if missing:
        package, _, class_name = str(found).split(".")
        kind = "approximate" if f"{package}.{class_name}" in OPTIMIZERS else "none"
        return Entry(name, kind, "", "code read, not run", missing, False)
    weight = torch.nn.Parameter(torch.zeros(2, 2, device="cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = create_optimizer_v2([weight], name, lr=1e-3, weight_decay=1e-2)
    said = identify(optimizer).describe(optimizer.param_groups[0], _SHAPE, in_training=False)
    return Entry(name, said.kind, said.formula, said.source, said.reason, True)


def absent(name: str) -> str | None:
    """Returns what a timm optimizer needs and does not find here; None if it can be created."""
    from timm.optim import get_optimizer_class, get_optimizer_info

    found = get_optimizer_info(name).opt_class
    if not isinstance(found, str):
        return None
    package = found.split(".")[0]
    try:
        get_optimizer_class(name)
    except (ImportError, AssertionError):
        device = "" if torch.cuda.is_available() else " and a CUDA device"
        return f"needs the package {package}{device}, which is absent here"
    return None


def entries() -> list[Entry]:
    """Returns every optimizer of timm's registry, in its order."""
    from timm.optim import list_optimizers

    return [entry(str(name)) for name in list_optimizers()]
