"""No sampled step waits for the device. This is tested without a GPU, on fake tensors that pretend to lie on one.

A dispatch mode sees the operations that make the host wait: reading a number, an operation whose shape depends on
values, and a copy between host and device that is blocking or not from pinned memory. `test_triton_backend.py` has the
tests on a GPU.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import timm.optim
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from smdtrack.tracking.measure import backends
from smdtrack.tracking.measure.step_measurer import StepMeasurer
from tests.tracking.test_probe import FREE

ASK = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "repeat_interleave"}
CUDA = torch.device("cuda")


def storage(tensor: Tensor) -> int:
    """Returns an identifier of the tensor's storage."""
    return int(tensor.untyped_storage()._cdata)


class Watch(TorchDispatchMode):
    """Raises where the host would wait, and counts the kernels that would be launched."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._pinned: dict[int, Tensor] = {}  # kept, so that no other storage gets an address

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = any(tensor.is_cuda for tensor in tensors)
        if name == "_pin_memory":
            pinned = torch.empty_like(args[0])
            self._pinned[storage(pinned)] = pinned
            return pinned
        if name == "_local_scalar_dense" and not there:
            return 3.0 if args[0].is_floating_point() else 3  # reading a host tensor does not wait
        asks = name in ASK or (name == "index" and any(t.dtype in (torch.bool, torch.uint8) for t in tensors[1:]))
        assert not (there and asks), f"{func} waits for the device"
        result = func(*args, **kwargs)
        there = there or any(isinstance(leaf, Tensor) and leaf.is_cuda for leaf in tree_leaves(result))
        if there and name not in {"device", *FREE}:
            self.counts[name] += 1
        if name == "empty" and kwargs.get("pin_memory"):
            self._pinned[storage(result)] = result
        if name in ("_to_copy", "copy_"):
            target, source = (args[0], args[1]) if name == "copy_" else (result, args[0])
            if target.is_cuda != source.is_cuda:
                host = source if target.is_cuda else target
                free = kwargs.get("non_blocking", False) or (name == "copy_" and len(args) > 2 and args[2])
                free = free and storage(host) in self._pinned
                assert free, f"{func} from {source.device} to {target.device} waits"
        return result


class Event:
    """Replaces torch.cuda.Event, which needs a driver."""

    def record(self) -> None: ...


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(backends, "backend_for", lambda device: backends.ForeachBackend())
    with FakeTensorMode():
        yield


WAITS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda tensor: tensor.sum().item(),
    "float": lambda tensor: float(tensor.sum()),
    "if": lambda tensor: bool((tensor > 0).any()),
    "cpu": lambda tensor: tensor.cpu(),
    "a pageable target": lambda tensor: torch.empty(4).copy_(tensor, non_blocking=True),
    "a pinned target, blocking": lambda tensor: torch.empty(4, pin_memory=True).copy_(tensor),
    "to the device": lambda tensor: torch.ones(4).to(CUDA),
    "to the device, pageable": lambda tensor: torch.ones(4).to(CUDA, non_blocking=True),
    "mask": lambda tensor: tensor[tensor > 0],
    "nonzero": lambda tensor: tensor.nonzero(),
    "made there": lambda tensor: torch.tensor([1.0], device=CUDA),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS.keys())
def test_operations_that_wait_are_detected(wait: Callable[[Tensor], Any]) -> None:
    tensor = torch.randn(4, device=CUDA)
    with Watch(), pytest.raises(AssertionError, match="waits"):
        wait(tensor)


def resnet() -> tuple[nn.Module, list[nn.Parameter], list[nn.Module]]:
    """A network, its convolutions' weights, and the batch norm that follows each."""
    with CUDA:
        model = timm.create_model("resnet18")
    modules = dict(model.named_modules())
    weights, norms = [], []
    for name, parameter in model.named_parameters():
        parameter.grad = torch.randn_like(parameter)
        if parameter.ndim == 4:
            follows = name.removesuffix(".weight").replace("conv", "bn").replace("downsample.0", "downsample.1")
            weights.append(parameter)
            norms.append(modules[follows])
    return model, weights, norms


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-4),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1),
    "adamw, capturable": lambda p: torch.optim.AdamW(p, lr=1e-3, capturable=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=1e-4),
    "adam, capturable": lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=1e-4, capturable=True),
    "radam": lambda p: torch.optim.RAdam(p, lr=1e-3, weight_decay=1e-4),
    "radam, capturable": lambda p: torch.optim.RAdam(p, lr=1e-3, weight_decay=1e-4, capturable=True),
    "nadam, capturable": lambda p: torch.optim.NAdam(p, lr=1e-3, weight_decay=1e-4, capturable=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-3, weight_decay=1e-4, lr_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, weight_decay=1e-4, centered=True),
    "rmsprop_tf": lambda p: timm.optim.RMSpropTF(p, lr=1e-3, weight_decay=1e-4),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_no_sampled_step_waits_and_few_kernels_are_launched(make: Callable[[Any], Optimizer]) -> None:
    model, weights, norms = resnet()
    optimizer = make(model.parameters())
    optimizer.step()
    measurer = StepMeasurer(optimizer, weights, norms, lags=[2], reduce=None)
    measurer.prepare()
    if optimizer.defaults.get("capturable"):
        optimizer.param_groups[0]["lr"] = torch.full((), 1e-3, device=CUDA)
    for step in (1, 2, 3):
        # As a fused optimizer under a GradScaler finds its scale and whether to skip.
        optimizer.grad_scale, optimizer.found_inf = (torch.ones((), device=CUDA) for _ in range(2))
        with Watch() as seen:
            measurer.copy_norms()
            measurer.update_groups()
            assert measurer.begin(step, has_closure=False)
        del optimizer.grad_scale, optimizer.found_inf
        optimizer.step()
        with seen:
            measurement = measurer.end(step, has_closure=False)
        assert measurement is not None
        assert measurement.reading.width == len(weights) == 20
        if step == 1:
            # Traces of clipping are looked for in the first ten samples and in each tenth after them.
            measurer._samples = 10
    # Kernels for many weights at a time, in four batches here; a window of two steps begins or ends with the last step.
    # Where step counts lie on the device, corrections for them do, too, and RAdam chooses for each weight.
    limit = 330 if optimizer.defaults.get("capturable") else 210
    assert sum(seen.counts.values()) < limit, seen.counts
