"""Loss scaling, autocast and low-precision weights."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.loops.harness import WEIGHTS, Loop, assert_equal_to_float64, column, loss_of, network, sgd, trained
from tests.said import collected_notices

OVERFLOWS = (2, 5, 6)


def scaled(fused: bool) -> Loop:
    model = network()
    optimizer = sgd(model, fused=True) if fused else sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)

    def step(number: int) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model)
        scaler.scale(loss * (math.inf if number in OVERFLOWS else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return Loop(model, optimizer, step)


def test_a_grad_scaler_calls_no_step_at_an_overflow_and_no_sample_is_made() -> None:
    witness, run = trained(lambda: scaled(fused=False))
    assert len(witness.steps) == 12 - len(OVERFLOWS)
    assert run.steps.tolist() == list(range(1, 10))
    assert_equal_to_float64(witness, run)


def test_scaled_gradients_of_a_fused_step_are_unscaled_and_skipped_steps_leave_no_sample() -> None:
    witness, run = trained(lambda: scaled(fused=True))
    assert len(witness.steps) == 12
    skipped = [number + 1 for number in OVERFLOWS]
    assert run.steps.tolist() == [step for step in range(1, 13) if step not in skipped]
    assert_equal_to_float64(witness, run)
    for name in WEIGHTS:
        assert all(witness.angle(name, step) == 0 for step in skipped)


def test_under_bf16_autocast_the_values_equal_float64() -> None:
    def make() -> Loop:
        model = network()
        optimizer = sgd(model)

        def step(number: int) -> None:
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return Loop(model, optimizer, step)

    assert_equal_to_float64(*trained(make))


def in_bfloat16(lr: float = 0.05, optimizer_of: object = None) -> Loop:
    model = network(torch.bfloat16)
    optimizer = optimizer_of(model) if optimizer_of else sgd(model, lr=lr)

    def step(number: int) -> None:
        loss_of(model, torch.bfloat16).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Loop(model, optimizer, step)


def test_angles_of_bf16_weights_below_the_smallest_readable_one_are_reported() -> None:
    with collected_notices() as notices:
        witness, run = trained(lambda: in_bfloat16(lr=0.002))
    assert_equal_to_float64(witness, run)
    for row, step in enumerate(run.steps.tolist()):
        below = [witness.angle(name, step) < 5e-3 for name in WEIGHTS]
        assert run.overview["smd/below_floor"][row] == np.mean(below)
    assert run.overview["smd/below_floor"].max() > 0
    assert [notice.count("weights in low precision") for notice in notices] == [1]


def test_fp32_weights_have_no_such_flag() -> None:
    _, run = trained(lambda: scaled(fused=False))
    assert "smd/below_floor" not in run.overview


class MasterSGD(torch.optim.Optimizer):
    """Keeps an fp32 copy of each bf16 weight, updates the copy, and rounds it into the weight."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), {"lr": 0.002, "weight_decay": 0.01})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                master = state.setdefault("master_param", parameter.detach().float().clone())
                gradient = parameter.grad.float() + group["weight_decay"] * master
                master.add_(gradient, alpha=-group["lr"])
                parameter.copy_(master)


def test_fp32_master_copies_are_measured_instead_of_bf16_weights() -> None:
    masters: list[dict[str, torch.Tensor]] = []

    def make() -> Loop:
        loop = in_bfloat16(optimizer_of=MasterSGD)
        inner = loop.step
        names = dict(loop.model.named_parameters())
        masters.clear()

        def step(number: int) -> None:
            inner(number)
            masters.append(
                {name: loop.optimizer.state[names[name]]["master_param"].double().clone() for name in WEIGHTS}
            )

        loop.step = step
        return loop

    with collected_notices(match="weights in low precision"):
        _, run = trained(make)
    for name in WEIGHTS:
        # Before the first step there is no master copy yet, so that the weight itself is measured.
        for step in range(2, 13):
            before, after = masters[step - 2][name], masters[step - 1][name]
            angle = 2 * math.asin(float((before / before.norm() - after / after.norm()).norm()) / 2)
            assert run.values["angle"][step - 1, column(run, name)] == pytest.approx(angle, rel=1e-5)
            assert run.values["norm"][step - 1, column(run, name)] == pytest.approx(float(after.norm()), rel=1e-6)
    assert np.isfinite(run.overview["smd/below_floor"]).tolist() == [True] + 11 * [False]
