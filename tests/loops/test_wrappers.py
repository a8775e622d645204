"""EMA, Lookahead, torch.compile, memory layouts, closures, further optimizers and lags."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from timm.optim import Lamb, Lookahead
from timm.utils import ModelEmaV3
from torch import nn

import smdtrack
from smdtrack.record import read_run
from tests.loops.harness import (
    WEIGHTS,
    Loop,
    assert_equal_to_float64,
    batch,
    column,
    loss_of,
    network,
    plain_step,
    sgd,
    trained,
)
from tests.said import collected_notices
from tests.tracking.witness import Witness, assert_same_bits, everything, seed_everything


def plain(make_optimizer: Callable[[nn.Module], torch.optim.Optimizer]) -> Loop:
    model = network()
    optimizer = make_optimizer(model)
    return Loop(model, optimizer, lambda number: plain_step(model, optimizer))


def test_under_ema_the_trained_weights_are_measured() -> None:
    def make() -> Loop:
        model = network()
        optimizer, average = sgd(model), ModelEmaV3(model, decay=0.9)

        def step(number: int) -> None:
            plain_step(model, optimizer)
            average.update(model, step=number)

        return Loop(model, optimizer, step, other_modules=[average.module])

    assert_equal_to_float64(*trained(make))


def test_a_step_of_lookahead_includes_its_interpolation() -> None:
    witness, run = trained(lambda: plain(lambda model: Lookahead(sgd(model), alpha=0.5, k=3)))
    assert run.steps.tolist() == list(range(1, 13))
    assert_equal_to_float64(witness, run)


def test_changes_that_lookahead_makes_between_steps_are_in_no_angle() -> None:
    def make() -> Loop:
        model = network()
        optimizer = Lookahead(sgd(model), alpha=0.5, k=4)

        def step(number: int) -> None:
            loss_of(model).backward()
            optimizer.step()
            if number % 5 == 4:
                optimizer.sync_lookahead()
            optimizer.zero_grad()

        return Loop(model, optimizer, step)

    assert_equal_to_float64(*trained(make))


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_model_is_measured_under_its_own_names(backend: str) -> None:
    def make() -> Loop:
        torch.compiler.reset()
        model = network()
        optimizer = sgd(model)
        compiled = torch.compile(model, backend=backend)
        return Loop(model, optimizer, lambda number: plain_step(compiled, optimizer), watched=compiled)

    witness, run = trained(make, batches=6)
    assert_equal_to_float64(witness, run)
    assert [weight.name for weight in run.info.weights] == list(WEIGHTS)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_a_compiled_step_is_measured(backend: str) -> None:
    def make() -> Loop:
        torch.compiler.reset()
        model = network()
        optimizer = sgd(model)
        step_compiled = torch.compile(optimizer.step, backend=backend)

        def step(number: int) -> None:
            loss_of(model).backward()
            step_compiled()
            optimizer.zero_grad()

        return Loop(model, optimizer, step)

    witness, run = trained(make, batches=6)
    assert run.steps.tolist() == list(range(1, 7))
    assert_equal_to_float64(witness, run)


class OneGraph(torch.optim.Optimizer):
    """An optimizer that compiles into one graph; torch's own optimizers do not."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), {"lr": 0.05})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(parameter.grad, alpha=-group["lr"])


def test_a_step_compiled_with_fullgraph_is_reported_and_trains_on() -> None:
    def ending(watched: bool) -> tuple[object, list[str]]:
        torch.compiler.reset()
        seed_everything(1)
        model, other = network(), network()
        optimizer, plain_one = OneGraph(model), sgd(other)
        compiled = torch.compile(optimizer.step, backend="eager", fullgraph=True)
        with collected_notices() as caught:
            trackers = [
                smdtrack.watch(*pair, every=1, sinks=["local"])
                for pair in ((model, optimizer), (other, plain_one))
                if watched
            ]
            for _ in range(3):
                loss_of(model).backward()
                compiled()
                optimizer.zero_grad()
                plain_step(other, plain_one)
            for tracker in trackers:
                tracker.finish()
        if watched:
            assert trackers[0].summary().reason is not None
            assert read_run(trackers[1].folder).steps.tolist() == [1, 2, 3]
        said = list(caught)
        return [everything(model, [optimizer]), everything(other, [plain_one])], said

    (without, _), (with_smdtrack, messages) = ending(False), ending(True)
    assert_same_bits(without, with_smdtrack)
    assert len(messages) == 1
    assert "fullgraph=True is not measured" in messages[0]


def test_channels_last_weights_are_measured() -> None:
    def make() -> Loop:
        model = network().to(memory_format=torch.channels_last)
        optimizer = sgd(model)
        return Loop(model, optimizer, lambda number: plain_step(model, optimizer))

    witness, run = trained(make)
    assert not make().model[0].weight.is_contiguous()
    assert_equal_to_float64(witness, run)


def test_layout_storage_and_type_may_change_in_mid_run() -> None:
    def make() -> Loop:
        model = network()
        optimizer = sgd(model, momentum=0.0)

        def step(number: int) -> None:
            if number == 3:
                model.to(memory_format=torch.channels_last)
            if number == 6:
                for parameter in model.parameters():
                    parameter.data = parameter.data.clone()
            if number == 9:
                model.double()
            images, labels = batch()
            images = images.to(model[0].weight.dtype)
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

        return Loop(model, optimizer, step)

    assert_equal_to_float64(*trained(make))


def test_a_closure_that_is_evaluated_once_has_gradients_of_the_step() -> None:
    def make() -> Loop:
        model = network()
        optimizer = sgd(model)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            return loss

        return Loop(model, optimizer, lambda number: optimizer.step(closure))

    witness, run = trained(make)
    assert_equal_to_float64(witness, run, families=("angle", "norm"))
    assert np.isfinite(run.values["effective_grad"]).all()
    assert run.values["orthogonality_residual"].max() < 1e-5


def test_lbfgs_has_angles_and_no_lines() -> None:
    def make() -> Loop:
        model = network()
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
        images, labels = batch()

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            return loss

        return Loop(model, optimizer, lambda number: optimizer.step(closure))

    witness, run = trained(make, batches=4)
    assert run.steps.tolist() == [1, 2, 3, 4]
    assert_equal_to_float64(witness, run, families=("angle", "norm"))
    assert np.isnan(run.values["angle_eq"]).all()
    # The gradients after the step are those of the last evaluation, at other weights.
    assert np.isnan(run.values["orthogonality_residual"]).all()
    assert all(weight.line_reason for weight in run.info.weights)


def test_a_learning_rate_in_a_tensor_is_read_at_the_step() -> None:
    def make() -> Loop:
        model = network()
        optimizer = torch.optim.SGD(
            model.parameters(), lr=torch.tensor(0.05), momentum=0.9, weight_decay=0.01, foreach=False
        )

        def step(number: int) -> None:
            loss_of(model).backward()
            optimizer.step()
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"].mul_(0.9)

        return Loop(model, optimizer, step)

    witness, run = trained(make)
    assert_equal_to_float64(witness, run)
    rates = [0.05 * 0.9**number for number in range(12)]
    expected = [2 * math.asin(math.sqrt(2 * rate * 0.01 / 1.9) / 2) for rate in rates]
    np.testing.assert_allclose(run.values["angle_eq"][:, 0], expected, rtol=1e-5)


def test_the_line_of_coupled_adam_is_computed_from_its_second_moments() -> None:
    states: list[dict[str, torch.Tensor]] = []

    def make() -> Loop:
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1)
        states.clear()

        def step(number: int) -> None:
            plain_step(model, optimizer)
            states.append(
                {
                    name: optimizer.state[parameter]["exp_avg_sq"].double().clone()
                    for name, parameter in model.named_parameters()
                }
            )

        return Loop(model, optimizer, step)

    witness, run = trained(make)
    assert_equal_to_float64(witness, run)
    for name in WEIGHTS:
        for step in range(1, 13):
            squared = witness.steps[step - 1].after[name].square()
            denominator = (states[step - 1][name] / (1 - 0.999**step)).sqrt() + 1e-8
            decay = 0.01 * 0.1 * float((squared / denominator).sum() / squared.sum())
            expected = math.sqrt(2 * decay * 0.1 / 1.9)
            assert run.values["angle_eq"][step - 1, column(run, name)] == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1),
        lambda model: Lamb(model.parameters(), lr=0.01, weight_decay=0.1),
        lambda model: sgd(model, nesterov=True),
        lambda model: sgd(model, foreach=True),
        lambda model: sgd(model, momentum=0.0, weight_decay=0.0),
    ],
    ids=["adamw", "lamb", "nesterov", "foreach", "bare"],
)
def test_each_optimizer_is_measured_as_in_float64(make_optimizer: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
    assert_equal_to_float64(*trained(lambda: plain(make_optimizer)))


def test_the_gradient_of_lamb_is_read_before_its_own_clipping() -> None:
    def make() -> Loop:
        model = network()
        optimizer = Lamb(model.parameters(), lr=0.01, weight_decay=0.1, max_grad_norm=1e-3)
        return Loop(model, optimizer, lambda number: plain_step(model, optimizer))

    witness, run = trained(make)
    assert isinstance(witness, Witness)
    assert_equal_to_float64(witness, run)


@pytest.mark.parametrize(("lags", "every"), [([2, 5], 1), ([3], 2), ([4], 6)])
def test_angles_over_several_steps_equal_float64(lags: list[int], every: int) -> None:
    make = lambda: plain(sgd)  # noqa: E731
    witness, run = trained(make, batches=24, lags=lags, every=every)
    for lag in lags:
        for name in WEIGHTS:
            values = run.values[f"angle_k{lag}"][:, column(run, name)]
            there = np.flatnonzero(np.isfinite(values))
            assert len(there) >= 3
            ends = [_end_of_window(int(run.steps[row]), lag, every) for row in there]
            expected = [witness.angle(name, end, lag=lag) for end in ends]
            np.testing.assert_allclose(values[there], expected, rtol=1e-6)


def _end_of_window(sample: int, lag: int, every: int) -> int:
    """Returns the last end of a window at or before a sample."""
    begin, end = every, 0
    while begin + lag - 1 <= sample:
        end = begin + lag - 1
        begin = -(-(end + 1) // every) * every
    return end
