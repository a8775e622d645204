"""How many operations a measurement launches, which does not grow with the weights, and how much memory it holds."""

import tracemalloc
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from smdtrack.tracking.measure import backends
from smdtrack.tracking.measure.probe import Probe

#: Operations that make views or allocate memory. They launch no kernel.
FREE = {
    "detach",
    "view",
    "_unsafe_view",
    "select",
    "slice",
    "as_strided",
    "empty",
    "empty_like",
    "unbind",
    "alias",
    "permute",
    "transpose",
    "t",
    "expand",
    "unsqueeze",
    "squeeze",
    "new_empty",
}


class Launches(TorchDispatchMode):
    """Counts operations, each of which launches a kernel on a GPU, and adds up the memory that they allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.bytes = 0
        self._seen: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in FREE:
            self.counts[name] += 1
        known = {x.untyped_storage().data_ptr() for x in torch.utils._pytree.tree_leaves(args) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in known and storage.data_ptr() not in self._seen:
                    self._seen[storage.data_ptr()] = storage  # kept, so that no other gets its address
                    self.bytes += storage.nbytes()
        return result


def weights_of(count: int, dtype: torch.dtype = torch.float32) -> tuple[dict[int, Tensor], ...]:
    """Weights, gradients, changed weights and vectors, all small."""
    weights = {column: torch.randn(20 + column % 7, 30).to(dtype) for column in range(count)}
    others = [{column: torch.randn_like(weight) for column, weight in weights.items()} for _ in range(3)]
    return weights, *others


def launches(count: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> Launches:
    monkeypatch.setattr(backends, "backend_for", lambda device: backends.ForeachBackend())
    weights, gradients, changed, vectors = weights_of(count, dtype)
    probe = Probe(count)
    with Launches() as seen:
        probe.begin(weights, gradients)
        probe.end(changed, momentum=vectors)
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_foreach_backend_launches_as_many_kernels_for_a_hundred_weights_as_for_ten(
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few, many = (launches(count, dtype, monkeypatch) for count in (10, 100))
    assert many.counts == few.counts
    assert sum(many.counts.values()) <= 50, many.counts


def test_the_cpu_backend_calls_at_most_three_operations_of_torch() -> None:
    weights, gradients, changed, vectors = weights_of(50)
    probe = Probe(50)
    with Launches() as seen:
        probe.begin(weights, gradients)
        probe.end(changed, momentum=vectors)
    assert sum(seen.counts.values()) <= 3, seen.counts


def large() -> Mapping[int, Tensor]:
    return {0: torch.randn(512, 512, 3, 3), 1: torch.randn(1000, 2048), 2: torch.randn(64, 3, 7, 7)}


def test_the_cpu_backend_holds_one_copy_of_the_weights() -> None:
    """At most 1.5 MiB besides: the block of the numpy passes."""
    weights, gradients, changed, vectors = large(), large(), large(), large()
    size = sum(weight.nbytes for weight in weights.values())
    probe = Probe(3)
    tracemalloc.start()
    with Launches() as seen:
        for _ in range(3):
            probe.begin(weights, gradients)
            probe.end(changed, momentum=vectors)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size <= seen.bytes <= size + 1e5
    assert peak <= 1.5 * 2**20


def test_the_foreach_backend_holds_one_copy_and_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "backend_for", lambda device: backends.ForeachBackend())
    weights, gradients, changed = large(), large(), large()
    size = sum(weight.nbytes for weight in weights.values())
    monkeypatch.setattr("smdtrack.tracking.measure.backends.foreach_backend.BATCH", 1)
    probe = Probe(3)
    with Launches() as seen:
        probe.begin(weights, gradients)
        probe.end(changed)
    # `seen.bytes` adds up all temporaries of a step (products, then changes), of which one batch exists at a time.
    assert seen.bytes <= 3 * size + 1e5
