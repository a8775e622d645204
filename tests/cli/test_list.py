import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from smdtrack.cli import main
from tests.report.synthetic_runs import change_head, make_record


def test_newest_first_with_verdict(runner):
    runs = Path("smdtrack-runs")
    make_record(runs / "20261101-100000-old-11111111", created=1e9)
    make_record(runs / "20261102-100000-new-22222222", created=2e9, lr=0.4)
    result = runner.invoke(main, ["list"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["run", "started", "status", "model", "optimizer", "lr", "x", "wd", "samples", "verdict"]
    assert lines[1].startswith("20261102-100000-new-22222222")
    assert "0.4 x 0.005" in lines[1]
    assert "finished" in lines[1]
    assert next(line for line in lines if "old" in line)
    assert "5 of 5 weights turn as theory predicts" in result.stdout


def test_json_is_one_document(runner):
    make_record(Path("elsewhere") / "a", params={"model": "resnet50"})
    result = runner.invoke(main, ["list", "--folder", "elsewhere", "--json"])
    (run,) = json.loads(result.stdout)
    assert run["model"] == "resnet50"
    assert run["status"] == "finished"
    assert (run["lr"], run["weight_decay"], run["weights"]) == (0.1, 5e-3, 5)
    assert run["verdict"].endswith("all are in equilibrium")
    assert run["damage"] is None
    assert run["samples"] == 300


def test_running_killed_and_damaged_runs(runner):
    runs = Path("smdtrack-runs")
    make_record(runs / "going", status="running")
    elsewhere = make_record(runs / "killed elsewhere", status="running")
    change_head(elsewhere, process={"host": "another", "pid": 1, "started": 0})
    for file in elsewhere.iterdir():
        os.utime(file, (time.time() - 5000, time.time() - 5000))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    killed = make_record(runs / "killed", status="running")
    change_head(killed, process={"host": socket.gethostname(), "pid": ended.pid, "started": time.time()})
    damaged = make_record(runs / "damaged")
    (damaged / "run.json").write_text('{"schema": 1')
    strange = make_record(runs / "strange")
    change_head(strange, weights=None)
    result = runner.invoke(main, ["list", "--json"])
    assert result.exit_code == 0
    status = {run["name"]: run["status"] for run in json.loads(result.stdout)}
    assert status == {
        "going": "running",
        "killed": "killed",
        "killed elsewhere": "killed",
        "damaged": "unreadable",
        "strange": "unreadable",
    }
    samples = {run["name"]: run["samples"] for run in json.loads(result.stdout)}
    assert (samples["going"], samples["killed"]) == (300, 300)
    assert runner.invoke(main, ["list"]).exit_code == 0


def test_no_folder_and_no_runs(runner):
    result = runner.invoke(main, ["list"])
    assert result.exit_code == 2
    said = "Error: there is no folder smdtrack-runs; `smdtrack run` makes it, or give another with --folder\n"
    assert result.stderr == said
    Path("smdtrack-runs").mkdir()
    result = runner.invoke(main, ["list"])
    assert (result.exit_code, result.stdout) == (0, "no runs in smdtrack-runs\n")


def test_only_the_heads_are_read(runner, monkeypatch):
    """What makes 500 runs quick: the list opens no sample file."""
    import smdtrack.record.local_source as source

    make_record(Path("smdtrack-runs") / "a")
    monkeypatch.setattr(source, "read_run", None)
    result = runner.invoke(main, ["list", "--json"])
    assert json.loads(result.stdout)[0]["name"] == "a"
