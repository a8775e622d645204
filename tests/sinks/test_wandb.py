"""The W&B sink with the real client, offline; runs are read back by W&B's own reader."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smdtrack.record.run import RunInfo, Sample
from smdtrack.sinks.wandb import WandbSink
from tests.sinks.synthetic import make_info, make_points, make_samples, make_summary

PATIENCE = 60


@pytest.fixture
def info(tmp_path: Path) -> RunInfo:
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


def test_offline_run_of_our_own(
    info: RunInfo, samples: list[Sample], wandb: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sink = WandbSink()
    sink.note_script_run()

    def work() -> None:
        sink.start(info)
        assert wandb.run is None
        sink.write(make_points(info, samples))
        sink.finish(info, make_summary(info, samples), "finished")

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
    sink.start(info)
    sink.finish(info, None, "failed")
    read = records(Path(sink.destination()["folder"]))
    assert next(record["run"] for record in read if record["type"] == "run")["project"] == "from the environment"
    assert next(record["exit"] for record in read if record["type"] == "exit")["exit_code"] == 1


@pytest.mark.parametrize("late", [False, True])
def test_attaches_to_the_scripts_run(
    late: bool, info: RunInfo, samples: list[Sample], wandb: Any, tmp_path: Path
) -> None:
    sink = WandbSink(attach_only=True)
    run = None if late else scripts_run(wandb, tmp_path)
    sink.note_script_run()
    on_another_thread(lambda: sink.start(info))
    points = make_points(info, samples)
    half = next(index for index, point in enumerate(points) if point.step == samples[10].step)
    on_another_thread(lambda: sink.write(points[:half]))
    run = run or scripts_run(wandb, tmp_path)
    run.log({"loss": 1.0})
    on_another_thread(lambda: sink.write(points[half:]))
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


@pytest.mark.parametrize("counting", ["none", "epoch", "twice an epoch", "global", "uncommitted"])
def test_the_script_loses_no_row(
    counting: str, info: RunInfo, samples: list[Sample], wandb: Any, tmp_path: Path
) -> None:
    """Whatever way the script counts its steps, all of its rows and all of ours arrive."""
    run = scripts_run(wandb, tmp_path)
    sink = WandbSink(attach_only=True)
    sink.note_script_run()
    sink.start(info)
    points = make_points(info, samples)
    steps = [sample.step for sample in samples]
    logged = []
    for epoch in range(10):
        now = steps[2 * epoch : 2 * epoch + 2]
        on_another_thread(lambda now=now: sink.write([p for p in points if p.step in now]))
        value = float(epoch)
        logged.append(value)
        if counting == "none":
            wandb.log({"loss": value})
        elif counting == "epoch":
            wandb.log({"loss": value}, step=epoch)
        elif counting == "twice an epoch":
            run.log({"loss": value}, step=epoch)
            run.log({"accuracy": value}, step=epoch)
        elif counting == "global":
            run.log({"loss": value}, step=epoch * 100)
        else:
            run.log({"loss": value}, commit=False)
            run.log({"accuracy": value})
    sink.finish(info, make_summary(info, samples), "finished")
    folder = folder_of(run)
    run.finish()
    read = records(folder)
    assert rows(read, "loss") == logged
    assert rows(read, "accuracy") == (logged if counting in ("twice an epoch", "uncommitted") else [])
    assert_complete(read, info, samples)


def test_failures_are_made_good_without_doubling(
    info: RunInfo, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = WandbSink()
    sink.note_script_run()
    sink.start(info)
    real, calls = sink._run.log, 0

    def unreliable(row: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        if calls % 5 == 0:
            raise OSError("no room\nleft")
        real(row)

    monkeypatch.setattr(sink._run, "log", unreliable)
    for _ in range(4):
        with pytest.raises(RuntimeError, match=r"^W&B: no room$"):
            sink.write(make_points(info, samples))
    sink.write(make_points(info, samples))
    sink.finish(info, None, "finished")
    assert_complete(records(Path(sink.destination()["folder"])), info, samples)


def test_a_run_that_the_script_ended_is_one_line(
    info: RunInfo, samples: list[Sample], wandb: Any, tmp_path: Path
) -> None:
    run = scripts_run(wandb, tmp_path)
    sink = WandbSink(attach_only=True)
    sink.note_script_run()
    sink.start(info)
    run.log({"loss": 1.0})
    run.finish()
    with pytest.raises(RuntimeError, match="the script has ended its W&B run before"):
        sink.write(make_points(info, samples))


def test_waiting_points_are_bounded(info: RunInfo, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    import smdtrack.sinks.wandb as module

    monkeypatch.setattr(module, "MAX_HELD_POINTS", 100)
    sink = WandbSink(attach_only=True)
    sink.note_script_run()
    sink.start(info)
    sink.write(make_points(info, samples))
    assert sum(map(len, sink._rows.values())) <= 100
    assert max(sink._rows) == samples[-1].step
