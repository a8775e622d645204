"""Calibration against closed forms, and what it leaves alone."""

import threading

import pytest
import torch
from timm.optim import create_optimizer_v2

from smdtrack.theory import calibration, filters, identify
from smdtrack.theory.calibration import calibrated


def made(name, **arguments):
    return create_optimizer_v2([torch.nn.Parameter(torch.zeros(4, 4))], name, lr=1e-2, weight_decay=0.1, **arguments)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sgd", filters.nesterov(0.9)),
        ("adamw", filters.moving_average(0.9)),
        ("lion", filters.lion(0.9, 0.99)),
    ],
)
def test_a_run_finds_the_memory_that_theory_gives(name, expected):
    optimizer = made(name)
    found = calibrated(optimizer, optimizer.param_groups[0])
    assert found.memory == pytest.approx(expected.memory, rel=0.015)
    assert found.autocorrelation[1] == pytest.approx(float(expected.autocorrelation[1]), abs=0.01)


def test_the_gain_of_a_mask_by_steins_lemma():
    """Derived by hand for a cautious average: H = 1 + s/(pi P), s^2 = S - h_0^2, P the share that passes the mask."""
    optimizer = made("cadamw")
    found = calibrated(optimizer, optimizer.param_groups[0])
    assert found.memory == pytest.approx(12.58, rel=0.01)
    assert found.gain == pytest.approx(1.102, abs=0.01)


def test_the_callers_random_numbers_and_weights_stay(monkeypatch):
    monkeypatch.setattr(calibration, "_STEPS", 1024)
    optimizer = made("cadamw", betas=(0.85, 0.99))
    before = torch.get_rng_state()
    calibrated(optimizer, optimizer.param_groups[0])
    assert torch.equal(before, torch.get_rng_state())
    assert not optimizer.state
    assert torch.is_grad_enabled()


def test_it_runs_once_per_class_and_hyper_parameters(monkeypatch):
    monkeypatch.setattr(calibration, "_STEPS", 1024)
    optimizer = made("cadamw", betas=(0.8, 0.99))
    first = calibrated(optimizer, optimizer.param_groups[0])
    monkeypatch.setattr(calibration, "_calibrate", lambda *_: pytest.fail("ran again"))
    assert calibrated(made("cadamc", betas=(0.8, 0.99)), optimizer.param_groups[0]) is first


def test_nothing_is_calibrated_on_another_thread():
    """A writer thread that calibrates would draw from, and reset, the random numbers of the training thread."""
    weight = torch.nn.Parameter(torch.randn(8, 8))
    optimizer = create_optimizer_v2([weight], "cadamw", lr=1e-3, weight_decay=0.1, betas=(0.87, 0.98))
    family = identify(optimizer)
    found = []
    state = torch.get_rng_state()
    thread = threading.Thread(target=lambda: found.append(family.line(optimizer.param_groups[0], (8, 8))))
    thread.start()
    thread.join()
    assert torch.equal(torch.get_rng_state(), state)
    assert found[0].kind == "none"
    assert found[0].reason == (
        "its hyper-parameters changed during the training, and it cannot be calibrated while a training runs"
    )
