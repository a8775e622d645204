"""A fault in each part of the tracker: one warning, and training that ends in the same bits."""

import errno
import io
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import smdtrack
from smdtrack.notices import notify
from smdtrack.record import read_run
from smdtrack.record import store as store_module
from smdtrack.record.head import Head
from smdtrack.record.store import LocalStore
from smdtrack.sinks import writer as writer_module
from smdtrack.sinks.memory import MemorySink
from smdtrack.theory import Family
from smdtrack.tracking.attach.tracker import Tracker
from smdtrack.tracking.interpret.sample_builder import SampleBuilder
from smdtrack.tracking.measure import backends
from smdtrack.tracking.measure.probe import Probe
from tests.said import collected_notices
from tests.tracking.test_tracker import sgd, tiny, train
from tests.tracking.witness import assert_same_bits, everything, seed_everything

STEPS = 9


class Broken(RuntimeError):
    """What the faults raise."""


def raising(*args: Any, **kwargs: Any) -> Any:
    raise Broken("injected")


def after(calls: int, original: Callable[..., Any]) -> Callable[..., Any]:
    """Works a few times, then raises."""
    count = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return original(*args, **kwargs) if count <= calls else raising()

    return call


class BadSink(MemorySink):
    """Raises in one of its methods."""

    name = "bad"

    def __init__(self, method: str) -> None:
        super().__init__()
        setattr(self, method, raising)


def final(watched: bool, **options: Any) -> tuple[dict[str, Any], list[str], Tracker | None]:
    seed_everything(4)
    model = tiny()
    optimizer = sgd(model)
    tracker = None
    with collected_notices() as caught:
        if watched:
            tracker = smdtrack.watch(model, optimizer, **{"every": 1, "sinks": ["local"], **options})
        train(model, optimizer, STEPS)
        if tracker is not None:
            tracker.finish()
    said = list(caught)
    return everything(model, [optimizer]), said, tracker


def assert_one_warning_and_the_same_bits(said: str, *more: str, **options: Any) -> Tracker:
    without, _, _ = final(watched=False)
    with_fault, messages, tracker = final(watched=True, **options)
    assert_same_bits(without, with_fault)
    assert len(messages) == 1 + len(more), messages
    for part, message in zip((said, *more), messages, strict=True):
        assert part in message
    assert tracker is not None
    return tracker


@pytest.mark.parametrize("part", ["begin", "end"])
@pytest.mark.parametrize("calls", [0, 4])
def test_the_probe(part: str, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Probe, part, after(calls, getattr(Probe, part)))
    tracker = assert_one_warning_and_the_same_bits("injected")
    if calls:
        assert read_run(tracker.folder).steps.tolist() == list(range(1, calls + 1))


def test_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.CpuBackend, "end", raising)
    assert_one_warning_and_the_same_bits("measuring stopped at step 1 (Broken: injected); training goes on")


def test_the_theory_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first calls describe the run when watching begins; those on the writer thread fail.
    monkeypatch.setattr(Family, "line", after(2, Family.line))
    assert_one_warning_and_the_same_bits("injected")


def test_the_decay_pulls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Family, "decay_pulls", raising)
    assert_one_warning_and_the_same_bits("measuring stopped at step 1")


def test_the_assembly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SampleBuilder, "_sample", after(3, SampleBuilder._sample))
    tracker = assert_one_warning_and_the_same_bits("a sample could not be computed")
    assert read_run(tracker.folder).steps.tolist() == [1, 2, 3]


def test_a_queue_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "CAPACITY", 1)
    original = SampleBuilder._sample

    def slow(self: SampleBuilder, measurement: Any) -> Any:
        import time

        time.sleep(0.5)
        return original(self, measurement)

    monkeypatch.setattr(SampleBuilder, "_sample", slow)
    tracker = assert_one_warning_and_the_same_bits("samples were dropped")
    assert 0 < len(read_run(tracker.folder).steps) < STEPS


def test_the_writer_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smdtrack.tracking.attach.recording.Writer", raising)
    assert_one_warning_and_the_same_bits("measuring stopped at step 1")


def test_the_local_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalStore, "append", raising)
    sink = MemorySink()
    tracker = assert_one_warning_and_the_same_bits(
        "cannot be written (injected)", f"{STEPS} samples could not be written to ", sinks=[sink]
    )
    assert len(sink.series("angle/0")) == STEPS
    assert len(read_run(tracker.folder).steps) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_disk_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smdtrack.record.store.next_sample_file", lambda folder: Path("/dev/full"))
    monkeypatch.setattr("smdtrack.record.store.FILE_MODE", "wb")
    sink = MemorySink()
    assert_one_warning_and_the_same_bits(
        "cannot be written ([Errno 28] No space left on device); it is tried again every 10 s, and trackers go on",
        "could not be written to",
        sinks=[sink],
    )
    assert len(sink.series("angle/0")) == STEPS
    assert sink.status == "finished"


def test_a_disk_that_fills_up_before_the_head_of_the_record_is_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0
    original = store_module.write_head

    def write(head: Head) -> None:
        nonlocal count
        count += 1
        if count > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(head)

    monkeypatch.setattr(store_module, "write_head", write)
    sink = MemorySink()
    assert_one_warning_and_the_same_bits("the end of the run could not be written to", sinks=[sink])
    assert len(sink.series("angle/0")) == STEPS


def test_the_queue_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module.Writer, "submit", after(3, writer_module.Writer.submit))
    tracker = assert_one_warning_and_the_same_bits("measuring stopped at step 4 (Broken: injected); training goes on")
    assert read_run(tracker.folder).steps.tolist() == [1, 2, 3]


def test_a_checkpoint_that_cannot_be_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smdtrack.sinks.writer.append_checkpoint", raising)

    def final_with_a_checkpoint(watched: bool) -> tuple[dict[str, Any], list[str]]:
        seed_everything(4)
        model = tiny()
        optimizer = sgd(model)
        with collected_notices() as caught:
            tracker = smdtrack.watch(model, optimizer, every=1, sinks=["local"]) if watched else None
            train(model, optimizer, 3)
            optimizer.state_dict()
            train(model, optimizer, 3)
            if tracker is not None:
                tracker.finish()
                assert read_run(tracker.folder).steps.tolist() == [1, 2, 3, 4, 5, 6]
        return everything(model, [optimizer]), list(caught)

    (without, _), (with_fault, messages) = final_with_a_checkpoint(False), final_with_a_checkpoint(True)
    assert_same_bits(without, with_fault)
    assert sum("injected" in message for message in messages) == 1


@pytest.fixture
def trackers_of_the_test(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TRACKING_URI", "RUN_ID", "EXPERIMENT_NAME", "EXPERIMENT_ID"):
        monkeypatch.delenv(f"MLFLOW_{name}", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("DIR", "CONFIG_DIR", "CACHE_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.mark.usefixtures("trackers_of_the_test")
@pytest.mark.parametrize(
    ("sink", "call"),
    [
        ("mlflow", "mlflow.MlflowClient.create_run"),
        ("mlflow", "mlflow.MlflowClient.log_batch"),
        ("mlflow", "mlflow.MlflowClient.set_terminated"),
        ("wandb", "wandb.init"),
        ("wandb", "wandb.sdk.wandb_run.Run.log"),
        ("wandb", "wandb.sdk.wandb_run.Run.finish"),
    ],
)
def test_the_clients_of_real_trackers(sink: str, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow  # noqa: F401
    import wandb

    monkeypatch.setattr(call, raising)
    good = MemorySink()
    without, _, _ = final(watched=False)
    with_fault, messages, tracker = final(watched=True, sinks=[sink, good])
    assert_same_bits(without, with_fault)
    assert "injected" in messages[0]
    assert sink in messages[0].lower()
    # At the end it is said once more what did not arrive.
    assert len(messages) <= 2, messages
    assert tracker is not None
    assert read_run(tracker.folder).steps.tolist() == list(range(1, STEPS + 1))
    assert len(good.series("angle/0")) == STEPS
    monkeypatch.undo()
    wandb.teardown()


@pytest.mark.parametrize("method", ["note_script_run", "start", "write", "finish", "destination"])
def test_a_sink(method: str) -> None:
    good = MemorySink()
    without, _, _ = final(watched=False)
    with_fault, messages, tracker = final(watched=True, sinks=[BadSink(method), good])
    assert_same_bits(without, with_fault)
    assert messages[0].startswith("bad")
    # At the end it is said once more that a sink which failed throughout did not get everything.
    assert len(messages) <= 2
    assert tracker is not None
    assert read_run(tracker.folder).steps.tolist() == list(range(1, STEPS + 1))
    assert len(good.series("angle/0")) == STEPS
    assert good.status == "finished"


def test_gradients_of_a_kind_that_cannot_be_measured() -> None:
    class Sparse(torch.optim.SGD):
        """Makes a gradient sparse before its step."""

    def ending(watched: bool) -> tuple[dict[str, Any], list[str]]:
        seed_everything(4)
        model = tiny()
        optimizer = Sparse(model.parameters(), lr=0.1)
        with collected_notices() as caught:
            tracker = smdtrack.watch(model, optimizer, every=1, sinks=["local"]) if watched else None
            for _ in range(3):
                torch.nn.functional.cross_entropy(model(torch.randn(8, 3, 12, 12)), torch.zeros(8).long()).backward()
                model[0].weight.grad = model[0].weight.grad.to_sparse()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if tracker is not None:
                tracker.finish()
        return everything(model, [optimizer]), list(caught)

    (without, _), (with_smdtrack, messages) = ending(False), ending(True)
    assert_same_bits(without, with_smdtrack)
    assert sum("measuring stopped" in message for message in messages) == 1


def test_a_stderr_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Probe, "begin", raising)
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    without, _, _ = final(watched=False)
    with_fault, said, _ = final(watched=True)
    assert_same_bits(without, with_fault)
    assert said == ["measuring stopped at step 1 (Broken: injected); training goes on"]


def test_a_script_s_warning_filters_do_not_touch_notices(capsys: pytest.CaptureFixture[str]) -> None:
    for action in ("ignore", "error"):
        with warnings.catch_warnings(), collected_notices():
            warnings.simplefilter(action)  # type: ignore[arg-type]
            notify("something could not be done")
        assert capsys.readouterr().err == "smdtrack: something could not be done\n"
