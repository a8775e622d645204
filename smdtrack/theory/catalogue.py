"""All optimizers that timm knows, with their kind of line, also those whose packages are absent here."""

import warnings
from dataclasses import dataclass

from smdtrack.theory.calibration import without_running
from smdtrack.theory.registry import RULES, identify


@dataclass(frozen=True)
class Entry:
    """One optimizer of timm's registry.

    Attributes:
        name: as `--opt` takes it.
        kind: of its line, at timm's defaults.
        formula: of the squared equilibrium angle, for people.
        source: paper and equation, or "derived here".
        reason: why there is no line or no equilibrium; where the package is absent, that.
        installed: whether it can be created here.
    """

    name: str
    kind: str
    formula: str
    source: str
    reason: str | None
    installed: bool


def entry(name: str) -> Entry:
    """The entry of one optimizer, found by asking the rule of a real instance.

    Raises:
        ValueError: if timm does not know the name.
    """
    import torch
    from timm.optim import create_optimizer_v2, get_optimizer_info

    info = get_optimizer_info(name)
    weight = torch.nn.Parameter(torch.zeros(2, 2, device="cpu"))
    if isinstance(info.opt_class, str):
        package, _, bare = info.opt_class.split(".")
        missing = absent(name)
        if missing:
            kind = "approximate" if f"{package}.{bare}" in RULES else "none"
            return Entry(name, kind, "", "code read, not run", missing, False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = create_optimizer_v2([weight], name, lr=1e-3, weight_decay=1e-2)
    with without_running():
        line = identify(optimizer).line(optimizer.param_groups[0], (64, 64))
    return Entry(name, line.kind, line.formula, line.source, line.reason, True)


def absent(name: str) -> str | None:
    """What an optimizer of timm's needs and does not find here; None where it can be created."""
    import torch
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
    """Every optimizer of timm's registry, in its order."""
    from timm.optim import list_optimizers

    return [entry(str(name)) for name in list_optimizers()]
