"""Real pairs of runs on the handwritten digits: each verdict names what was changed, and what that did."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"
MOMENTUM = ("--config", str(RECIPES / "digits_momentum.yaml"))
#: Long enough for 15 of the 15 weights to reach equilibrium at the recipe's settings.
EPOCHS = ("--epochs", "40")
PAIRS = {
    "base": (*MOMENTUM, *EPOCHS),
    "lr4": (*MOMENTUM, *EPOCHS, "--lr", "0.4"),
    "wd4": (*MOMENTUM, *EPOCHS, "--weight-decay", "0.02"),
    "adamw": ("--config", str(RECIPES / "digits_adamw.yaml"), *EPOCHS),
    "batch4": (*MOMENTUM, "--epochs", "60", "--batch-size", "256", "--lr", "0.4"),
    "nan": (*MOMENTUM, "--epochs", "4", "--lr", "1e18", "--warmup-lr", "0.01", "--warmup-epochs", "2"),
    "other": (*MOMENTUM, "--epochs", "2", "--model", "test_efficientnet"),
}

# Eight trainings of about a minute each, on a quiet machine.
pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3600)]


def smdtrack(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "smdtrack", *arguments],
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=900,
    )


def training(name: str, options: Sequence[str]) -> list[str]:
    tracked = ("run", "--sink", "local", "--every", "3", "--lags", "4", "--name", name)
    return [*tracked, str(RECIPES / "train.py"), *options, "--output", f"out-{name}"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for name, options in PAIRS.items():
        result = smdtrack(folder, *training(name, options))
        assert result.returncode == 0, result.stderr
    command = [sys.executable, "-m", "smdtrack", *training("cut", PAIRS["base"])]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    while not list((folder / "out-cut").glob("*/summary.csv")):  # the fifth epoch's
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    return folder


def verdict(folder: Path, name: str, *options: str) -> list[str]:
    result = smdtrack(folder, "compare", "base", name, "--json", *options)
    assert result.returncode == 0, result.stderr
    (change,) = json.loads(result.stdout)["changes"]
    return list(change["verdict"])


def test_four_times_the_learning_rate(runs: Path) -> None:
    first, *_ = verdict(runs, "lr4")
    assert first.startswith("B turns 2.")
    assert first.endswith("as lr x 4 predicts (2.00x at equilibrium).")


def test_four_times_the_weight_decay(runs: Path) -> None:
    first, *_ = verdict(runs, "wd4")
    assert first.startswith("B turns 2.")
    assert first.endswith("as wd x 4 predicts (2.00x at equilibrium).")


def test_momentum_against_adamw(runs: Path) -> None:
    said = verdict(runs, "adamw")
    assert "SGD to AdamW, lr x 0.02 and wd x 200 predict 0.63x at equilibrium" in said[0]
    assert any("of B were still losing norm" in line for line in said)


def test_batch_and_rate_times_four(runs: Path) -> None:
    said = verdict(runs, "batch4")
    assert "as lr x 4 predicts (2.00x at equilibrium)." in said[0]
    assert any(line.startswith("An epoch of B has 0.2") for line in said)
    result = smdtrack(runs, "compare", "base", "batch4", "--linear-scaling", "--json")
    scaling = json.loads(result.stdout)["linear_scaling"]
    assert scaling["white"] == pytest.approx(1.877, abs=1e-3)
    assert scaling["overall"]["ratio"] == pytest.approx(scaling["white"], rel=0.05)
    assert scaling["overall"]["measured"] == pytest.approx(scaling["overall"]["ratio"], rel=0.08)


def test_an_interrupted_run(runs: Path) -> None:
    said = verdict(runs, "cut")
    assert "No setting that moves the line differs: at equilibrium it would be 1.00x." in said[0]
    assert any(line.startswith("B was interrupted at step ") for line in said)
    assert any("All 15 weights of B were still losing norm" in line for line in said)


def test_a_run_that_diverged(runs: Path) -> None:
    result = smdtrack(runs, "compare", "base", "nan")
    assert "diverged at step 2" in result.stdout + result.stderr
    assert "diverged" in smdtrack(runs, "show", "nan").stdout


def test_another_architecture(runs: Path) -> None:
    result = smdtrack(runs, "compare", "base", "other")
    assert result.returncode == 2
    assert "have no weight in common: conv1.0, " in result.stderr
    assert "of test_resnet against conv_stem, " in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_page_of_all(runs: Path) -> None:
    result = smdtrack(runs, "report", "base", "lr4", "wd4", "adamw", "batch4", "-o", "all.html")
    assert result.returncode == 0, result.stderr
    assert (runs / "all.html").stat().st_size < 4e6
