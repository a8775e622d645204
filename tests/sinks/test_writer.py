import threading
import time

import numpy as np
import pytest

from smdtrack.record import read_run
from smdtrack.record.run import Point
from smdtrack.sinks import sink_delivery
from smdtrack.sinks import writer as writer_module
from smdtrack.sinks.memory import MemorySink
from smdtrack.sinks.thinning import ReferenceThinner
from smdtrack.sinks.writer import Writer
from tests.record.runs import run_info, sample
from tests.said import collected_notices


class FailingSink(MemorySink):
    """Fails in the named method so many times."""

    name = "failing"

    def __init__(self, method: str, times: int) -> None:
        super().__init__()
        self.method, self.times = method, times

    def _maybe_fail(self, method: str) -> None:
        if method == self.method and self.times > 0:
            self.times -= 1
            raise ConnectionError("the server\nis away")

    def note_script_run(self):
        self._maybe_fail("note_script_run")

    def start(self, info):
        self._maybe_fail("start")
        super().start(info)

    def write(self, points):
        self._maybe_fail("write")
        super().write(points)

    def finish(self, info, summary, status):
        self._maybe_fail("finish")
        super().finish(info, summary, status)


def written(folder, sinks, samples=20, build=lambda item: item):
    writer = Writer(run_info(folder), sinks, build)
    for step in range(1, samples + 1):
        writer.submit(sample(step, angle=(0.01 * step, 0.02 * step), norm=(1.0, 1.0), memory=(1.0, 1.0)))
    writer.close("finished")
    return writer


def test_every_sample_reaches_record_and_sinks_in_order(tmp_path):
    sink = MemorySink()
    writer = written(tmp_path, [sink])
    assert read_run(tmp_path).steps.tolist() == list(range(1, 21))
    assert [step for step, _ in sink.series("angle/conv1")] == list(range(1, 21))
    assert dict(sink.series("angle/layer1.conv"))[20] == pytest.approx(0.4)
    assert not any(point.key.startswith("line_memory") for point in sink.points), "kept in the local record only"
    assert sink.status == "finished"
    assert writer.summary is not None
    assert read_run(tmp_path).status == "finished"


@pytest.mark.parametrize("method", ["start", "write"])
def test_a_sink_that_fails_is_said_once_and_gets_everything_when_it_recovers(tmp_path, method, monkeypatch):
    monkeypatch.setattr(sink_delivery, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(writer_module, "FLUSH_SECONDS", 0.05)
    failing, healthy = FailingSink(method, 3), MemorySink()
    writer = Writer(run_info(tmp_path), [failing, healthy], lambda item: item)
    with collected_notices(match="failing: the server is away; training and the local record go") as seen:
        for step in range(1, 31):
            writer.submit(sample(step, angle=(0.1, 0.2), norm=(1.0, 1.0)))
            time.sleep(0.02)
        writer.close("finished")
    assert len(seen) == 1
    for sink in (failing, healthy):
        assert [step for step, _ in sink.series("angle/conv1")] == list(range(1, 31))


def test_a_sink_that_stays_away_costs_nothing_but_itself_and_the_loss_is_counted(tmp_path):
    failing, healthy = FailingSink("write", 10**9), MemorySink()
    with collected_notices() as seen:
        written(tmp_path, [failing, healthy])
    messages = list(seen)
    assert any("did not get 122 points; all samples are in" in message for message in messages), messages
    assert len(healthy.series("norm/conv1")) == 20
    assert len(read_run(tmp_path).steps) == 20


def test_a_sink_that_cannot_note_the_script_s_run_is_left_out(tmp_path):
    with collected_notices(match="failing is left out"):
        written(tmp_path, [FailingSink("note_script_run", 1)])
    assert len(read_run(tmp_path).steps) == 20


def test_samples_that_cannot_be_built_are_left_out_with_one_notice(tmp_path):
    def build(item):
        if item.step % 2:
            raise ZeroDivisionError("odd")
        return item

    with collected_notices(match=r"could not be computed \(odd\)") as seen:
        written(tmp_path, [], build=build)
    assert len(seen) == 1
    assert read_run(tmp_path).steps.tolist() == list(range(2, 21, 2))


def test_a_local_record_that_breaks_leaves_the_trackers_going(tmp_path, monkeypatch):
    sink = MemorySink()

    def full(self, samples):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("smdtrack.record.store.LocalStore.append", full)
    with collected_notices(match="No space left on device"):
        written(tmp_path, [sink])
    assert len(sink.series("angle/conv1")) == 20


def test_submit_never_waits_and_counts_what_it_drops(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "CAPACITY", 5)
    gate = threading.Event()

    def build(item):
        gate.wait(10)
        return item

    writer = Writer(run_info(tmp_path), [], build)
    for step in range(1, 21):
        writer.submit(sample(step, angle=(0.1, 0.2), norm=(1.0, 1.0)))
    gate.set()
    with collected_notices(match="1[45] samples were dropped"):
        writer.close("finished")
    assert len(read_run(tmp_path).steps) + writer.dropped == 20


def test_a_sink_that_hangs_is_given_up(tmp_path):
    class Hanging(MemorySink):
        name = "hanging"

        def finish(self, info, summary, status):
            time.sleep(5)

    writer = Writer(run_info(tmp_path), [Hanging()], lambda item: item)
    writer.submit(sample(1, angle=(0.1, 0.2), norm=(1.0, 1.0)))
    with collected_notices(match="did not answer"):
        writer.close("finished", timeout=1.0)
    assert read_run(tmp_path).status == "finished", "the record was closed before the sink was waited for"


def thin(values, key="angle_eq/w"):
    thinner = ReferenceThinner()
    sent = list(thinner.thin(Point(key, value, step, 0.0) for step, value in enumerate(values)))
    return [(point.step, point.value) for point in [*sent, *thinner.last_points()]]


def test_a_constant_line_is_two_points():
    assert thin([0.02] * 500) == [(0, 0.02), (499, 0.02)]


def test_a_step_is_drawn_as_a_step():
    assert thin([0.02] * 100 + [0.002] * 100) == [(0, 0.02), (99, 0.02), (100, 0.002), (199, 0.002)]


def test_a_cosine_schedule_is_under_200_points_and_never_off_by_much():
    line = 0.02 * np.sqrt((1 + np.cos(np.linspace(0, np.pi * 0.99, 5000))) / 2)
    sent = thin(line.tolist())
    assert len(sent) < 200
    drawn = np.interp(np.arange(5000), *zip(*sent, strict=True))
    assert np.max(np.abs(drawn / line - 1)) < 0.05


def test_measured_points_pass_untouched():
    assert len(thin([0.02] * 50, key="angle/w")) == 50
