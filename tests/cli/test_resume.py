"""A training that is killed in the middle and resumed from a checkpoint, as a person does it."""

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smdtrack.record import Run, read_run

TRAIN = """
import os, sys, time, torch
from pathlib import Path
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
    nn.Conv2d(8, 12, 3, stride=2, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
)
if sys.argv[1] == "sgd":
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
else:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
first = 0
if "--resume" in sys.argv:
    saved = torch.load("checkpoint.pt")
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    first = saved["step"]
for step in range(first + 1, 41):
    torch.manual_seed(step)
    loss = nn.functional.cross_entropy(model(torch.randn(8, 3, 10, 10)), torch.randint(0, 5, (8,)))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step == 14:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, "checkpoint.pt")
    if step == 25 and "--resume" not in sys.argv:
        if sys.argv[2] == "flushed":
            while not any('"run_id"' in file.read_text() for file in Path("smdtrack-runs").glob("*/run.json")):
                time.sleep(0.2)
            time.sleep(5)
        os.kill(os.getpid(), 9)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train_it.py").write_text(TRAIN)
    return tmp_path


def smdtrack_run(folder: Path, *args: object, sink: str = "mlflow") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "smdtrack", "run", "--sink", sink, "--every", "2", *map(str, args)]
    trackers = {name for name in os.environ if name.startswith(("MLFLOW_", "WANDB_"))}
    kept = {name: value for name, value in os.environ.items() if name not in trackers}
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**kept, "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"},
    )


def runs_of(folder: Path) -> list[Path]:
    return sorted((folder / "smdtrack-runs").iterdir(), key=lambda path: path.stat().st_mtime)


def mlflow_histories(folder: Path) -> list[tuple[Any, dict[str, list[tuple[int, float]]]]]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("smdtrack").experiment_id], order_by=["start_time"])
    return [
        (
            run,
            {
                key: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]
                for key in run.data.metrics
            },
        )
        for run in found
    ]


def assert_equal_to_the_record(histories: dict[str, list[tuple[int, float]]], record: Run) -> None:
    for key, history in histories.items():
        assert max(Counter(step for step, _ in history).values()) == 1, f"{key} has steps twice"
    for weight in record.info.weights:
        steps, values = record.series(f"angle/{weight.key}")
        assert histories[f"angle/{weight.key}"] == list(zip(steps.tolist(), values.tolist(), strict=True))


# Killed when record and tracker have all up to then, or at once.
@pytest.mark.parametrize(
    ("name", "killed_when"),
    [
        ("sgd", "flushed"),
        pytest.param("adamw", "flushed", marks=pytest.mark.slow),
        pytest.param("sgd", "at once", marks=pytest.mark.slow),
    ],
)
def test_after_kill_9_the_same_run_goes_on_and_no_step_is_doubled(name: str, killed_when: str, folder: Path) -> None:
    flushed = killed_when == "flushed"
    killed = smdtrack_run(folder, "train_it.py", name, killed_when)
    assert killed.returncode == -signal.SIGKILL
    (there,) = runs_of(folder)
    before = read_run(there)
    assert before.status == "running"
    if flushed:
        assert before.steps.tolist() == list(range(2, 25, 2)), "the checkpoint lies before the last recorded step"
    resumed = smdtrack_run(folder, "--resume-run", there, "train_it.py", name, "never", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert runs_of(folder) == [there]
    record = read_run(there)
    assert record.steps.tolist() == ([*range(2, 41, 2)] if flushed else [*range(16, 41, 2)])
    assert record.status == "finished"
    for family in before.values:
        np.testing.assert_array_equal(record.values[family][: len(before.steps)], before.values[family])
    ((run, histories),) = mlflow_histories(folder)
    assert run.info.status == "FINISHED"
    assert_equal_to_the_record(histories, record)
    # Trained once more from the checkpoint, into a record of its own: the curves are the same.
    assert smdtrack_run(folder, "train_it.py", name, "never", "--resume", sink="local").returncode == 0
    again = read_run(runs_of(folder)[-1])
    assert again.info.id != record.info.id
    assert again.steps.tolist() == list(range(16, 41, 2))
    np.testing.assert_allclose(record.values["angle"][-13:], again.values["angle"], rtol=1e-6)


@pytest.mark.slow
def test_without_the_option_a_resumed_training_has_a_run_of_its_own_that_says_whence(folder: Path) -> None:
    smdtrack_run(folder, "train_it.py", "sgd", "flushed")
    (there,) = runs_of(folder)
    resumed = smdtrack_run(folder, "train_it.py", "sgd", "never", "--resume")
    said = [line for line in resumed.stderr.splitlines() if "continues from a checkpoint" in line]
    assert len(said) == 1
    assert "at step 14" in said[0]
    assert f"--resume-run {there.relative_to(folder)}" in said[0]
    _, record = (read_run(run) for run in runs_of(folder))
    assert record.steps.tolist() == list(range(16, 41, 2))
    assert record.info.params["resumed_from"] == f"{there.name}, step 14"
    (_, cut), (run, histories) = mlflow_histories(folder)
    assert [step for step, _ in cut["angle/0"]] == list(range(2, 25, 2))
    assert_equal_to_the_record(histories, record)
    assert run.data.params["resumed_from"] == f"{there.name}, step 14"
