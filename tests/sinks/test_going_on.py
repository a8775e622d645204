"""A run that goes on with its record goes on in its trackers: the same run there, and no step twice."""

import dataclasses
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smdtrack.record.reader import read_sinks
from smdtrack.record.run import Earlier, RunInfo, Sample, points
from smdtrack.record.store import LocalStore
from smdtrack.sinks.memory import MemorySink
from smdtrack.sinks.mlflow import MLflowSink
from smdtrack.sinks.protocol import Sink
from smdtrack.sinks.wandb import WandbSink
from smdtrack.sinks.writer import Writer
from tests.said import collected_notices
from tests.sinks.synthetic import make_info, make_samples
from tests.sinks.test_wandb import records

LAYER = "layer1.0.conv1"


@pytest.fixture
def info(tmp_path: Path) -> RunInfo:
    (tmp_path / "record").mkdir()
    return make_info(tmp_path / "record", 3)


@pytest.fixture
def samples(info: RunInfo) -> list[Sample]:
    return list(make_samples(info, 30))


def written(info: RunInfo, sink: Sink, samples: list[Sample], status: str = "finished") -> None:
    writer = Writer(info, [sink], lambda sample: sample)
    for sample in samples:
        writer.submit(sample)
    writer.close(status)


def going_on(info: RunInfo, last: Sample, **params: Any) -> RunInfo:
    earlier = Earlier(last.step, read_sinks(info.folder))
    return dataclasses.replace(info, params={**info.params, **params}, steps_before=last.step, earlier=earlier)


def killed_before_the_tracker_got_the_last(info: RunInfo, sink: MLflowSink, samples: list[Sample]) -> None:
    """What kill -9 leaves: the record has all samples, the tracker those but the last two and a half."""
    sink.note_script_run()
    store = LocalStore(info)
    sink.start(info)
    store.note_sink(sink.name, sink.destination())
    store.append(samples)
    for sample in samples[:-2]:
        of_it = list(points(sample, info.weights))
        sink.write(of_it[: len(of_it) // 2] if sample is samples[-3] else of_it)


def histories(sink: MLflowSink) -> dict[str, list[tuple[int, float]]]:
    client = sink._client
    keys = client.get_run(sink.destination()["run_id"]).data.metrics
    return {
        key: [(point.step, point.value) for point in client.get_metric_history(sink.destination()["run_id"], key)]
        for key in keys
    }


def assert_no_step_twice(sink: MLflowSink) -> None:
    for key, history in histories(sink).items():
        twice = [step for step, count in Counter(step for step, _ in history).items() if count > 1]
        assert not twice, f"{key} has steps {twice} twice"


def test_a_resumed_run_continues_its_mlflow_run_and_sends_what_was_missing(
    store: str, info: RunInfo, samples: list[Sample]
) -> None:
    first = MLflowSink()
    killed_before_the_tracker_got_the_last(info, first, samples[:20])
    second = MLflowSink()
    written(going_on(info, samples[19], command="with --resume", new=1), second, samples[20:])
    assert (
        second.destination()["run_id"] == first.destination()["run_id"] == read_sinks(info.folder)["mlflow"]["run_id"]
    )
    found = histories(second)
    assert_no_step_twice(second)
    for weight, layer in enumerate(tracked.key for tracked in info.weights):
        for family in ("angle", "angle_pred", "norm", "effective_grad"):
            expected = [(sample.step, sample.values[family][weight]) for sample in samples]
            assert found[f"{family}/{layer}"] == expected
    run = second._client.get_run(second.destination()["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["lr"] == "0.1"
    assert run.data.params["new"] == "1"
    assert len(second._client.search_runs([run.info.experiment_id])) == 1


def test_from_another_folder_a_resumed_run_still_uses_the_store_in_its_record(
    store: str, info: RunInfo, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = MLflowSink(), MLflowSink()
    written(info, first, samples[:20], "failed")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    written(going_on(info, samples[19]), second, samples[20:])
    assert second.destination()["run_id"] == first.destination()["run_id"]
    assert_no_step_twice(second)
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("how", ["deleted", "elsewhere"])
def test_if_the_mlflow_run_was_deleted_a_new_one_gets_the_whole_curve_and_that_is_reported(
    how: str, store: str, info: RunInfo, samples: list[Sample], tmp_path: Path
) -> None:
    first = MLflowSink()
    written(info, first, samples[:20], "failed")
    if how == "deleted":
        first._client.delete_run(first.destination()["run_id"])
    second = MLflowSink() if how == "deleted" else MLflowSink(tracking_uri=f"sqlite:///{tmp_path / 'other.db'}")
    with collected_notices() as caught:
        written(going_on(info, samples[19]), second, samples[20:])
    assert sum("is sent to a new MLflow run" in message for message in caught) == 1
    assert second.destination()["run_id"] != first.destination()["run_id"]
    assert [step for step, _ in histories(second)[f"angle/{LAYER}"]] == [sample.step for sample in samples]
    assert_no_step_twice(second)


def test_a_script_that_goes_on_in_its_own_mlflow_run_gets_no_step_twice(
    store: str, info: RunInfo, samples: list[Sample]
) -> None:
    import mlflow

    mlflow.set_tracking_uri(store)
    try:
        with mlflow.start_run() as run:
            written(info, MLflowSink(), samples[:20], "failed")
        # The checkpoint lay before the last step; the script's second part makes a record of its own.
        folder = info.folder.parent / "second"
        folder.mkdir()
        other = dataclasses.replace(info, folder=folder, steps_before=samples[14].step)
        sink = MLflowSink()
        with mlflow.start_run(run_id=run.info.run_id):
            written(other, sink, samples[15:])
    finally:
        mlflow.set_tracking_uri(None)
    assert sink.destination()["run_id"] == run.info.run_id
    assert [step for step, _ in histories(sink)[f"angle/{LAYER}"]] == [sample.step for sample in samples]
    assert_no_step_twice(sink)


def test_a_sink_without_knowledge_of_the_earlier_part_gets_the_new_samples(
    info: RunInfo, samples: list[Sample]
) -> None:
    written(info, MemorySink(), samples[:20])
    sink = MemorySink()
    assert sink.complete_up_to() is None
    written(going_on(info, samples[19]), sink, samples[20:])
    assert {point.step for point in sink.points} == {sample.step for sample in samples[20:]}


def test_many_waiting_points_are_sent_in_calls_that_hold_whole_steps(
    info: RunInfo, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smdtrack.sinks.sink_delivery.POINTS_PER_WRITE", 7)
    calls: list[set[int]] = []

    class Listening(MemorySink):
        """Notes the steps of each call."""

        def write(self, points: Any) -> None:
            calls.append({point.step for point in points})
            super().write(points)

    sink = Listening()
    written(info, sink, samples)
    assert len(calls) >= len(samples)
    *measured, lines_at_the_end = calls
    assert sum(len(call) for call in measured) == len(set().union(*measured)), "a step was torn"
    assert lines_at_the_end == {samples[-1].step}
    assert [step for step, _ in sink.series(f"angle/{LAYER}")] == [sample.step for sample in samples]


def test_the_wandb_run_goes_on_in_a_second_folder_of_the_same_run(
    info: RunInfo, samples: list[Sample], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = WandbSink(), WandbSink()
    written(info, first, samples[:20], "failed")
    time.sleep(1.1)  # W&B names folders by the second
    written(going_on(info, samples[19]), second, samples[20:])
    folders = [Path(sink.destination()["folder"]) for sink in (first, second)]
    assert folders[0] != folders[1]
    assert second.how_to_open() == (f"wandb sync {folders[0]} {folders[1]}",)
    assert capfd.readouterr().out == ""
    read = [records(folder) for folder in folders]
    runs = [next(record["run"] for record in part if record["type"] == "run") for part in read]
    assert runs[0]["run_id"] == runs[1]["run_id"]
    assert runs[0]["project"] == runs[1]["project"]
    assert runs[1]["resume"] is True
    items = [record["history"]["item"] for part in read for record in part if record["type"] == "history"]
    angles = [(item["smd/step"], item[f"angle/{LAYER}"]) for item in items if f"angle/{LAYER}" in item]
    weight = [tracked.key for tracked in info.weights].index(LAYER)
    assert angles == [(sample.step, pytest.approx(sample.values["angle"][weight])) for sample in samples]
    seen = Counter((item["smd/step"], key) for item in items if "smd/step" in item for key in item if "/" in key)
    assert {count for (_, key), count in seen.items() if key != "smd/step"} == {1}


def test_a_script_that_continues_its_own_wandb_run_gets_no_step_twice(info: RunInfo, samples: list[Sample]) -> None:
    logged: list[dict[str, Any]] = []
    # Offline, W&B knows nothing of a run's earlier part: this stands for a run that was resumed online.
    run = SimpleNamespace(
        resumed=True,
        offline=False,
        summary={"smd/step": samples[19].step},
        config=SimpleNamespace(update=lambda *a, **k: None),
        step=7,
        log=lambda row, **options: logged.append(row),
        define_metric=lambda *a, **k: None,
    )
    info = dataclasses.replace(info, steps_before=samples[14].step)
    LocalStore(info).append(samples[15:])
    sink = WandbSink(attach_only=True)
    sink._run = run
    sink.start(info)
    sink.finish(info, None, "finished")
    assert [row["smd/step"] for row in logged] == [sample.step for sample in samples[20:]]
