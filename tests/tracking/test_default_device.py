"""Scripts that call `torch.set_default_device` or `torch.set_default_dtype`.

The meta device stands for a GPU: what is made there by mistake has no values, and fails.
"""

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn import functional as F

import smdtrack
from smdtrack.record import Run, read_run
from smdtrack.theory import calibration, identify


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def trained(opt: str, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, folder: Path) -> Run:
    optimizer = create_optimizer_v2(model, opt, lr=0.05, weight_decay=0.1)
    with smdtrack.watch(
        model, optimizer, example_input=images, every=1, lags=[2], sinks=["local"], folder=str(folder)
    ) as tracker:
        for _ in range(8):
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert tracker.folder is not None
    return read_run(tracker.folder)


@pytest.fixture
def elsewhere() -> Iterator[None]:
    usual = torch.get_default_dtype()
    calibration._cache.clear()
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(usual)


@pytest.mark.parametrize("opt", ["momentum", "sgd", "lion"])
def test_values_do_not_depend_on_the_default_device_and_dtype(
    opt: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model, images, labels = network(), torch.randn(16, 3, 9, 9), torch.randint(0, 5, (16,))
    twin = copy.deepcopy(model)
    usual = trained(opt, model, images, labels, tmp_path / "usual")
    request.getfixturevalue("elsewhere")
    there = trained(opt, twin, images, labels, tmp_path / "elsewhere")
    assert len(there.steps) == 8
    assert usual.values.keys() == there.values.keys()
    for family, values in usual.values.items():
        np.testing.assert_array_equal(there.values[family], values)


def test_calibration_and_audit_do_not_depend_on_the_default_device_and_dtype(request: pytest.FixtureRequest) -> None:
    model = network()
    optimizer = create_optimizer_v2(model, "muon", lr=0.05, weight_decay=0.1)

    def found() -> tuple[float | None, str | None, list[str]]:
        (group,) = [group for group in optimizer.param_groups if group["weight_decay"]]
        line = identify(optimizer).line(group, (8, 3, 3, 3))
        report = smdtrack.audit(model, input_size=(3, 9, 9))
        return line.angular_update, line.reason, [weight.verdict for weight in report]

    usual = found()
    assert usual[0]
    request.getfixturevalue("elsewhere")
    assert found() == usual
    assert torch.get_default_dtype() is torch.float64
