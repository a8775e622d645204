"""The W&B sink with the real client, offline; runs are read back by W&B's own reader."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smdtrack.record import LocalStore
from smdtrack.record.run import RunInfo, Sample
from smdtrack.sinks import make_sink
from smdtrack.sinks.record_delivery import deliver_record
from smdtrack.sinks.wandb import WandbSink
from tests.said import collected_notices
from tests.sinks.synthetic import make_info, make_points, make_samples, make_summary

PATIENCE = 60


@pytest.fixture
def info(tmp_path: Path) -> RunInfo:
    (tmp_path / "record").mkdir()
    return make_info(tmp_path / "record", 3)


@pytest.fixture
def samples(info: RunInfo) -> list[Sample]:
    return list(make_samples(info, 20))


@pytest.fixture
def wandb(tmp_path: Path) -> Iterator[Any]:
    """The script's W&B; what it leaves open is closed."""
    import wandb

    yield wandb
    if wandb.run is not None:
        wandb.finish()


def scripts_run(wandb: Any, tmp_path: Path) -> Any:
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
    return wandb.init(project="theirs", dir=str(tmp_path), mode="offline", settings=settings)


def on_another_thread(work: Callable[[], None]) -> None:
    """Runs it as the writer does."""
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


def records(folder: Path) -> list[dict[str, Any]]:
    """The records of an offline run; W&B may still be writing when finish() returns."""
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(folder)]
    deadline = time.monotonic() + PATIENCE
    while True:
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        read = [json.loads(line) for line in text.splitlines()]
        if any(record["type"] == "exit" for record in read):
            return read
        assert time.monotonic() < deadline, "the run's file was never completed"
        time.sleep(0.3)


def rows(read: list[dict[str, Any]], key: str) -> list[Any]:
    """The values of a key, row by row."""
    items = [record["history"]["item"] for record in read if record["type"] == "history"]
    return [item[key] for item in items if key in item]


def folder_of(run: Any) -> Path:
    return Path(run.dir).parent


def assert_complete(read: list[dict[str, Any]], info: RunInfo, samples: list[Sample]) -> None:
    points = make_points(info, samples)
    items = [record["history"]["item"] for record in read if record["type"] == "history"]
    for key in {point.key for point in points}:
        got = [(item["smd/step"], item[key]) for item in items if key in item]
        assert got == [(point.step, pytest.approx(point.value)) for point in points if point.key == key]


def record(info: RunInfo, samples: list[Sample]) -> None:
    """Writes the samples to the local record, from which the sink reads them."""
    store = LocalStore(info)
    store.append(samples)
    store.close("finished", None)


def test_offline_run_of_our_own(
    info: RunInfo, samples: list[Sample], wandb: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sink = WandbSink()
    sink.note_script_run()
    record(info, samples)

    def work() -> None:
        sink.start(info)
        sink.write(make_points(info, samples))
        assert not list(tmp_path.glob("wandb/*run*")), "nothing stands in the way of the script's wandb.init"
        sink.finish(info, make_summary(info, samples), "finished")
        assert wandb.run is None

    on_another_thread(work)
    where = sink.destination()
    folder = Path(where["folder"])
    assert folder.is_relative_to(tmp_path)
    assert sink.how_to_open() == (f"wandb sync {folder}",)
    assert capfd.readouterr() == ("", "")

    read = records(folder)
    assert_complete(read, info, samples)
    assert len(rows(read, "smd/step")) == len(samples)
    metrics = {
        record["metric"].get("name") or record["metric"]["glob_name"]: record["metric"]
        for record in read
        if record["type"] == "metric"
    }
    hidden = {name for name, metric in metrics.items() if metric["options"].get("hidden")}
    assert hidden == {"smd/step", "smd/theory", "angle_pred/*", "angle_eq/*", "norm_eq/*"}
    assert {name for name, metric in metrics.items() if metric.get("step_metric") == "smd/step"} >= {
        "angle/*",
        "angle_pred/*",
        "angle_eq/*",
        "norm/*",
        "norm_eq/*",
        "effective_grad/*",
        "smd/*",
    }
    run = next(record["run"] for record in read if record["type"] == "run")
    assert (run["project"], run["display_name"]) == ("smdtrack", info.name)
    assert next(record["exit"] for record in read if record["type"] == "exit").get("exit_code", 0) == 0
    table_file = next(folder.glob("files/media/table/smdtrack/*.table.json"))
    table = json.loads(table_file.read_text())
    assert [row[0] for row in table["data"]] == [weight.key for weight in info.weights]
    summaries = [record["summary"].get("update", {}) for record in read if record["type"] == "summary"]
    assert {summary["smdtrack/verdict"] for summary in summaries if "smdtrack/verdict" in summary} == {
        make_summary(info, samples).verdict
    }


def test_failed_status_and_project(info: RunInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "from the environment")
    sink = WandbSink()
    sink.note_script_run()
    record(info, [])
    sink.start(info)
    sink.finish(info, None, "failed")
    read = records(Path(sink.destination()["folder"]))
    assert next(record["run"] for record in read if record["type"] == "run")["project"] == "from the environment"
    assert next(record["exit"] for record in read if record["type"] == "exit")["exit_code"] == 1


@pytest.mark.parametrize("late", [False, True])
def test_what_the_script_logs_after_the_tracking_comes_before_our_rows(
    late: bool, info: RunInfo, samples: list[Sample], wandb: Any, tmp_path: Path
) -> None:
    sink = WandbSink(attach_only=True)
    run = None if late else scripts_run(wandb, tmp_path)
    sink.note_script_run()
    record(info, samples)
    on_another_thread(lambda: sink.start(info))
    run = run or scripts_run(wandb, tmp_path)
    run.log({"loss": 1.0})
    on_another_thread(lambda: sink.write(make_points(info, samples)))
    run.log({"loss": 0.5})
    on_another_thread(lambda: sink.finish(info, make_summary(info, samples), "finished"))
    assert wandb.run is run
    run.log({"loss": 0.25})
    folder = folder_of(run)
    run.finish()
    read = records(folder)
    assert_complete(read, info, samples)
    assert rows(read, "loss") == [1.0, 0.5, 0.25]
    assert sink.destination()["run_id"] == run.id
    config = [record["run"]["config"] for record in read if record["type"] == "run"]
    config += [record["config"] for record in read if record["type"] == "config"]
    assert "smdtrack" in json.dumps(config)


def test_stays_dormant_without_a_run(info: RunInfo, samples: list[Sample], wandb: Any, tmp_path: Path) -> None:
    sink = WandbSink(attach_only=True)
    sink.note_script_run()
    sink.start(info)
    sink.write(make_points(info, samples))
    sink.finish(info, make_summary(info, samples), "finished")
    assert sink.destination() == {}
    assert sink.how_to_open() == ()
    assert not list(tmp_path.glob("wandb/*run*"))


def log_as(style: str, wandb: Any, run: Any, epoch: int) -> None:
    """Logs an epoch as scripts do."""
    value = float(epoch)
    if style == "no step":
        wandb.log({"loss": value})
    elif style == "step":
        wandb.log({"loss": value}, step=epoch)
    elif style == "two calls per step":
        run.log({"loss": value}, step=epoch)
        run.log({"accuracy": value}, step=epoch)
    elif style == "large steps":
        run.log({"loss": value}, step=epoch * 100)
    else:
        run.log({"loss": value}, commit=False)
        run.log({"accuracy": value})


STYLES = ("no step", "step", "two calls per step", "large steps", "commit=False")


@pytest.mark.parametrize("end", ["run.finish", "wandb.finish", "with"])
@pytest.mark.parametrize("style", STYLES)
def test_the_script_s_rows_are_those_without_us_and_ours_are_complete(
    style: str, end: str, info: RunInfo, samples: list[Sample], wandb: Any, tmp_path: Path
) -> None:
    """The script ends its run before the tracking ends."""
    if end != "run.finish" and style != "step":
        pytest.skip("each way to end a run is tried with one style")
    read = []
    for tracked in (False, True):
        run = scripts_run(wandb, tmp_path)
        sink = WandbSink(attach_only=True)
        flushed: list[float] = []
        sink.use_flush(lambda timeout, flushed=flushed: not flushed.append(timeout))  # type: ignore[misc]
        if tracked:
            sink.note_script_run()
            on_another_thread(lambda sink=sink: sink.start(info))
            record(info, samples)
        for epoch in range(6):
            log_as(style, wandb, run, epoch)
        folder = folder_of(run)
        if end == "with":
            with run:
                pass
        else:
            (run if end == "run.finish" else wandb).finish()
        if tracked:
            assert len(flushed) == 1
            on_another_thread(lambda sink=sink: sink.finish(info, make_summary(info, samples), "finished"))
        read.append(records(folder))
        time.sleep(1.1)  # W&B names folders by the second
    theirs = [
        [
            (item.get("_step"), {key: value for key, value in item.items() if not key.startswith("_")})
            for item in (record["history"]["item"] for record in part if record["type"] == "history")
            if "smd/step" not in item and "smdtrack/summary" not in item
        ]
        for part in read
    ]
    assert theirs[1][: len(theirs[0])] == theirs[0]
    assert [row for row in theirs[1][len(theirs[0]) :] if set(row[1]) & {"loss", "accuracy"}] == []
    assert_complete(read[1], info, samples)
    assert "smdtrack/verdict" in json.dumps([entry for entry in read[1] if entry["type"] == "summary"])


def test_samples_after_the_script_ended_its_run_are_counted_in_a_notice(
    info: RunInfo, samples: list[Sample], wandb: Any, tmp_path: Path
) -> None:
    run = scripts_run(wandb, tmp_path)
    sink = WandbSink(attach_only=True)
    sink.note_script_run()
    sink.start(info)
    record(info, samples[:15])
    run.finish()
    record(info, samples[15:])
    with collected_notices() as notices:
        sink.finish(info, make_summary(info, samples), "finished")
    assert notices == ["the script ended its W&B run before 5 samples were taken; the local record has them"]


def test_a_fault_in_our_part_does_not_reach_the_script_s_finish(info: RunInfo, wandb: Any, tmp_path: Path) -> None:
    run = scripts_run(wandb, tmp_path)
    sink = WandbSink(attach_only=True)
    sink.note_script_run()
    sink.start(info)  # there is no record to read
    folder = folder_of(run)
    with collected_notices(match="W&B did not get all rows: .*; the local record has them"):
        run.finish()
    assert next(record["exit"] for record in records(folder) if record["type"] == "exit").get("exit_code", 0) == 0


def test_a_failure_is_one_line_and_a_repetition_logs_the_missing_rows(
    info: RunInfo, samples: list[Sample], wandb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wandb.sdk.wandb_run import Run

    sink = WandbSink()
    sink.note_script_run()
    record(info, samples)
    sink.start(info)
    real, calls = Run.log, 0

    def unreliable(self: Any, row: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        if calls % 5 == 0:
            raise OSError("no room\nleft")
        real(self, row)

    monkeypatch.setattr(Run, "log", unreliable)
    summary = make_summary(info, samples)
    for _ in range(5):
        with pytest.raises(RuntimeError, match=r"^W&B: no room left$"):
            sink.finish(info, summary, "finished")
    monkeypatch.undo()
    sink.finish(info, summary, "finished")
    assert_complete(records(Path(sink.destination()["folder"])), info, samples)


def test_a_script_that_does_not_end_its_run_gets_the_rows_when_its_process_ends(
    info: RunInfo, samples: list[Sample], tmp_path: Path
) -> None:
    script = """
import wandb
from pathlib import Path
from smdtrack.sinks.wandb import WandbSink
from tests.sinks.synthetic import make_info, make_samples, make_summary
from tests.sinks.test_wandb import record, scripts_run
run = scripts_run(wandb, Path.cwd())
info = make_info(Path("record").absolute(), 3)
samples = list(make_samples(info, 20))
sink = WandbSink(attach_only=True)
sink.note_script_run()
record(info, samples)
sink.start(info)
sink.finish(info, make_summary(info, samples), "finished")
run.log({"loss": 1.0}, step=3)
print(Path(run.dir).parent)
"""
    # Else the script would share the W&B service of this process, which ends the run's file only when it ends itself.
    own_service = {name: value for name, value in os.environ.items() if "WANDB_SERVICE" not in name}
    environment = own_service | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    read = records(Path(done.stdout.strip()))
    assert_complete(read, info, samples)
    assert rows(read, "loss") == [1.0]


def test_the_offline_run_of_a_killed_training_is_written_afterwards(
    info: RunInfo, samples: list[Sample], tmp_path: Path
) -> None:
    store = LocalStore(info)
    sink = WandbSink()
    sink.note_script_run()
    store.note_sink(sink.name, sink.destination())
    store.append(samples)
    store.close("killed", None)
    (first,) = deliver_record(info.folder, make_sink)
    (second,) = deliver_record(info.folder, make_sink)
    assert (first.problem, second.problem, second.sent) == (None, None, 0)
    (command,) = first.how_to_open
    read = records(Path(command.removeprefix("wandb sync ")))
    assert_complete(read, info, samples)
    assert next(record["exit"] for record in read if record["type"] == "exit")["exit_code"] == 255
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


def test_rows_for_the_script_s_own_run_cannot_be_sent_afterwards(info: RunInfo, samples: list[Sample]) -> None:
    record(info, samples)
    store = LocalStore(info)
    store.note_sink("wandb", {"run_id": "abc", "project": "theirs"})
    store.close("finished", None)
    (result,) = deliver_record(info.folder, make_sink)
    assert result.problem == "the rows for the script's own W&B run abc can only be sent while the script runs"
