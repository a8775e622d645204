"""Runs a training loop with smdtrack and without it, and compares the record with float64 brute force."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer

import smdtrack
from smdtrack.record import Run, read_run
from tests.tracking.witness import Witness, assert_same_bits, everything, seed_everything


@dataclass
class Loop:
    """A training loop, ready to run.

    Attributes:
        step: Does whatever the loop does for one batch, given its number from 0.
        watched: What is given to `watch`, where it is not the model itself.
        others: Further modules and optimizers whose bits are compared.
    """

    model: nn.Module
    optimizer: Optimizer
    step: Callable[[int], object]
    watched: nn.Module | None = None
    other_modules: Sequence[nn.Module] = ()
    other_optimizers: Sequence[Optimizer] = ()
    example: Any = field(default=None)


def network(dtype: torch.dtype = torch.float32, width: int = 8) -> nn.Module:
    """A small network: two convolutions with batch norm, and dropout between them."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Conv2d(width, 12, 3, stride=2, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    ).to(dtype)


WEIGHTS = ("0.weight", "4.weight")


def batch(size: int = 16, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(size, 3, 10, 10, dtype=dtype), torch.randint(0, 5, (size,))


def loss_of(model: nn.Module, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    images, labels = batch(dtype=dtype)
    return F.cross_entropy(model(images), labels)


def plain_step(model: nn.Module, optimizer: Optimizer) -> None:
    loss_of(model).backward()
    optimizer.step()
    optimizer.zero_grad()


def sgd(model: nn.Module, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, **options})


def trained(make: Callable[[], Loop], batches: int = 12, **options: Any) -> tuple[Witness, Run]:
    """Asserts that training ends in the same bits with smdtrack as without; returns the witness and the record."""
    ends = []
    witness, tracker = None, None
    for watch in (False, True):
        seed_everything(1)
        loop = make()
        if watch:
            settings = {"every": 1, "sinks": ["local"], "example_input": loop.example, **options}
            tracker = smdtrack.watch(loop.watched or loop.model, loop.optimizer, **settings)
        # The witness draws no random numbers and changes nothing, so that it can watch both runs.
        witness = Witness(loop.model, loop.optimizer)
        for number in range(batches):
            loop.step(number)
        end = everything(loop.model, [loop.optimizer, *loop.other_optimizers])
        ends.append([end, *(dict(module.state_dict()) for module in loop.other_modules)])
    assert tracker is not None
    assert witness is not None
    tracker.finish()
    assert_same_bits(ends[0], ends[1])
    return witness, read_run(tracker.folder)


def assert_equal_to_float64(
    witness: Witness,
    run: Run,
    names: Sequence[str] = WEIGHTS,
    families: Sequence[str] = ("angle", "norm", "effective_grad"),
    rtol: float = 1e-6,
    first: int = 0,
) -> None:
    """Asserts that there are values of each family, and that all of them equal those of the witness.

    Args:
        first: Number of steps that were recorded before the witness's first one.
    """
    references = {"angle": witness.angle, "norm": witness.norm, "effective_grad": witness.effective_gradient}
    assert {weight.name for weight in run.info.weights} >= set(names)
    for weight in run.info.weights:
        if weight.name not in names:
            continue
        for family in families:
            steps, values = run.series(f"{family}/{weight.key}")
            assert len(steps), f"{family}/{weight.key} was never recorded"
            expected = [references[family](weight.name, step - first) for step in steps.tolist()]
            np.testing.assert_allclose(values, expected, rtol=rtol, atol=1e-12, err_msg=f"{family}/{weight.key}")


def column(run: Run, name: str) -> int:
    return [weight.name for weight in run.info.weights].index(name)
