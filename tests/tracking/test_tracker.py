"""The tracker around real training, against float64 brute force from copies that the test takes itself."""

import inspect
import math
from dataclasses import MISSING, asdict, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from timm import create_model
from torch import nn
from torch.nn import functional as F

import smdtrack
from smdtrack.record import read_run
from smdtrack.sinks.memory import MemorySink
from smdtrack.tracking import Options
from tests.said import collected_notices
from tests.tracking.witness import Witness, assert_same_bits, everything, seed_everything


def tiny() -> nn.Module:
    """Two convolutions under batch norm, a linear head: the audit of it takes a moment."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, size: int = 12, classes: int = 5) -> None:
    for _ in range(steps):
        images, labels = torch.randn(16, 3, size, size), torch.randint(0, classes, (16,))
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()


def raise_in_training(model: nn.Module, optimizer: torch.optim.Optimizer, error: type[BaseException]) -> None:
    train(model, optimizer, 2)
    raise error


def sgd(model: nn.Module, lr: float = 0.05, **options: float) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), **{"lr": lr, "momentum": 0.9, "weight_decay": 0.01, **options})


@pytest.fixture(scope="module")
def real() -> tuple[Witness, smdtrack.Tracker, MemorySink]:
    """Thirty steps of heavy-ball SGD on a real timm network with the learning rate of a schedule."""
    import os
    import tempfile

    seed_everything(0)
    model = create_model("test_resnet", num_classes=5)
    optimizer = sgd(model, weight_decay=0.001)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)
    witness, sink = Witness(model, optimizer), MemorySink()
    here, folder = os.getcwd(), tempfile.mkdtemp()
    os.chdir(folder)
    try:
        tracker = smdtrack.watch(model, optimizer, every=1, sinks=[sink], lags=[5], folder=folder)
        for _ in range(30):
            train(model, optimizer, 1, size=24)
            schedule.step()
        tracker.finish()
    finally:
        os.chdir(here)
    return witness, tracker, sink


NAME = "layer2.0.conv1.weight"
KEY = "layer2.0.conv1"


def test_all_convolutions_of_the_network_are_tracked(real: tuple[Witness, smdtrack.Tracker, MemorySink]) -> None:
    _, tracker, _ = real
    model = create_model("test_resnet")
    convolutions = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    assert {weight.name for weight in tracker.selection.weights} == convolutions


def test_angle_norm_and_gradient_equal_float64(real: tuple[Witness, smdtrack.Tracker, MemorySink]) -> None:
    witness, tracker, _ = real
    run = read_run(tracker.folder)
    assert run.steps.tolist() == list(range(1, 31))
    for weight in run.info.weights:
        for family, reference in (
            ("angle", witness.angle),
            ("norm", witness.norm),
            ("effective_grad", witness.effective_gradient),
        ):
            steps, values = run.series(f"{family}/{weight.key}")
            expected = [reference(weight.name, step) for step in steps.tolist()]
            np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-12, err_msg=f"{family} {weight.key}")


def heavy_ball_angle(rate: float) -> float:
    """sqrt(2 lr wd / (1 + a)) is the step in units of the norm, which is the chord of the angle."""
    return 2 * math.asin(math.sqrt(2 * rate * 0.001 / 1.9) / 2)


def test_the_equilibrium_line_is_heavy_ball_s(real: tuple[Witness, smdtrack.Tracker, MemorySink]) -> None:
    witness, tracker, _ = real
    steps, line = read_run(tracker.folder).series(f"angle_eq/{KEY}")
    rates = [witness.steps[step - 1].hyper_parameters[NAME]["lr"] for step in steps.tolist()]
    assert len({round(rate, 9) for rate in rates}) == 30
    np.testing.assert_allclose(line, [math.sqrt(2 * rate * 0.001 / 1.9) for rate in rates], rtol=1e-5)


def test_the_drift_corrected_line_is_theory_at_the_measured_drift(
    real: tuple[Witness, smdtrack.Tracker, MemorySink],
) -> None:
    witness, tracker, _ = real
    steps, line = read_run(tracker.folder).series(f"angle_pred/{KEY}")
    assert steps.tolist() == list(range(2, 31))
    rates = [step.hyper_parameters[NAME]["lr"] for step in witness.steps]
    before, after = (
        [float(getattr(step, moment)[NAME].square().sum()) for step in witness.steps] for moment in ("before", "after")
    )
    longest = max(0.05, 2 / math.sqrt(witness.steps[0].before[NAME].numel()))
    for last in range(11, 30):
        growth = model = 0.0
        for step in range(last, -1, -1):
            if abs(math.log(after[last] / before[step])) > longest:
                break
            # gamma = lr wd / (1 - a). The updates are lr b, and their memory 1 + 2 sum_j a^j lr_{t-j} / lr_t, 19 under
            # a constant learning rate; |b| goes as 1 / ||w||.
            growth += math.log(after[step] / before[step]) + 2 * rates[step] * 0.001 / 0.1
            earlier = [rates[max(step - j, 0)] for j in range(1, 200)]
            memory = 1 + 2 * sum(0.9 ** (j + 1) * rate for j, rate in enumerate(earlier)) / rates[step]
            model += memory * (rates[step] / before[step]) ** 2
        expected = max(0.0, growth / model) * (rates[last] / before[last]) ** 2
        assert line[last - 1] ** 2 == pytest.approx(expected, rel=0.02)


def test_the_equilibrium_norm_is_where_angle_and_line_meet(
    real: tuple[Witness, smdtrack.Tracker, MemorySink],
) -> None:
    witness, tracker, _ = real
    run = read_run(tracker.folder)
    column = [weight.key for weight in run.info.weights].index(KEY)
    angles = np.array([witness.angle(NAME, step) for step in range(1, 31)])
    rate = witness.steps[-1].hyper_parameters[NAME]["lr"]
    turn = math.sqrt(np.mean(angles[-10:] ** 2))
    expected = witness.norm(NAME, 30) * (turn / math.sqrt(2 * rate * 0.001 / 1.9)) ** 0.5
    assert run.values["norm_eq"][-1, column] == pytest.approx(expected, rel=1e-5)


def test_the_angle_over_a_lag_is_from_its_first_step_to_its_last(
    real: tuple[Witness, smdtrack.Tracker, MemorySink],
) -> None:
    witness, tracker, _ = real
    steps, values = read_run(tracker.folder).series(f"angle_k5/{KEY}")
    assert steps.tolist() == [5, 10, 15, 20, 25, 30]
    np.testing.assert_allclose(values, [witness.angle(NAME, step, lag=5) for step in steps.tolist()], rtol=1e-6)


def test_the_ratios_are_quantiles_of_measured_over_line(real: tuple[Witness, smdtrack.Tracker, MemorySink]) -> None:
    witness, tracker, sink = real
    names = [weight.name for weight in tracker.selection.weights]
    for step, value in sink.series("smd/angle_ratio_p50"):
        rate = witness.steps[step - 1].hyper_parameters[NAME]["lr"]
        ratios = [witness.angle(name, step) / heavy_ball_angle(rate) for name in names]
        assert value == pytest.approx(np.median(ratios), rel=1e-6)


@pytest.mark.parametrize(("model", "drop_path"), [("resnet18", 0.3)])
def test_training_is_the_same_bits_with_and_without(model: str, drop_path: float) -> None:
    def final(watched: bool) -> dict[str, object]:
        seed_everything(3)
        network = create_model(model, num_classes=5, drop_rate=0.2, drop_path_rate=drop_path)
        optimizer = sgd(network)
        tracker = None
        if watched:
            tracker = smdtrack.watch(network, optimizer, every=2, sinks=["local"], lags=[2])
        train(network, optimizer, 4, size=32)
        if tracker is not None:
            tracker.finish()
            assert len(tracker.selection.weights) == 20
            assert len(tracker.summary().weights) == 20
        return everything(network, [optimizer])

    assert_same_bits(final(watched=False), final(watched=True))


def test_the_test_of_bits_sees_one_bit() -> None:
    weights = torch.ones(3)
    other = weights.clone()
    other.view(torch.int32)[1] ^= 1
    with pytest.raises(AssertionError):
        assert_same_bits({"weights": weights}, {"weights": other})


def test_watching_the_same_optimizer_again_returns_its_tracker() -> None:
    model = tiny()
    optimizer = sgd(model)
    tracker = smdtrack.watch(model, optimizer, sinks=["local"])
    assert smdtrack.watch(model, optimizer, every=3) is tracker
    tracker.finish()
    other = smdtrack.watch(model, optimizer, sinks=["local"])
    assert other is not tracker
    other.finish()


def test_as_a_context_manager_it_ends_with_the_status_of_the_block() -> None:
    model = tiny()
    optimizer = sgd(model)
    with smdtrack.watch(model, optimizer, every=1, sinks=["local"]) as tracker:
        train(model, optimizer, 2)
    assert read_run(tracker.folder).status == "finished"
    for error, status in ((ZeroDivisionError, "failed"), (KeyboardInterrupt, "interrupted")):
        tracker = smdtrack.watch(model, optimizer, every=1, sinks=["local"])
        with pytest.raises(error), tracker:
            raise_in_training(model, optimizer, error)
        assert read_run(tracker.folder).status == status


def test_finish_removes_the_hooks_and_records_no_more() -> None:
    from torch.optim import optimizer as torch_optimizer

    before = len(torch_optimizer._global_optimizer_pre_hooks), len(torch_optimizer._global_optimizer_post_hooks)
    model = tiny()
    optimizer = sgd(model)
    tracker = smdtrack.watch(model, optimizer, every=1, sinks=["local"])
    train(model, optimizer, 2)
    tracker.finish()
    tracker.finish()
    train(model, optimizer, 3)
    assert read_run(tracker.folder).steps.tolist() == [1, 2]
    after = len(torch_optimizer._global_optimizer_pre_hooks), len(torch_optimizer._global_optimizer_post_hooks)
    assert after == before


def test_a_summary_in_mid_training_has_every_sample_so_far_and_the_tracking_goes_on() -> None:
    model = tiny()
    optimizer = sgd(model)
    tracker = smdtrack.watch(model, optimizer, every=1, sinks=["local"])
    train(model, optimizer, 6)
    early = tracker.summary()
    assert [(row.key, row.samples) for row in early.weights] == [("0", 2), ("3", 2)]
    assert (early.first_step, early.last_step) == (5, 6)
    assert read_run(tracker.folder).status == "running"
    train(model, optimizer, 3)
    assert tracker.summary().last_step == 9
    tracker.finish()
    run = read_run(tracker.folder)
    assert run.steps.tolist() == list(range(1, 10))
    assert run.summary == tracker.summary().to_json() | {"weights": [asdict(row) for row in tracker.summary().weights]}


def test_the_summary_in_mid_training_equals_that_of_the_complete_record() -> None:
    model = tiny()
    optimizer = sgd(model)
    tracker = smdtrack.watch(model, optimizer, every=1, sinks=["local"])
    train(model, optimizer, 12)
    before = tracker.summary()
    tracker.finish()
    assert tracker.summary() == before


def test_without_a_sample_the_summary_is_empty_and_says_why() -> None:
    model = tiny()
    optimizer = sgd(model)
    tracker = smdtrack.watch(model, optimizer, every=10, sinks=["local"])
    train(model, optimizer, 3)
    reason = "no step was sampled: the training took fewer optimizer steps than lie between two samples"
    for _ in range(2):
        summary = tracker.summary()
        assert (summary.weights, summary.reason) == ((), reason)
        assert summary.verdict == f"nothing was measured: {reason}"
        tracker.finish()


def test_the_arguments_of_watch_are_the_options_with_the_same_defaults() -> None:
    parameters = inspect.signature(smdtrack.watch).parameters
    options = {field.name: field for field in fields(Options)}
    assert set(parameters) - set(options) == {"model", "optimizer", "example_input"}
    for name, field in options.items():
        default = field.default if field.default is not MISSING else None
        assert parameters[name].default == default, name


def test_include_and_exclude_choose_weights() -> None:
    model = tiny()
    optimizer = sgd(model)
    with smdtrack.watch(model, optimizer, include=["3.*"], sinks=["local"]) as tracker:
        assert [weight.name for weight in tracker.selection.weights] == ["3.weight"]
    with smdtrack.watch(model, optimizer, exclude=["3.*"], sinks=["local"]) as tracker:
        assert [weight.name for weight in tracker.selection.weights] == ["0.weight"]


@pytest.mark.parametrize(
    ("every", "first_steps", "expected"),
    [(4, 0, [4, 8, 12]), (5, 3, [1, 2, 3, 5, 10]), (lambda step: step in (2, 7, 11), 0, [2, 7, 11])],
)
def test_schedules(every: object, first_steps: int, expected: list[int]) -> None:
    model = tiny()
    optimizer = sgd(model)
    with smdtrack.watch(model, optimizer, every=every, first_steps=first_steps, sinks=["local"]) as tracker:
        train(model, optimizer, 12)
    assert read_run(tracker.folder).steps.tolist() == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"every": 0}, "every=0"),
        ({"every": 2.5}, "every=2.5"),
        ({"every": "10"}, "every='10'"),
        ({"first_steps": -1}, "first_steps=-1"),
        ({"lags": [1]}, "lags: 1"),
        ({"lags": ["5"]}, "lags: '5'"),
        ({"include": ["conv*"]}, "include 'conv*' matches no scale-invariant weight; there are 0.weight, 3.weight"),
        ({"exclude": ["8.weight"]}, "exclude '8.weight'"),
        ({"sinks": ["mlfow"]}, "no sink 'mlfow' (did you mean mlflow?); there are mlflow, wandb, local"),
    ],
)
def test_wrong_arguments_are_said_in_one_line(options: dict[str, object], said: str) -> None:
    model = tiny()
    with pytest.raises(smdtrack.SmdtrackError) as error:
        smdtrack.watch(model, sgd(model), **{"sinks": ["local"], **options})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_made_is_said_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    model = tiny()
    with pytest.raises(smdtrack.SmdtrackError, match="cannot write the local record"):
        smdtrack.watch(model, sgd(model), folder=tmp_path / "file" / "below", sinks=["local"])


def test_a_schedule_that_raises_costs_the_tracking_and_one_warning() -> None:
    def schedule(step: int) -> bool:
        return step < 3 or bool(1 / 0)

    model = tiny()
    optimizer = sgd(model)
    with (
        collected_notices() as caught,
        smdtrack.watch(model, optimizer, every=schedule, sinks=["local"]) as tracker,
    ):
        train(model, optimizer, 6)
    assert caught == ["measuring stopped at step 3 (ZeroDivisionError: division by zero); training goes on"]
    assert read_run(tracker.folder).steps.tolist() == [1, 2]


def test_a_step_that_raises_is_not_measured_with_the_next(tmp_path: Path) -> None:
    seed_everything(0)
    model = tiny()
    optimizer = sgd(model)
    witness = Witness(model, optimizer)

    def fail(*_: object) -> None:
        if len(witness.steps) == 2:
            raise RuntimeError("after the weights have moved, before our hook")

    optimizer.register_step_post_hook(fail)
    with smdtrack.watch(model, optimizer, every=2, sinks=["local"], folder=tmp_path) as tracker:
        train(model, optimizer, 1)
        with pytest.raises(RuntimeError):
            train(model, optimizer, 1)
        optimizer.zero_grad()
        train(model, optimizer, 4)
    run = read_run(tracker.folder)
    assert run.steps.tolist() == [4, 6]
    for step, angle in zip(*run.series("angle/0"), strict=True):
        assert angle == pytest.approx(witness.angle("0.weight", int(step)), rel=1e-6)
