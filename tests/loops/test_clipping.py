"""Gradient accumulation, and the three kinds of gradient clipping."""

import math

import numpy as np
import pytest
import torch
from timm.utils import dispatch_clip_grad

from smdtrack.tracking.measure.clipping_traces import count_ties
from tests.loops.harness import WEIGHTS, Loop, assert_equal_to_float64, column, loss_of, network, sgd, trained
from tests.said import collected_notices


def accumulated() -> Loop:
    model = network()
    optimizer = sgd(model)

    def step(number: int) -> None:
        (loss_of(model) / 3).backward()
        if number % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()

    return Loop(model, optimizer, step)


def clipped(mode: str, value: float) -> Loop:
    model = network()
    optimizer = sgd(model)

    def step(number: int) -> None:
        loss_of(model).backward()
        dispatch_clip_grad(model.parameters(), value=value, mode=mode)
        optimizer.step()
        optimizer.zero_grad()

    return Loop(model, optimizer, step)


def test_accumulated_batches_count_as_one_step() -> None:
    witness, run = trained(accumulated, batches=12)
    assert run.steps.tolist() == [1, 2, 3, 4]
    assert_equal_to_float64(witness, run)


def test_gradients_clipped_by_norm_are_measured_after_the_clipping_and_keep_the_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    witness, run = trained(lambda: clipped("norm", 0.1))
    assert_equal_to_float64(witness, run)
    for step in witness.steps:
        assert sum(float(gradient.square().sum()) for gradient in step.gradient.values()) <= 0.1**2 * (1 + 1e-5)
    assert "smd/clipped" not in run.overview
    assert run.values["angle_eq"][-1, 0] == pytest.approx(2 * math.asin(math.sqrt(2 * 0.05 * 0.01 / 1.9) / 2))
    assert "clipped" not in capsys.readouterr().err


def test_clipping_by_value_is_reported_once() -> None:
    with collected_notices() as notices:
        witness, run = trained(lambda: clipped("value", 0.003))
    assert_equal_to_float64(witness, run)
    assert set(run.overview["smd/clipped"]) == {1.0}
    # The clipped gradient is no longer orthogonal to the weight.
    assert max(witness.cosine(name, 12) for name in WEIGHTS) > 1e-3
    assert run.overview["smd/orthogonality_residual"][-1] == pytest.approx(
        max(witness.cosine(name, 12) for name in WEIGHTS), rel=1e-5
    )
    assert [notice.count("clipped by value") for notice in notices] == [1]


def test_adaptive_clipping_is_reported_and_ends_the_equilibrium_lines() -> None:
    with collected_notices() as notices:
        witness, run = trained(lambda: clipped("agc", 0.01))
    assert_equal_to_float64(witness, run)
    assert set(run.overview["smd/clipped"]) == {2.0}
    assert np.isnan(run.values["angle_eq"]).all()
    assert np.isnan(run.values["norm_eq"]).all()
    assert np.isfinite(run.values["angle_pred"][1:]).all()
    assert [notice.count("(AGC)") for notice in notices] == [1]


def test_clipping_that_changes_no_gradient_is_not_reported() -> None:
    for mode, value in (("value", 100.0), ("agc", 100.0)):
        _, run = trained(lambda mode=mode, value=value: clipped(mode, value))  # type: ignore[misc]
        assert "smd/clipped" not in run.overview
        assert np.isfinite(run.values["angle_eq"]).all()


def test_a_weight_without_a_gradient_has_no_value_at_that_step() -> None:
    def make() -> Loop:
        model = network()
        optimizer = sgd(model)

        def step(number: int) -> None:
            loss_of(model).backward()
            if number % 2:
                model[0].weight.grad = None
            optimizer.step()
            optimizer.zero_grad()

        return Loop(model, optimizer, step)

    witness, run = trained(make)
    assert_equal_to_float64(witness, run)
    angles = run.values["angle"][:, column(run, "0.weight")]
    assert np.isfinite(angles[0::2]).all()
    assert np.isnan(angles[1::2]).all()
    assert np.isfinite(run.values["angle"][:, column(run, "4.weight")]).all()


@pytest.mark.parametrize("size", [1, 40, 5000])
def test_ties_are_counted(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    weight, gradient = (torch.randn(8, size, generator=generator) for _ in range(2))
    gradient.clamp_(-0.5, 0.5)
    elements, _ = count_ties(weight, gradient)
    assert int(elements) == int((gradient.abs().numpy() == np.float32(0.5)).sum())
    ratio = 0.01 * weight.norm(dim=1) / gradient.norm(dim=1)
    ratio[3:] *= 0.5
    _, filters = count_ties(weight, gradient * ratio[:, None])
    assert int(filters) == 3
