import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from smdtrack.cli import main
from smdtrack.record import read_run

TRAIN = """
import sys, timm, torch
torch.manual_seed(0)
model = timm.create_model("test_resnet", num_classes=10)
optimizer = torch.optim.SGD(model.parameters(), lr=.1, momentum=.9, weight_decay=5e-3)
steps = int(sys.argv[1])
for step in range(steps):
    x, y = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()
    if len(sys.argv) > 2 and step == steps - 2:
        exec(sys.argv[2])
torch.save(model.state_dict(), "end.pt")
print("the script's own word")
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train_it.py"
    path.write_text(TRAIN)
    return path


def smdtrack(folder, *args, **environment):
    return subprocess.run(
        [sys.executable, "-m", "smdtrack", *map(str, args)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )


def only_run(folder):
    (run,) = (Path(folder) / "smdtrack-runs").iterdir()
    return read_run(run)


def test_a_script_that_knows_nothing_is_tracked_and_ends_with_the_table(tmp_path, script):
    result = smdtrack(tmp_path, "run", "--sink", "local", "--every", "5", script, 60)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "the script's own word\n", "stdout is the script's"
    assert "15 scale-invariant weights of test_resnet" in result.stderr
    run = only_run(tmp_path)
    assert run.steps.tolist() == list(range(5, 61, 5))
    assert run.status == "finished"
    for weight in run.info.weights:
        assert weight.key in result.stderr
    assert run.summary["verdict"] in result.stderr
    assert "Record: smdtrack-runs/" in result.stderr


def test_the_weights_at_the_end_are_bitwise_those_without_smdtrack(tmp_path, script):
    for folder in ("with", "without"):
        (tmp_path / folder).mkdir()
    subprocess.run([sys.executable, script, "20"], cwd=tmp_path / "without", check=True, capture_output=True)
    assert smdtrack(tmp_path / "with", "run", "--sink", "local", "--every", "1", script, 20).returncode == 0
    expected = torch.load(tmp_path / "without" / "end.pt", weights_only=True)
    found = torch.load(tmp_path / "with" / "end.pt", weights_only=True)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_default_sends_to_mlflow_and_says_how_to_look(tmp_path, script):
    import mlflow

    result = smdtrack(tmp_path, "run", "--every", "5", script, 40)
    assert result.returncode == 0, result.stderr
    assert f"mlflow server --backend-store-uri sqlite:///{tmp_path}/mlflow.db" in result.stderr
    assert "viewStateShareKey=" in result.stderr
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("smdtrack").experiment_id])
    history = client.get_metric_history(run.info.run_id, "angle/layer1.0.conv1")
    assert [point.step for point in history] == list(range(5, 41, 5))
    stored = only_run(tmp_path)
    assert [point.value for point in history] == stored.series("angle/layer1.0.conv1")[1].tolist()
    assert len(client.get_metric_history(run.info.run_id, "angle_eq/layer1.0.conv1")) == 2
    assert run.info.status == "FINISHED"


def test_a_tracker_that_cannot_be_reached_is_one_line_and_costs_nothing(tmp_path, script):
    started = time.monotonic()
    result = smdtrack(tmp_path, "run", "--every", "10", script, 40, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert result.returncode == 0
    assert result.stdout == "the script's own word\n"
    said = [line for line in result.stderr.splitlines() if "127.0.0.1:9" in line]
    assert said
    assert all("Warning" in line or "smdtrack" in line for line in said)
    assert len(only_run(tmp_path).steps) == 4
    assert time.monotonic() - started < 120


@pytest.mark.parametrize(
    ("ending", "code", "status"),
    [
        ("sys.exit(3)", 3, "failed"),
        ("sys.exit('no more')", 1, "failed"),
        ("1 / 0", 1, "failed"),
        ("sys.exit()", 0, "finished"),
    ],
)
def test_the_exit_code_is_the_scripts(tmp_path, script, ending, code, status):
    result = smdtrack(tmp_path, "run", "--sink", "local", "--every", "2", script, 10, ending)
    plain = subprocess.run(
        [sys.executable, script, "10", ending], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == code == plain.returncode
    assert only_run(tmp_path).status == status
    if "1 / 0" in ending:
        expected = [line for line in plain.stderr.splitlines() if line.strip()]
        assert "\n".join(expected) in "\n".join(line for line in result.stderr.splitlines() if line.strip())


def test_ctrl_c_stops_the_script_and_writes_the_summary(tmp_path, script):
    process = subprocess.Popen(
        [sys.executable, "-m", "smdtrack", "run", "--sink", "local", "--every", "2", str(script), "1000000"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    parts = tmp_path / "smdtrack-runs"
    deadline = time.monotonic() + 120
    while not list(parts.glob("*/samples-*.arrows")) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in stderr
    run = only_run(tmp_path)
    assert run.status == "interrupted"
    assert run.summary["verdict"] in stderr


def test_kill_9_in_mid_run_leaves_the_samples(tmp_path, script):
    process = subprocess.Popen(
        [sys.executable, "-m", "smdtrack", "run", "--sink", "local", "--every", "2", str(script), "1000000"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    parts = tmp_path / "smdtrack-runs"
    deadline = time.monotonic() + 120
    while not any(part.stat().st_size > 20_000 for part in parts.glob("*/samples-*.arrows")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    process.wait()
    run = only_run(tmp_path)
    assert run.status == "running"
    assert len(run.steps) >= 5
    assert run.steps.tolist() == list(range(2, 2 * len(run.steps) + 1, 2)), "no gap up to the last flush"


def test_a_script_without_an_optimizer_is_told_so_and_keeps_its_code(tmp_path):
    script = tmp_path / "plain.py"
    script.write_text("import sys; print(sys.argv, __name__); sys.exit(7)")
    result = smdtrack(tmp_path, "run", script, "--every", "5", "-x")
    assert result.returncode == 7
    assert result.stdout == f"{[str(script), '--every', '5', '-x']} __main__\n"
    assert "nothing was tracked: the script made no optimizer step" in result.stderr
    assert not (tmp_path / "smdtrack-runs").exists()


def test_a_network_without_invariant_weights_is_told_so(tmp_path):
    script = tmp_path / "plain.py"
    script.write_text(
        "import torch\nmodel = torch.nn.Linear(3, 2)\noptimizer = torch.optim.SGD(model.parameters(), lr=.1)\n"
        "for _ in range(3):\n    model(torch.randn(4, 3)).sum().backward()\n    optimizer.step()\n"
    )
    result = smdtrack(tmp_path, "run", "--sink", "local", script)
    assert result.returncode == 0
    assert "no scale-invariant weight" in result.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nosuch.py"], "no script 'nosuch.py'"),
        (["--every", "-3", "x.py"], "-3 is not in the range x>=1"),
        (["--every", "often", "x.py"], "'often' is not a valid integer"),
        (["--sink", "tensorboard", "x.py"], "no sink 'tensorboard'; there are mlflow, wandb, local"),
        (["--lags", "1", "x.py"], "whole numbers of steps are needed, 2 or more"),
        (["--lags", "ten", "x.py"], "whole numbers of steps are needed, 2 or more"),
        (["-m", "no_such_module"], "no module 'no_such_module'"),
        (["--folder", "/proc/smd", "x.py"], "choose another folder"),
        ([], "Missing argument 'SCRIPT'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(runner, args, said):
    result = runner.invoke(main, ["run", *args])
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_glob_that_matches_nothing_is_one_line_and_exit_code_2_before_the_first_step(tmp_path, script):
    result = smdtrack(tmp_path, "run", "--sink", "local", "--include", "zzz", script, 5)
    assert result.returncode == 2
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if "so far; training waits" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("Error: include 'zzz' matches no scale-invariant weight; there are conv1.0.weight, ")
    assert not (tmp_path / "end.pt").exists()


def test_a_script_ended_by_ctrl_c_runs_its_atexit_handlers_and_ends_by_the_signal(tmp_path, script):
    ending = "import atexit, os, signal; atexit.register(print, 'atexit ran'); os.kill(os.getpid(), signal.SIGINT)"
    result = smdtrack(tmp_path, "run", "--sink", "local", "--every", "2", script, 10, ending)
    assert result.returncode == -signal.SIGINT
    assert result.stdout == "atexit ran\n"
    assert "Aborted" not in result.stderr
    assert only_run(tmp_path).status == "interrupted"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_script_ended_by_a_signal_has_its_status_in_the_record(tmp_path, script, number):
    result = smdtrack(
        tmp_path,
        "run",
        "--sink",
        "local",
        "--every",
        "2",
        script,
        10,
        f"import os; os.kill(os.getpid(), {int(number)})",
    )
    assert result.returncode == -number
    run = only_run(tmp_path)
    assert run.status == "interrupted"
    assert run.steps.tolist() == [2, 4, 6, 8]


def test_the_command_in_the_record_has_no_secrets():
    from smdtrack.cli.run import without_secrets

    command = ["train.py", "--api-key", "abc", "--token=def", "--lr", "0.1", "--password"]
    assert without_secrets(command) == ["train.py", "--api-key", "***", "--token=***", "--lr", "0.1", "--password"]
