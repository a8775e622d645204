"""`deliver_record` from stored records to real MLflow stores and a real server: everything, once, in order."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from smdtrack import SmdtrackError
from smdtrack.record import LocalStore, read_run, summarize
from smdtrack.record.delivery_lock import delivery_lock
from smdtrack.record.process import process_identity
from smdtrack.record.run import Point, RunInfo, Sample, points
from smdtrack.sinks import check_sink_names, make_sink, sink_names
from smdtrack.sinks.memory import MemorySink
from smdtrack.sinks.mlflow import MLflowSink
from smdtrack.sinks.record_delivery import Delivered, deliver_record
from smdtrack.sinks.sink_delivery import points_to_send
from smdtrack.sinks.thinning import ReferenceThinner
from tests.said import collected_notices
from tests.sinks.synthetic import make_info, make_samples


@pytest.fixture
def info(tmp_path: Path) -> RunInfo:
    (tmp_path / "record").mkdir()
    return make_info(tmp_path / "record", 3)


@pytest.fixture
def samples(info: RunInfo) -> list[Sample]:
    return list(make_samples(info, 40))


def stored(info: RunInfo, samples: Sequence[Sample], sink: MLflowSink | None = None, status: str = "finished") -> None:
    """Writes a record that names the sink's destination, as a training writes it whose tracker was never reached."""
    store = LocalStore(info)
    if sink is not None:
        sink.note_script_run()
        store.note_sink(sink.name, sink.destination())
    store.append(samples)
    summary = summarize(read_run(info.folder))
    store.close(status, summary.to_json() if summary is not None else None)


def killed(info: RunInfo, samples: Sequence[Sample], sink: MLflowSink, sent: int) -> None:
    """Leaves a record as kill -9 does: it is open, and the tracker's run is open and lacks the last samples."""
    store = LocalStore(info)
    sink.note_script_run()
    sink.start(info)
    store.note_sink(sink.name, sink.destination())
    store.append(samples)
    thinner = ReferenceThinner()
    sink.write([point for sample in samples[:sent] for point in thinner.thin(points(sample, info.weights))])
    half = list(thinner.thin(points(samples[sent], info.weights)))
    sink.write(half[: len(half) // 2])
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    head = json.loads((info.folder / "run.json").read_text())
    head["process"]["pid"] = ended.pid
    (info.folder / "run.json").write_text(json.dumps(head))


def delivered(info: RunInfo, **options: Any) -> Delivered:
    (one,) = deliver_record(info.folder, make_sink, **options)
    return one


def client_and_run(info: RunInfo, uri: str) -> tuple[Any, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    run_id = json.loads((info.folder / "run.json").read_text())["sinks"]["mlflow"]["run_id"]
    return client, client.get_run(run_id)


def assert_equals_record(info: RunInfo, samples: Sequence[Sample], uri: str, status: str) -> None:
    client, run = client_and_run(info, uri)
    expected: dict[str, list[tuple[int, float, int]]] = {}
    for point in points_to_send(samples, info):
        expected.setdefault(point.key, []).append((point.step, point.value, int(point.time * 1000)))
    assert set(run.data.metrics) == set(expected)
    for key, values in expected.items():
        history = [
            (metric.step, metric.value, metric.timestamp) for metric in client.get_metric_history(run.info.run_id, key)
        ]
        assert history == values, key
    assert run.info.status == status
    assert run.data.params["lr"] == "0.1"
    assert run.data.tags["smdtrack.verdict"]
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "smdtrack/summary.json", "type": "table"}]
    assert "mlflow.sharedViewState.smdtrack-v1" in client.get_experiment(run.info.experiment_id).tags
    assert len(client.search_runs([run.info.experiment_id], f"tags.`smdtrack.id` = '{info.id}'")) == 1


@pytest.mark.parametrize(("status", "mlflow_status"), [("finished", "FINISHED"), ("failed", "FAILED")])
def test_a_record_whose_tracker_was_never_reached(
    status: str, mlflow_status: str, store: str, info: RunInfo, samples: list[Sample]
) -> None:
    stored(info, samples, MLflowSink(store), status)
    first, second = delivered(info), delivered(info)
    assert (first.sent, first.problem) == (len(points_to_send(samples, info)), None)
    assert (second.sent, second.problem) == (0, None)
    assert_equals_record(info, samples, store, mlflow_status)


def test_a_training_that_was_killed(server: str, info: RunInfo, samples: list[Sample]) -> None:
    info = dataclasses.replace(info, id="killed-on-a-server")
    killed(info, samples, MLflowSink(server, experiment="killed"), 30)
    assert client_and_run(info, server)[1].info.status == "RUNNING"
    assert delivered(info).problem is None
    assert delivered(info).sent == 0
    assert_equals_record(info, samples, server, "KILLED")
    run = read_run(info.folder)
    assert run.status == "killed"
    assert run.summary is not None
    assert run.summary["verdict"] == client_and_run(info, server)[1].data.tags["smdtrack.verdict"]


def test_a_dry_run_counts_and_changes_nothing(store: str, info: RunInfo, samples: list[Sample]) -> None:
    killed(info, samples, MLflowSink(store), 30)
    before = (info.folder / "run.json").read_bytes()
    missing = delivered(info, dry_run=True).sent
    _, run = client_and_run(info, store)
    assert ((info.folder / "run.json").read_bytes(), run.info.status) == (before, "RUNNING")
    assert delivered(info).sent == missing > 0


def test_a_dry_run_makes_no_run(store: str, info: RunInfo, samples: list[Sample]) -> None:
    from mlflow import MlflowClient

    stored(info, samples, MLflowSink(store))
    assert delivered(info, dry_run=True).sent == len(points_to_send(samples, info))
    assert [experiment.name for experiment in MlflowClient(tracking_uri=store).search_experiments()] == ["Default"]


def test_answers_that_are_lost_double_nothing(
    store: str, info: RunInfo, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    stored(info, samples, MLflowSink(store))
    monkeypatch.setattr("smdtrack.sinks.record_delivery.RETRY_PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr("smdtrack.sinks.record_delivery.POINTS_PER_WRITE", 100)
    calls: Counter[str] = Counter()

    def loses_every_third_answer(name: str) -> None:
        original = getattr(MlflowClient, name)

        def call(self: Any, *args: Any, **options: Any) -> Any:
            result = original(self, *args, **options)
            calls[name] += 1
            if calls[name] % 3 == 0:
                raise ConnectionResetError("the answer was lost")
            return result

        monkeypatch.setattr(MlflowClient, name, call)

    for name in ("log_batch", "create_run", "set_tag", "set_terminated"):
        loses_every_third_answer(name)
    assert delivered(info).problem is None
    assert calls["log_batch"] > 6
    monkeypatch.undo()
    assert_equals_record(info, samples, store, "FINISHED")
    client, run = client_and_run(info, store)
    for key in run.data.metrics:
        steps = Counter(metric.step for metric in client.get_metric_history(run.info.run_id, key))
        assert max(steps.values()) == 1


def test_a_tracker_that_is_down_is_one_line_and_a_later_call_sends_everything(
    store: str, info: RunInfo, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.sinks.mlflow_server import free_port

    monkeypatch.setattr("smdtrack.sinks.record_delivery.RETRY_PAUSES", (0.0,))
    address = f"http://127.0.0.1:{free_port()}"
    stored(info, samples, MLflowSink(address))
    result = delivered(info)
    assert result.sent == 0
    assert result.problem is not None
    assert result.problem.startswith(f"no MLflow server answers at {address}: ")
    head = json.loads((info.folder / "run.json").read_text())
    head["sinks"]["mlflow"]["tracking_uri"] = store
    (info.folder / "run.json").write_text(json.dumps(head))
    assert delivered(info).problem is None
    assert_equals_record(info, samples, store, "FINISHED")


@contextmanager
def server_that_answers(status: int) -> Iterator[tuple[str, list[str]]]:
    """Yields the address of an HTTP server that gives every request this answer, and the paths of the requests."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            paths.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = answer

        def log_message(self, *arguments: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_address[1]}", paths
        finally:
            running.shutdown()
            thread.join()


@pytest.mark.parametrize(("status", "attempts"), [(401, 1), (403, 1), (500, 3), (503, 3), (429, 3)])
def test_a_refusal_is_not_repeated_and_an_overload_is(
    status: int, attempts: int, info: RunInfo, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("smdtrack.sinks.record_delivery.RETRY_PAUSES", (0.0, 0.0))
    with server_that_answers(status) as (address, paths):
        stored(info, samples, MLflowSink(address))
        result = delivered(info)
    assert result.problem is not None
    assert result.problem.startswith(f"MLflow at {address}: ")
    assert str(status) in result.problem
    assert "\n" not in result.problem
    assert sum(path.endswith("experiments/search") for path in paths) == attempts
    assert read_run(info.folder).status == "finished"


def test_the_script_s_own_run_gets_the_points_and_keeps_its_status(
    store: str, info: RunInfo, samples: list[Sample]
) -> None:
    import mlflow

    mlflow.set_tracking_uri(store)
    try:
        with mlflow.start_run() as active:
            stored(info, samples, MLflowSink())
        mlflow.set_tracking_uri(None)
        assert delivered(info).problem is None
        assert delivered(info).sent == 0
    finally:
        mlflow.set_tracking_uri(None)
    client, run = client_and_run(info, store)
    assert (run.info.run_id, run.info.status) == (active.info.run_id, "FINISHED")
    expected = [(point.step, point.value) for point in points_to_send(samples, info) if point.key == "angle/conv1"]
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "angle/conv1")] == expected
    assert run.data.params["smd/lr"] == "0.1"
    client.delete_run(run.info.run_id)
    assert delivered(info).problem == f"the MLflow run {run.info.run_id} is not in {store}"


def test_a_training_that_runs_is_left_alone(info: RunInfo, samples: list[Sample]) -> None:
    LocalStore(info).append(samples)
    message = f"its training still runs \\(process {os.getpid()}\\) and delivers by itself; sync it afterwards$"
    with pytest.raises(SmdtrackError, match=message):
        deliver_record(info.folder, make_sink)
    assert read_run(info.folder).status == "running"


def test_on_another_host_a_record_counts_as_running_until_it_was_silent_for_long(
    info: RunInfo, samples: list[Sample]
) -> None:
    LocalStore(info).append(samples)
    head = json.loads((info.folder / "run.json").read_text())
    head["process"] = process_identity() | {"host": "elsewhere"}
    (info.folder / "run.json").write_text(json.dumps(head))
    with pytest.raises(SmdtrackError, match="its training still runs"):
        deliver_record(info.folder, make_sink)
    for path in info.folder.iterdir():
        os.utime(path, (0, 0))
    assert deliver_record(info.folder, make_sink) == []
    assert read_run(info.folder).status == "killed"


def test_two_deliveries_of_one_record_exclude_each_other(store: str, info: RunInfo, samples: list[Sample]) -> None:
    stored(info, samples, MLflowSink(store))
    holder = f"""
import sys
from pathlib import Path
from smdtrack.record.delivery_lock import delivery_lock
with delivery_lock(Path({str(info.folder)!r})):
    print("held", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", holder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(SmdtrackError, match="is being delivered by another process"):
            deliver_record(info.folder, make_sink)
        process.kill()
    assert delivered(info).problem is None, "the system frees the lock of a process that was killed"
    with delivery_lock(info.folder), pytest.raises(SmdtrackError, match="is being delivered by another process"):
        deliver_record(info.folder, make_sink)


class RegisteredSink(MemorySink):
    """A sink of another package, with the methods that `smdtrack sync` needs."""

    name = "registered"
    made: "list[RegisteredSink]" = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.made.append(self)

    def destination(self) -> dict[str, Any]:
        return {"place": "here"}

    def restore(self, destination: Any) -> None:
        self.restored = destination

    def find(self, info: RunInfo) -> bool:
        return False

    def unsent(self, points: Sequence[Point]) -> list[Point]:
        return list(points)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[RegisteredSink]:
    known = EntryPoints(
        [
            EntryPoint("registered", f"{__name__}:RegisteredSink", "smdtrack.sinks"),
            EntryPoint("broken", "no_such_module:Sink", "smdtrack.sinks"),
        ]
    )
    monkeypatch.setattr("smdtrack.sinks.entry_points", lambda **selection: known.select(**selection))
    monkeypatch.setattr(RegisteredSink, "made", [])
    return RegisteredSink.made


def test_a_sink_of_another_package_is_known_by_its_entry_point(
    registered: list[RegisteredSink], info: RunInfo, samples: list[Sample]
) -> None:
    assert sink_names() == ("mlflow", "wandb", "local", "broken", "registered")
    stored(info, samples)
    assert delivered(info, sinks=["registered"]).sent == len(points_to_send(samples, info))
    (sink,) = registered
    assert (sink.status, sink.restored) == ("finished", {})
    assert [step for step, _ in sink.series("angle/conv1")] == [sample.step for sample in samples]
    with pytest.raises(SmdtrackError, match=r"the sink 'broken' of no_such_module:Sink cannot be made: No module"):
        make_sink("broken")
    with pytest.raises(
        SmdtrackError, match=r"no sink 'registred' \(did you mean registered\?\); there are mlflow, wandb"
    ):
        check_sink_names(["registred"])


def test_a_sink_that_cannot_be_restored_is_named(info: RunInfo, samples: list[Sample]) -> None:
    stored(info, samples)
    (result,) = deliver_record(info.folder, lambda name: None, sinks=["memory"])
    assert result == Delivered("memory", problem="it cannot be delivered to after the training")


def test_if_our_own_run_was_deleted_a_new_one_gets_everything(store: str, info: RunInfo, samples: list[Sample]) -> None:
    stored(info, samples, MLflowSink(store))
    assert delivered(info).problem is None
    client, run = client_and_run(info, store)
    client.delete_run(run.info.run_id)
    with collected_notices(match=f"is sent to a new MLflow run: {run.info.run_id} is not in {store}"):
        assert delivered(info).sent == len(points_to_send(samples, info))
    assert_equals_record(info, samples, store, "FINISHED")
