"""A run read back from the trackers is the run that was sent: real MLflow stores, real offline W&B runs."""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smdtrack import SmdtrackError
from smdtrack.record import LocalStore, Run, RunInfo, Sample, read_run, summarize
from smdtrack.record.run import points
from smdtrack.record.sources import open_run
from smdtrack.report.comparison import compare
from smdtrack.report.comparison_verdict import sentences
from smdtrack.report.facts import facts_of
from smdtrack.report.page import page
from smdtrack.report.page_view import view_of
from smdtrack.sinks.mlflow import MLflowSink
from smdtrack.sinks.thinning import ReferenceThinner
from smdtrack.sinks.wandb import WandbSink
from tests.sinks.mlflow_server import free_port
from tests.sinks.synthetic import make_info, make_samples

PATIENCE = 60


@pytest.fixture
def info(tmp_path: Path) -> RunInfo:
    (tmp_path / "record").mkdir()
    return make_info(tmp_path / "record", 4)


@pytest.fixture
def samples(info: RunInfo) -> list[Sample]:
    return list(make_samples(info, 60))


@pytest.fixture
def recorded(info: RunInfo, samples: list[Sample]) -> Run:
    store = LocalStore(info)
    store.append(samples)
    summary = summarize(read_run(info.folder))
    assert summary is not None
    store.close("finished", summary.to_json())
    return read_run(info.folder)


def send(sink: Any, info: RunInfo, samples: Sequence[Sample], run: Run, status: str | None = "finished") -> None:
    """Sends a run as the writer does: reference lines when they move, and at the end."""
    thinner = ReferenceThinner()
    sink.note_script_run()
    sink.start(info)
    sink.write([point for sample in samples for point in thinner.thin(points(sample, info.weights))])
    sink.write(thinner.last_points())
    if status is not None:
        sink.finish(info, summarize(run), status)


def assert_same_values(read: Run, recorded: Run) -> None:
    order = [[weight.key for weight in recorded.info.weights].index(weight.key) for weight in read.info.weights]
    np.testing.assert_array_equal(read.steps, recorded.steps)
    for family in ("angle", "angle_pred", "norm", "effective_grad"):
        np.testing.assert_allclose(read.values[family], recorded.values[family][:, order], rtol=1e-12)
    for family in ("angle_eq", "norm_eq"):  # sent only where they move
        np.testing.assert_allclose(read.values[family], recorded.values[family][:, order], rtol=1e-9)
    np.testing.assert_allclose(read.overview["smd/angle_ratio_p50"], recorded.overview["smd/angle_ratio_p50"])


def verdict(one: str, other: str, **where: Any) -> list[str]:
    comparison = compare([facts_of(open_run(text, **where), letter) for text, letter in ((one, "A"), (other, "B"))])
    return sentences(comparison, comparison.changes[0])


def test_mlflow_and_the_local_record_are_the_same_run(
    info: RunInfo, samples: list[Sample], recorded: Run, store: str
) -> None:
    sink = MLflowSink(store)
    send(sink, info, samples, recorded)
    address = f"mlflow:{sink.destination()['run_id']}"
    opened = open_run(address, tracking_uri=store)
    assert_same_values(opened.run, recorded)
    assert opened.run.status == "finished"
    assert opened.run.info.params["lr"] == 0.1
    assert opened.run.info.weights[0].line_kind == "closed form"
    assert opened.notes == (
        "MLflow has no shapes and no memory of the weights, and reference lines only where they moved",
    )
    same = ["No difference: B has the settings and the angles of A."]
    assert verdict(str(info.folder), address, tracking_uri=store) == same
    by_name = f"mlflow:smdtrack/{info.name}"
    assert open_run(by_name, tracking_uri=store).run.info.id == opened.run.info.id
    assert "Weights at the end" in page(view_of([opened], None))


def test_wandb_and_the_local_record_are_the_same_run(info: RunInfo, samples: list[Sample], recorded: Run) -> None:
    sink = WandbSink()
    send(sink, info, samples, recorded)
    folder = str(sink.destination()["folder"])
    opened = open_run(folder)
    deadline = time.monotonic() + PATIENCE
    while opened.run.status != "finished":  # finish() can return before the file is complete
        assert time.monotonic() < deadline
        opened = open_run(folder)
    assert_same_values(opened.run, recorded)
    assert opened.run.info.name == info.name
    assert opened.run.info.params["momentum"] == 0.9
    assert verdict(str(info.folder), folder) == ["No difference: B has the settings and the angles of A."]
    assert open_run(f"wandb:{folder}").run.info.id == opened.run.info.id


def test_a_script_s_mlflow_run_has_its_settings_and_metrics(
    info: RunInfo, samples: list[Sample], recorded: Run, store: str
) -> None:
    import mlflow

    mlflow.set_tracking_uri(store)
    try:
        experiment = mlflow.create_experiment("theirs/with a slash")
        with mlflow.start_run(experiment_id=experiment, run_name="mine"):
            mlflow.log_params({"batch_size": 256, "augment": "true", "note": "x"})
            mlflow.log_metric("val_acc", 0.5, step=1)
            mlflow.log_metric("val_acc", 0.75, step=2)
            send(MLflowSink(), info, samples, recorded)
    finally:
        mlflow.set_tracking_uri(None)
    opened = open_run("mlflow:theirs/with a slash/mine", tracking_uri=store)
    assert opened.settings == {"batch_size": 256, "augment": True, "note": "x"}
    assert opened.metrics == {"val_acc": 0.75}
    assert opened.run.info.params["optimizer"] == "SGD, momentum"
    assert_same_values(opened.run, recorded)


def test_a_script_s_wandb_run_has_its_settings_and_metrics(
    info: RunInfo, samples: list[Sample], recorded: Run, tmp_path: Path
) -> None:
    import wandb

    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
    run = wandb.init(project="theirs", dir=str(tmp_path), mode="offline", settings=settings, config={"batch_size": 256})
    folder = Path(run.dir).parent
    sink = WandbSink()
    sink.note_script_run()
    sink.start(info)
    run.log({"val_acc": 0.5})
    run.log({"val_acc": 0.75})
    thinner = ReferenceThinner()
    sink.write([point for sample in samples for point in thinner.thin(points(sample, info.weights))])
    sink.write(thinner.last_points())
    sink.finish(info, summarize(recorded), "finished")
    run.finish()
    opened = open_run(str(folder))
    deadline = time.monotonic() + PATIENCE
    while opened.run.status != "finished":
        assert time.monotonic() < deadline
        opened = open_run(str(folder))
    assert opened.settings == {"batch_size": 256}
    assert opened.metrics == {"val_acc": 0.75}
    assert opened.run.info.params["optimizer"] == "SGD, momentum"
    assert_same_values(opened.run, recorded)


def test_a_run_that_is_still_going_on(info: RunInfo, samples: list[Sample], recorded: Run, store: str) -> None:
    sink = MLflowSink(store)
    send(sink, info, samples[:30], recorded, status=None)
    opened = open_run(f"mlflow:{sink.destination()['run_id']}", tracking_uri=store)
    assert opened.run.status == "running"
    assert len(opened.run.steps) == 30
    assert opened.notes[1] == "the run has no summary table: it is running, or it ended without one"
    summary = facts_of(opened).summary
    assert summary is not None
    assert len(summary.weights) == 4


def test_a_reference_line_that_jumps_is_read_as_a_jump(info: RunInfo, recorded: Run, store: str) -> None:
    def halved(sample: Sample) -> Sample:
        values = {**sample.values, "angle_eq": sample.values["angle_eq"] * (0.5 if sample.step > 300 else 1)}
        return Sample(sample.step, sample.time, values, sample.overview)

    samples = [halved(sample) for sample in make_samples(info, 60)]
    sink = MLflowSink(store)
    send(sink, info, samples, recorded)
    read = open_run(f"mlflow:{sink.destination()['run_id']}", tracking_uri=store).run.values["angle_eq"]
    want = np.array([sample.values["angle_eq"][0] for sample in samples])
    np.testing.assert_allclose(read[:, 0], want, rtol=1e-9)


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("mlflow:0123", r"has no run '0123'; a name is written as mlflow:EXPERIMENT/NAME$"),
        ("mlflow:Defaut/x", r"has no experiment 'Defaut'; did you mean Default\?$"),
        ("mlflow:Default/x", r"^experiment 'Default' has no run called 'x'$"),
    ],
)
def test_what_mlflow_does_not_have(store: str, address: str, line: str) -> None:
    with pytest.raises(SmdtrackError, match=line):
        open_run(address, tracking_uri=store)


def test_a_run_without_data_of_smdtrack(store: str) -> None:
    from mlflow import MlflowClient

    run = MlflowClient(tracking_uri=store).create_run("0")
    with pytest.raises(SmdtrackError, match=r"has no data of smdtrack: it has no metric angle/<weight>$"):
        open_run(f"mlflow:{run.info.run_id}", tracking_uri=store)


def test_a_server_that_does_not_answer_costs_seconds_and_tells_no_secret(tmp_path: Path) -> None:
    uri = f"http://user:secret@127.0.0.1:{free_port()}"
    with pytest.raises(SmdtrackError, match=r"^no MLflow server answers at http://127\.0\.0\.1:\d+$"):
        open_run("mlflow:0123", tracking_uri=uri)


def test_a_store_that_does_not_exist_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(SmdtrackError, match=r"^there is no MLflow store .*none\.db: give the tracking URI"):
        open_run("mlflow:0123", tracking_uri=f"sqlite:///{tmp_path / 'none.db'}")
    assert not (tmp_path / "none.db").exists()


def test_a_wandb_file_that_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "offline-run-1"
    folder.mkdir()
    (folder / "run-1.wandb").write_bytes(b"nothing of the kind")
    with pytest.raises(SmdtrackError, match=r"reader failed on|has no data of smdtrack"):
        open_run(str(folder))


def test_wandb_s_reader_is_found_without_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command runs in this interpreter: no `wandb` needs to be on the PATH."""
    monkeypatch.setenv("PATH", "/nonexistent")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--help"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
