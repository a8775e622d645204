"""`smdtrack sync` as a person uses it: after trainings that were killed or whose tracker was down."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from smdtrack.record import read_run

TRAIN = """
import time, torch
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=.1, momentum=.9, weight_decay=5e-3)
for step in range(STEPS):
    nn.functional.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.randint(2, (4,))).backward()
    optimizer.step()
    optimizer.zero_grad()
    time.sleep(PAUSE)
"""


@pytest.fixture(autouse=True)
def own_trackers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRACKING_URI", "RUN_ID", "EXPERIMENT_NAME", "EXPERIMENT_ID"):
        monkeypatch.delenv(f"MLFLOW_{name}", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def start(folder: Path, *args: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "smdtrack", *map(str, args)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def smdtrack(folder: Path, *args: object) -> "tuple[int, str, str]":
    process = start(folder, *args)
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error


def script(folder: Path, steps: int, pause: float) -> Path:
    path = folder / "train_it.py"
    path.write_text(TRAIN.replace("STEPS", str(steps)).replace("PAUSE", str(pause)))
    return path


def only_record(folder: Path) -> Path:
    (record,) = (folder / "smdtrack-runs").iterdir()
    return record


def steps_in_mlflow(folder: Path, key: str) -> "tuple[Any, list[int]]":
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("smdtrack")
    (run,) = client.search_runs([experiment.experiment_id])
    return run, [metric.step for metric in client.get_metric_history(run.info.run_id, key)]


def test_a_training_that_was_killed_is_sent_and_closed(tmp_path: Path) -> None:
    process = start(tmp_path, "run", "--every", "1", script(tmp_path, 100_000, 0.01))
    try:
        deadline = time.monotonic() + 240
        while not list(tmp_path.glob("smdtrack-runs/*/samples-*")) or len(read_run(only_record(tmp_path)).steps) < 100:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.2)
        code, out, error = smdtrack(tmp_path, "sync", "last")
        assert (code, out) == (2, "")
        assert "its training still runs (process " in error
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    code, out, error = smdtrack(tmp_path, "sync", "last", "--json")
    assert (code, error) == (0, "")
    (document,) = json.loads(out)
    assert [(tracker["sink"], tracker["problem"]) for tracker in document["trackers"]] == [("mlflow", None)]
    record = read_run(only_record(tmp_path))
    assert record.status == "killed"
    run, steps = steps_in_mlflow(tmp_path, "angle/0")
    assert steps == record.steps.tolist()
    assert run.info.status == "KILLED"
    code, out, error = smdtrack(tmp_path, "sync", "last")
    assert (code, error) == (0, "")
    assert out.splitlines()[0] == f"{only_record(tmp_path).name}: mlflow: nothing is missing"


def test_a_local_record_is_sent_to_the_tracker_that_is_named(tmp_path: Path) -> None:
    code, _, error = smdtrack(tmp_path, "run", "--sink", "local", "--every", "1", script(tmp_path, 30, 0))
    assert code == 0, error
    name = only_record(tmp_path).name
    assert smdtrack(tmp_path, "sync", "last") == (0, f"{name}: the record names no tracker; name one with --sink\n", "")
    code, out, error = smdtrack(tmp_path, "sync", "--all", "--sink", "mlflow")
    assert (code, error) == (0, "")
    first, command, address = out.splitlines()
    assert first.startswith(f"{name}: mlflow: ")
    assert first.endswith(" points sent")
    assert command == f"  mlflow server --backend-store-uri sqlite:///{tmp_path / 'mlflow.db'} --port 5000"
    assert address.startswith("  http://127.0.0.1:5000/#/experiments/")
    run, steps = steps_in_mlflow(tmp_path, "angle/0")
    assert (run.info.status, steps) == ("FINISHED", read_run(only_record(tmp_path)).steps.tolist())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Error: Give either one or more runs, or --all. (see "),
        (["last", "--all"], "Error: Give either one or more runs, or --all. (see "),
        (["last"], "Error: no run 'last': smdtrack-runs has no runs\n"),
        (["last", "--sink", "mlfow"], "Error: no sink 'mlfow' (did you mean mlflow?); there are mlflow, wandb, local"),
        (["--all"], "Error: there is no folder smdtrack-runs; give another with --folder\n"),
    ],
)
def test_wrong_usage_is_one_line(arguments: "list[str]", message: str, tmp_path: Path) -> None:
    code, out, error = smdtrack(tmp_path, "sync", *arguments)
    assert (code, out) == (2, "")
    assert error.startswith(message)
    assert error.count("\n") == 1
