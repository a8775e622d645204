"""The MLflow sink against real stores: sqlite files and a real server."""

import json
import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smdtrack.record.run import Point, RunInfo, Sample
from smdtrack.sinks.mlflow import MLflowSink
from smdtrack.sinks.mlflow_names import safe_key
from tests.said import collected_notices
from tests.sinks.mlflow_server import free_port
from tests.sinks.synthetic import make_info, make_points, make_samples, make_summary


@pytest.fixture
def info(tmp_path: Path) -> RunInfo:
    return make_info(tmp_path / "record", 3)


@pytest.fixture
def samples(info: RunInfo) -> list[Sample]:
    return list(make_samples(info, 30))


@pytest.fixture
def mlflow() -> Iterator[Any]:
    """The script's MLflow, put back as it was."""
    import mlflow

    yield mlflow
    while mlflow.active_run() is not None:
        mlflow.end_run()
    mlflow.set_tracking_uri(None)
    mlflow.tracking.fluent._active_experiment_id = None
    for name in ("TRACKING_URI", "EXPERIMENT_ID"):
        os.environ.pop(f"MLFLOW_{name}", None)


def on_another_thread(work: Callable[[], None]) -> None:
    """Runs it as the writer does: note_script_run() has been called here, everything else comes from over there."""
    raised: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def send(sink: MLflowSink, info: RunInfo, samples: list[Sample], status: str = "finished") -> None:
    sink.note_script_run()

    def work() -> None:
        sink.start(info)
        sink.write(make_points(info, samples))
        sink.finish(info, make_summary(info, samples), status)

    on_another_thread(work)


def one_line_error(work: Callable[[], None]) -> str | None:
    try:
        work()
    except RuntimeError as error:
        return str(error)
    return None


def client_of(sink: MLflowSink) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=sink.destination()["tracking_uri"])


def history(sink: MLflowSink, key: str) -> list[tuple[int, float]]:
    return [
        (metric.step, metric.value) for metric in client_of(sink).get_metric_history(sink.destination()["run_id"], key)
    ]


def the_run(sink: MLflowSink) -> Any:
    return client_of(sink).get_run(sink.destination()["run_id"])


def assert_complete(sink: MLflowSink, info: RunInfo, samples: list[Sample]) -> None:
    points = make_points(info, samples)
    for key in {point.key for point in points}:
        assert history(sink, key) == [(point.step, pytest.approx(point.value)) for point in points if point.key == key]


def test_default_store_is_a_file_here(store: str, info: RunInfo, samples: list[Sample], tmp_path: Path) -> None:
    sink = MLflowSink()
    send(sink, info, samples)
    assert sink.destination()["tracking_uri"] == store
    assert_complete(sink, info, samples)
    run = the_run(sink)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == info.name
    assert run.data.params["lr"] == "0.1"
    assert run.data.tags["smdtrack.record"] == str(info.folder)
    assert run.data.tags["smdtrack.verdict"] == make_summary(info, samples).verdict
    assert client_of(sink).get_experiment(run.info.experiment_id).name == "smdtrack"
    assert "MLFLOW_TRACKING_URI" not in os.environ
    command, address = sink.how_to_open()
    assert command == f"mlflow server --backend-store-uri {store} --port 5000"
    assert address == (
        f"http://127.0.0.1:5000/#/experiments/{run.info.experiment_id}/runs"
        "?viewStateShareKey=smdtrack-v1&compareRunsMode=CHART&workflowType=machine_learning"
    )


def test_server(server: str, info: RunInfo, samples: list[Sample], capfd: pytest.CaptureFixture[str]) -> None:
    sink = MLflowSink(server, experiment="on a server")
    send(sink, info, samples)
    assert_complete(sink, info, samples)
    assert the_run(sink).info.status == "FINISHED"
    assert sink.how_to_open() == [
        f"{server}/#/experiments/{sink.destination()['experiment_id']}/runs"
        "?viewStateShareKey=smdtrack-v1&compareRunsMode=CHART&workflowType=machine_learning"
    ]
    assert capfd.readouterr() == ("", "")


def test_fresh_store_is_made_without_a_word(info: RunInfo, tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from smdtrack.sinks.mlflow import MLflowSink
from tests.sinks.synthetic import make_info
sink = MLflowSink()
sink.note_script_run()
assert "mlflow" not in sys.modules
sink.start(make_info(Path("record"), 2))
import logging
print(logging.getLogger("mlflow.store.db.utils").level, Path("mlflow.db").exists())
"""
    folder = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == (f"{logging.NOTSET} True\n", "", 0)


@pytest.mark.parametrize(("status", "mlflow_status"), [("failed", "FAILED"), ("interrupted", "KILLED")])
def test_status(status: str, mlflow_status: str, store: str, info: RunInfo, samples: list[Sample]) -> None:
    sink = MLflowSink(store, view=False)
    send(sink, info, samples, status)
    assert the_run(sink).info.status == mlflow_status


def test_attaches_to_the_active_run(store: str, info: RunInfo, samples: list[Sample], mlflow: Any) -> None:
    mlflow.set_tracking_uri(store)
    mlflow.set_experiment("mine")
    with mlflow.start_run() as active:
        sink = MLflowSink()
        send(sink, info, samples)
        assert sink.destination()["run_id"] == active.info.run_id
        # The script may still log under the names that it likes.
        mlflow.log_param("lr", 0.2)
        assert the_run(sink).info.status == "RUNNING"
    assert_complete(sink, info, samples)
    run = the_run(sink)
    assert run.info.status == "FINISHED"
    assert (run.data.params["lr"], run.data.params["smd/lr"]) == ("0.2", "0.1")
    assert "mlflow.note.content" not in run.data.tags


def test_new_run_goes_into_the_scripts_experiment(store: str, info: RunInfo, mlflow: Any) -> None:
    mlflow.set_tracking_uri(store)
    experiment = mlflow.set_experiment("mine")
    sink = MLflowSink()
    sink.note_script_run()
    sink.start(info)
    assert sink.destination()["experiment_id"] == experiment.experiment_id


def test_active_run_elsewhere_is_left_alone(store: str, server: str, info: RunInfo, mlflow: Any) -> None:
    mlflow.set_tracking_uri(store)
    with mlflow.start_run() as active:
        sink = MLflowSink(server, view=False)
        sink.note_script_run()
        sink.start(info)
        assert sink.destination()["run_id"] != active.info.run_id
        assert sink.destination()["tracking_uri"] == server
        assert mlflow.get_tracking_uri() == store


def test_environment(
    store: str, info: RunInfo, samples: list[Sample], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere.db").write_bytes((tmp_path / "mlflow.db").read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "by name")
    by_name = MLflowSink(view=False)
    send(by_name, info, samples)
    assert by_name.destination()["tracking_uri"] == f"sqlite:///{tmp_path / 'elsewhere.db'}"
    assert client_of(by_name).get_experiment(by_name.destination()["experiment_id"]).name == "by name"

    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", client_of(by_name).create_experiment("by id"))
    by_id = MLflowSink(view=False)
    send(by_id, info, samples)
    assert client_of(by_id).get_experiment(by_id.destination()["experiment_id"]).name == "by id"

    run = client_of(by_id).create_run(by_name.destination()["experiment_id"])
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    by_run = MLflowSink(view=False)
    send(by_run, info, samples)
    assert by_run.destination()["run_id"] == run.info.run_id
    assert by_run.destination()["experiment_id"] == by_name.destination()["experiment_id"]
    assert the_run(by_run).info.status == "RUNNING"


def test_dead_server_fails_soon_in_one_line(info: RunInfo) -> None:
    address = f"http://user:secret@127.0.0.1:{free_port()}"
    sink = MLflowSink(address)
    sink.note_script_run()
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=r"^no MLflow server answers at http://127\.0\.0\.1:\d+: .*$") as caught:
        sink.start(info)
    assert time.monotonic() - began < 10
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in json.dumps(sink.destination())


def test_wrong_uri_is_one_line(info: RunInfo) -> None:
    sink = MLflowSink("nonsense://somewhere")
    sink.note_script_run()
    with pytest.raises(RuntimeError, match="nonsense://somewhere") as caught:
        sink.start(info)
    assert "\n" not in str(caught.value)


def test_read_only_folder_is_one_line(info: RunInfo, tmp_path: Path) -> None:
    sink = MLflowSink("sqlite:////proc/mlflow.db")  # read-only also for root, who may write everywhere else
    sink.note_script_run()
    for _ in range(2):
        with pytest.raises(ConnectionError, match=r"/proc/mlflow\.db") as caught:
            sink.start(info)
        assert "\n" not in str(caught.value)


def test_folder_that_is_none_is_one_line(info: RunInfo, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sink = MLflowSink(f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}")
    sink.note_script_run()
    for _ in range(2):
        with pytest.raises(ConnectionError, match=r"file/mlflow\.db") as caught:
            sink.start(info)
        assert "\n" not in str(caught.value)


def test_artifacts_that_cannot_be_written_leave_metrics_and_status(
    store: str, info: RunInfo, samples: list[Sample], tmp_path: Path
) -> None:
    # The working directory's ./mlruns, MLflow's folder for artifacts, is a file here.
    (tmp_path / "mlruns").write_text("")
    sink = MLflowSink(store)
    with pytest.raises(RuntimeError, match=f"^MLflow at {store}: ") as caught:
        send(sink, info, samples)
    assert "\n" not in str(caught.value)
    assert_complete(sink, info, samples)
    assert the_run(sink).info.status == "FINISHED"
    (tmp_path / "mlruns").unlink()
    sink.finish(info, make_summary(info, samples), "finished")
    assert "mlflow.loggedArtifacts" in the_run(sink).data.tags


def test_failures_are_made_good_without_doubling(
    store: str, info: RunInfo, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    import smdtrack.sinks.mlflow as module

    monkeypatch.setattr(module, "METRICS_PER_CALL", 50)
    sink = MLflowSink(store)
    sink.note_script_run()
    sink.start(info)
    real, calls = sink._client.log_batch, 0

    def unreliable(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise OSError("connection reset\nby peer")
        real(*args, **kwargs)
        if calls % 7 == 0:
            raise OSError("the answer was lost")

    monkeypatch.setattr(sink._client, "log_batch", unreliable)
    points = make_points(info, samples)
    errors: list[str] = []
    while (error := one_line_error(lambda: sink.write(points))) is not None:
        errors.append(error)
    assert len(errors) > 3
    assert all("\n" not in error for error in errors)
    assert_complete(sink, info, samples)


def test_start_is_repeated_without_a_second_run(store: str, info: RunInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    sink = MLflowSink(store)
    sink.note_script_run()
    sink._connect()
    real = sink._client.create_run

    def answer_lost(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        raise OSError("the answer was lost")

    monkeypatch.setattr(sink._client, "create_run", answer_lost)
    with pytest.raises(RuntimeError, match="the answer was lost"):
        sink.start(info)
    sink.start(info)
    sink.start(info)
    runs = MlflowClient(tracking_uri=store).search_runs([sink.destination()["experiment_id"]])
    assert [run.info.run_id for run in runs] == [sink.destination()["run_id"]]


def test_more_than_a_call_takes_and_what_is_not_finite(store: str, info: RunInfo) -> None:
    sink = MLflowSink(store, view=False)
    sink.note_script_run()
    sink.start(info)
    points = [Point("angle/a", float(step), step, 1e9 + step) for step in range(1, 2501)]
    broken = [Point("angle/a", value, 3000 + i, 1e9) for i, value in enumerate((math.nan, math.inf, -math.inf))]
    sink.write([*points, *broken])
    assert [step for step, _ in history(sink, "angle/a")] == list(range(1, 2501))


def test_summary_is_a_table_once(store: str, info: RunInfo, samples: list[Sample]) -> None:
    import mlflow

    sink = MLflowSink(store)
    send(sink, info, samples)
    sink.finish(info, make_summary(info, samples), "finished")
    run = the_run(sink)
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "smdtrack/summary.json", "type": "table"}]
    path = mlflow.artifacts.download_artifacts(
        run_id=run.info.run_id, artifact_path="smdtrack/summary.json", tracking_uri=store
    )
    table = json.loads(Path(path).read_text())
    assert len(table["data"]) == 3
    assert table["columns"][0] == "key"
    assert table["data"][0][table["columns"].index("pred_ratio")] == make_summary(info, samples).weights[0].pred_ratio


def test_a_view_that_fails_is_a_warning_and_metrics_go_on(
    store: str, info: RunInfo, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:

    sink = MLflowSink(store)
    sink.note_script_run()
    sink._connect()

    def refuse(*_: Any) -> None:
        raise OSError("tags are off\nhere")

    monkeypatch.setattr(sink._client, "set_experiment_tag", refuse)
    with collected_notices(match="the saved MLflow view could not be written.*: tags are off here$"):
        sink.start(info)
    sink.write(make_points(info, samples))
    assert_complete(sink, info, samples)
    assert "viewStateShareKey" not in sink.how_to_open()[-1]


@pytest.mark.parametrize(
    "key",
    [
        "angle/a[0]",
        "angle/(b)",
        "angle/c@d",
        "angle/%",
        "angle/e,f",
        "angle/g=h*",
        "angle//i",
        "/angle/j",
        "angle/../k",
        "angle/l/..",
        "angle/" + "m" * 300,
        "angle/n\no",
        "angle/p/",
    ],
)
def test_refused_keys_are_replaced(key: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    _validate_metric_name(safe_key(key))
    assert safe_key(key) != key


def test_accepted_keys_stay_and_different_keys_stay_different() -> None:
    for key in ("angle/layer1.0.conv1", "smd/theory", "angle_k10/stages.2.blocks.0.conv-pw", "norm/a b:c_d"):
        assert safe_key(key) == key
    assert safe_key("angle/a[0]") != safe_key("angle/a(0)")


def test_refused_keys_arrive(store: str, info: RunInfo) -> None:
    sink = MLflowSink(store, view=False)
    sink.note_script_run()
    sink.start(info)
    sink.write([Point("angle/a[0]", 0.5, 1, 1e9)])
    assert history(sink, safe_key("angle/a[0]")) == [(1, 0.5)]
