"""timm's optimizer and scheduler factories, imported without the rest of timm.

`import timm.optim` first imports timm itself, with every model and torchvision: two seconds and more, of which a
prediction needs nothing. `optim()` and `scheduler()` therefore import the two subpackages alone if timm has not been
imported yet. Both return the ordinary modules if it has, or if the short way fails with some version of timm.
"""

import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_PARTS = ("timm.optim", "timm.scheduler")
_loaded: dict[str, ModuleType] = {}
_lock = threading.Lock()


def optim() -> Any:
    """Returns the module `timm.optim`."""
    return _part("timm.optim")


def scheduler() -> Any:
    """Returns the module `timm.scheduler`."""
    return _part("timm.scheduler")


def _part(name: str) -> ModuleType:
    with _lock:
        if name not in _loaded:
            if "timm" not in sys.modules:
                try:
                    _loaded.update(_import_alone())
                except Exception:  # another layout of timm: the ordinary import is slower, but always right
                    _loaded.clear()
            if name not in _loaded:
                _loaded[name] = importlib.import_module(name)
        return _loaded[name]


def _import_alone() -> dict[str, ModuleType]:
    """Imports the parts under stand-ins for what they import needlessly. `sys.modules` is left as it was.

    The modules are then known to nobody else: a later `import timm` imports everything anew.
    """
    with _stand_ins():
        return {name: importlib.import_module(name) for name in _PARTS}


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Puts stand-ins into `sys.modules` while the parts are imported.

    * `timm` is an empty package in timm's folder, so that its `__init__` does not run.
    * `timm.models` offers the one function that parameter groups by layer need; a list of parameters does not use it.
    * `torch.distributed.tensor` is absent. Muon then takes tensors for ordinary ones, which they are here.
    * `torch._dynamo` has no settings. Kron then works without the compiler, which it would load on import.
    """
    import torch

    spec = importlib.util.find_spec("timm")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("timm is not installed as a package")
    package = ModuleType("timm")
    package.__path__ = list(spec.submodule_search_locations)
    package.__spec__ = spec
    models = ModuleType("timm.models")
    models.group_parameters = None  # type: ignore[attr-defined]
    hidden: dict[str, ModuleType | None] = {"timm": package, "timm.models": models}
    if "torch.distributed.tensor" not in sys.modules:
        hidden["torch.distributed.tensor"] = None
    hides_compiler = "_dynamo" not in vars(torch)
    sys.modules.update(hidden)  # type: ignore[arg-type]
    if hides_compiler:
        torch._dynamo = object()  # type: ignore[assignment]
    try:
        yield
    finally:
        if hides_compiler:
            del torch._dynamo
        for name in [name for name in sys.modules if name in hidden or name.split(".")[0] == "timm"]:
            del sys.modules[name]


@contextmanager
def without_compiler() -> Iterator[None]:
    """Within it optimizers are constructed without loading torch's compiler, which costs a second and more.

    torch keeps `Optimizer.add_param_group` out of compiled code by a wrapper that imports the compiler when it is first
    called. Here the function inside the wrapper is called. Nothing is compiled in a prediction.
    """
    from torch.optim import Optimizer

    wrapper = Optimizer.add_param_group
    plain = getattr(wrapper, "__wrapped__", None)
    if plain is None or "torch._dynamo" in sys.modules:
        yield
        return
    Optimizer.add_param_group = plain  # type: ignore[method-assign]
    try:
        yield
    finally:
        Optimizer.add_param_group = wrapper  # type: ignore[method-assign]
