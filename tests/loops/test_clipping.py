"""Accumulation and the three ways of clipping: what they do to gradients, and what is said of the lines."""

import math

import numpy as np
import pytest
import torch
from timm.utils import dispatch_clip_grad

from smdtrack.tracking.measure.clipping_traces import count_ties
from tests.loops.harness import WEIGHTS, Loop, assert_equal_to_float64, column, loss_of, network, sgd, trained


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


def test_an_accumulated_gradient_is_one_step() -> None:
    witness, run = trained(accumulated, batches=12)
    assert run.steps.tolist() == [1, 2, 3, 4]
    assert_equal_to_float64(witness, run)


def test_norm_clipping_is_measured_after_the_clipping_and_leaves_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    witness, run = trained(lambda: clipped("norm", 0.1))
    assert_equal_to_float64(witness, run)
    for step in witness.steps:
        assert sum(float(gradient.square().sum()) for gradient in step.gradient.values()) <= 0.1**2 * (1 + 1e-5)
    assert "smd/clipped" not in run.overview
    assert run.values["angle_eq"][-1, 0] == pytest.approx(math.sqrt(2 * 0.05 * 0.01 / 1.9))
    assert "clipped" not in capsys.readouterr().err


def test_value_clipping_is_seen_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    witness, run = trained(lambda: clipped("value", 0.003))
    assert_equal_to_float64(witness, run)
    assert set(run.overview["smd/clipped"]) == {1.0}
    # What the flag is for: the gradient has left the tangent.
    assert max(witness.cosine(name, 12) for name in WEIGHTS) > 1e-3
    assert run.overview["smd/orthogonality_residual"][-1] == pytest.approx(
        max(witness.cosine(name, 12) for name in WEIGHTS), rel=1e-5
    )
    assert capsys.readouterr().err.count("clipped by value") == 1


def test_under_adaptive_clipping_no_equilibrium_line_is_drawn_and_it_is_said_why(
    capsys: pytest.CaptureFixture[str],
) -> None:
    witness, run = trained(lambda: clipped("agc", 0.01))
    assert_equal_to_float64(witness, run)
    assert set(run.overview["smd/clipped"]) == {2.0}
    assert np.isnan(run.values["angle_eq"]).all()
    assert np.isnan(run.values["norm_eq"]).all()
    assert np.isfinite(run.values["angle_pred"][1:]).all()
    assert capsys.readouterr().err.count("(AGC)") == 1


def test_clipping_that_never_bites_is_not_seen() -> None:
    for mode, value in (("value", 100.0), ("agc", 100.0)):
        _, run = trained(lambda mode=mode, value=value: clipped(mode, value))  # type: ignore[misc]
        assert "smd/clipped" not in run.overview
        assert np.isfinite(run.values["angle_eq"]).all()


def test_weights_that_the_step_does_not_move_have_no_value() -> None:
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
