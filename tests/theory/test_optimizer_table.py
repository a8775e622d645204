"""The table of records: complete, found by class, and consistent with the state that each optimizer keeps."""

import warnings

import pytest
import timm.optim
import torch
from timm.optim import create_optimizer_v2

from smdtrack.theory import identify
from smdtrack.theory.catalogue import absent
from smdtrack.theory.optimizer_table import OPTIMIZERS, info_of
from smdtrack.theory.records_others import APEX, BITSANDBYTES
from smdtrack.theory.records_timm import TIMM
from smdtrack.theory.records_torch import TORCH
from tests.theory.compare import uncompile

INSTALLED = [str(name) for name in timm.optim.list_optimizers() if absent(str(name)) is None]


def stepped(optimizer, weight):
    """The optimizer's state of the weight after three steps on noise."""
    for _ in range(3):
        loss = (torch.randn_like(weight) * weight).pow(2).sum()
        weight.grad = torch.autograd.grad(loss, weight, create_graph=getattr(optimizer, "is_second_order", False))[0]
        optimizer.step()
    return optimizer.state[weight]


def test_keys_are_packages_and_classes_and_none_comes_twice():
    assert all(key == info.key and key.count(".") == 1 for key, info in OPTIMIZERS.items())
    assert {info.package for info in OPTIMIZERS.values()} == {"torch", "timm", "apex", "bitsandbytes"}
    assert len(OPTIMIZERS) == len(TORCH) + len(TIMM) + len(APEX) + len(BITSANDBYTES)


def test_subclasses_share_a_record_unless_they_have_a_step_of_their_own():
    class Same(torch.optim.SGD):
        pass

    class Other(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    assert info_of(Same) is OPTIMIZERS["torch.SGD"]
    assert info_of(Other) is None
    assert info_of(torch.optim.AdamW) is OPTIMIZERS["torch.AdamW"]


@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.filterwarnings("ignore")
def test_every_tensor_of_the_state_has_a_power_or_the_state_cannot_be_rescaled(name):
    weight = torch.nn.Parameter(torch.randn(8, 8))
    optimizer = create_optimizer_v2([weight], name, lr=1e-3, weight_decay=0.01)
    if name.startswith("kron"):
        uncompile(optimizer)
    info = info_of(type(optimizer))
    if info.state_powers is None:
        return
    state = stepped(optimizer, weight)
    powers = info.state_powers(state) if callable(info.state_powers) else info.state_powers
    tensors = {key for key, value in state.items() if isinstance(value, torch.Tensor) and value.shape == weight.shape}
    assert tensors <= set(powers)


@pytest.mark.parametrize("key", [key for key, info in OPTIMIZERS.items() if info.package == "torch"])
def test_the_optimizers_of_torch_are_known(key):
    if not hasattr(torch.optim, key.removeprefix("torch.")):
        pytest.skip("this torch has no such optimizer")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = getattr(torch.optim, key.removeprefix("torch."))([torch.nn.Parameter(torch.randn(8, 8))], lr=1e-3)
    assert identify(optimizer).known


def test_a_coupled_optimizer_that_divides_its_decay_has_denominators():
    divided = {"Adam", "NAdam", "RAdam", "Adamax", "Adagrad", "RMSprop", "AdaBelief", "ADOPT"}
    assert {info.title for info in OPTIMIZERS.values() if info.denominators} == divided
