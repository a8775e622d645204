import json

import pytest

from smdtrack.cli import main
from tests.report.synthetic_runs import make_record


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "smdtrack-runs"


def test_table_verdict_reason_and_what_to_do(runner, runs):
    make_record(runs / "20261101-100000-late-11111111", start=[1, 1, 1, 1, 200], params={"batch_size": 64})
    result = runner.invoke(main, ["show", "late"])
    assert result.exit_code == 0, result.output
    said = result.stdout
    assert "layer1.0.conv1" in said
    assert "pred_ratio" in said
    assert "why: layer2.0.conv2 turns less than the equilibrium line (0." in said
    assert "its norm is above equilibrium and still falling" in said
    assert "what to do: about " in said
    assert "read from: smdtrack-runs/20261101-100000-late-11111111" in said


def test_the_time_until_equilibrium_is_right(runner, runs):
    """Trains as long as was said, and is in equilibrium then, but not after four fifths of that."""
    import re

    start = [1, 1, 1, 1, 60]
    make_record(runs / "short", start=start, steps=700, noise=0)
    said = runner.invoke(main, ["show", "short"]).stdout
    more = int(re.search(r"about ([\d,]+) more steps", said)[1].replace(",", ""))
    make_record(runs / "long", start=start, steps=(700 + more) * 3 // 2, noise=0)
    assert "in equilibrium" in runner.invoke(main, ["show", "long"]).stdout
    document = json.loads(runner.invoke(main, ["show", "long", "--json"]).stdout)
    reached = next(row for row in document["summary"]["weights"] if row["key"] == "layer2.0.conv2")["equilibrium_step"]
    assert 0.7 * (700 + more) <= reached <= 1.1 * (700 + more)


def test_a_running_and_a_diverged_run(runner, runs):
    make_record(runs / "going", status="running")
    said = runner.invoke(main, ["show", "going"]).stdout
    assert "note: the training is running: all samples written so far are shown" in said
    assert "5 of 5 weights turn as theory predicts" in said
    make_record(runs / "boom", nan_from=301, status="failed")
    said = runner.invoke(main, ["show", "boom"]).stdout
    assert "why: the weights stopped being finite at step 303: the training diverged" in said


def test_json_is_one_document(runner, runs):
    make_record(runs / "a", steps=20)
    result = runner.invoke(main, ["show", "last", "--json", "--weights", "layer1*"])
    document = json.loads(result.stdout)
    assert [row["key"] for row in document["summary"]["weights"]] == ["layer1.0.conv1", "layer1.0.conv2"]
    assert document["status"] == "finished"
    assert set(document["travel"]["layer1.0.conv1"]) == {"turned", "per_step", "time_constants"}


@pytest.mark.parametrize(
    ("run", "line"),
    [
        ("bse", "no run 'bse' in smdtrack-runs; did you mean base?"),
        ("zzz", "no run 'zzz' in smdtrack-runs; the newest is 20261101-100000-base-11111111"),
        ("1", "'1' is a part of 2 runs' names: 20261031-100000-lr4-22222222, 20261101-100000-base-11111111"),
        ("last~2", "no run 'last~2': smdtrack-runs has 2 runs"),
        ("mlfow:abc", "no source 'mlfow' in 'mlfow:abc'; did you mean mlflow?"),
        ("wandb:gone", "gone is no folder of an offline W&B run: no run-<id>.wandb in it"),
        ("mlflow:", "'mlflow:' names no run: write mlflow:RUN_ID or mlflow:EXPERIMENT/NAME"),
    ],
)
def test_a_run_that_does_not_exist(runner, runs, run, line):
    make_record(runs / "20261101-100000-base-11111111", steps=20, created=2e9)
    make_record(runs / "20261031-100000-lr4-22222222", steps=20, created=1e9)
    result = runner.invoke(main, ["show", run])
    assert (result.exit_code, result.stderr) == (2, f"Error: {line}\n")


def test_no_runs_at_all(runner):
    result = runner.invoke(main, ["show", "last"])
    assert (result.exit_code, result.stderr) == (2, "Error: no run 'last': smdtrack-runs has no runs\n")


def test_names_are_whole_in_a_pipe(runner, runs):
    name = "stages.3.blocks.17.a_very_long_module_name_that_people_search_for.conv_depthwise.conv"
    make_record(runs / "a", names=[name, "conv1"])
    assert name in runner.invoke(main, ["show", "a"]).stdout
