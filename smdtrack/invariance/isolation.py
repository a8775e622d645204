"""Runs forward passes in the user's process and restores every global state afterwards."""

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy
import torch
from torch.nn.modules import module as torch_module


@contextmanager
def untouched_generators() -> Iterator[None]:
    """Restores the random states of Python, NumPy, torch and CUDA at the end."""
    python_state = random.getstate()
    numpy_state = numpy.random.get_state()
    torch_state = torch.get_rng_state()
    on_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda_states = torch.cuda.get_rng_state_all() if on_cuda else None
    try:
        yield
    finally:
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)


@contextmanager
def silent_global_hooks() -> Iterator[None]:
    """Removes torch's global module hooks inside the context: they would see every module of the copy."""
    registries = [
        value
        for key, value in vars(torch_module).items()
        if key.startswith("_global_")
        and key.endswith(("hooks", "hooks_always_called", "hooks_with_kwargs"))
        and isinstance(value, dict)
    ]
    saved = [dict(registry) for registry in registries]
    for registry in registries:
        registry.clear()
    try:
        yield
    finally:
        for registry, content in zip(registries, saved, strict=True):
            registry.update(content)


@contextmanager
def isolated(device: torch.device) -> Iterator[None]:
    """Sets the state in which an audit runs: gradients on, autocast off, eager, own random numbers, no global hooks."""
    with ExitStack() as stack:
        stack.enter_context(untouched_generators())
        stack.enter_context(silent_global_hooks())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autograd.set_detect_anomaly(False))
        for kind in {"cpu", device.type}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        # Importing dynamo takes seconds. If it was not imported, nothing is compiled.
        if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def seed_generators(seed: int) -> None:
    """Seeds every global random generator, so that noise inside a model is the same in every forward pass."""
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
