import math

import pytest
import torch

from smdtrack import SmdtrackError
from smdtrack.record.sources import open_run
from smdtrack.report.linear_scaling import linear_scaling_of, white_ratio
from tests.report.synthetic_runs import make_record


@pytest.mark.parametrize(("steps", "ratio"), [(1, 1.0), (4, 1.88), (16, 3.14), (64, 4.02)])
def test_heavy_ball(steps, ratio):
    found = white_ratio({"optimizer": "SGD", "momentum": 0.9, "nesterov": False, "lr": 0.1}, (16, 16), steps)
    a = 0.9
    exact = 1 + 2 * sum((1 - j / steps) * a**j for j in range(1, steps))
    assert found == pytest.approx(math.sqrt(exact), rel=1e-9)
    assert found == pytest.approx(ratio, abs=0.006)


def test_the_updates_of_the_real_optimizer_add_up_to_it():
    """Simulates AdamW on white gradients: the k-step sum of its updates over k separate ones."""
    steps, size = 8, 4096
    weight = torch.nn.Parameter(torch.zeros(size, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], lr=1e-3, betas=(0.8, 0.999), weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    updates = []
    for _ in range(400):
        before = weight.detach().clone()
        weight.grad = torch.randn(size, generator=generator, dtype=torch.float64)
        optimizer.step()
        updates.append(weight.detach() - before)
    late = torch.stack(updates[200:])
    together = torch.stack([late[i : i + steps].sum(0).square().sum() for i in range(0, 192, steps)]).mean()
    measured = math.sqrt(together / (steps * late.square().sum(1).mean()))
    predicted = white_ratio({"optimizer": "AdamW", "betas": "0.8 0.999", "eps": 1e-8}, (size,), steps)
    assert predicted == pytest.approx(measured, rel=0.03)


def test_an_optimizer_that_is_not_known():
    assert white_ratio({"optimizer": "TheirOwn"}, (16, 16), 4) is None
    assert white_ratio({}, (16, 16), 4) is None


def opened(tmp_path, name, **options):
    return open_run(str(make_record(tmp_path / name, **options)))


def test_either_order_and_one_step_of_the_larger_run(tmp_path):
    small = opened(tmp_path, "small", lags=(4,), params={"batch_size": 64}, noise=0)
    large = opened(tmp_path, "large", lr=0.4, params={"batch_size": 256}, noise=0)
    found = linear_scaling_of(("A", small), ("B", large))
    again = linear_scaling_of(("B", large), ("A", small))
    assert found == again
    assert (found.small, found.large, found.factor, found.bound) == ("A", "B", 4, 2)
    assert found.white == pytest.approx(1.8774, abs=1e-4)
    for row in found.weights:
        assert row.ratio == pytest.approx(found.white, rel=5e-3)
        assert row.measured == pytest.approx(found.white, rel=1e-9)


@pytest.mark.parametrize(
    ("small", "large", "line"),
    [
        ({"params": {"batch_size": 64}}, {"params": {"batch_size": 256}}, "here the batch is x 4 and the rate x 1$"),
        ({}, {"lr": 0.4}, "batch_size is not known$"),
        ({"params": {"batch_size": 64}}, {"lr": 0.4, "params": {"batch_size": 256}}, "train it again with the lag 4$"),
        (
            {"params": {"batch_size": 64}, "lags": (16,)},
            {"lr": 0.4, "params": {"batch_size": 256}},
            "has no angle over 4 steps; it has 16: train it again with the lag 4$",
        ),
    ],
)
def test_what_is_missing_is_said(tmp_path, small, large, line):
    runs = [("A", opened(tmp_path, "small", **small)), ("B", opened(tmp_path, "large", **large))]
    with pytest.raises(SmdtrackError, match=line):
        linear_scaling_of(*runs)
