import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from smdtrack import SmdtrackError
from smdtrack.record import LocalStore, read_run
from smdtrack.record.store import new_run_folder
from tests.record.runs import WEIGHTS, run_info, sample


def test_what_is_stored_is_read_back_exactly(tmp_path):
    store = LocalStore(run_info(tmp_path))
    store.append([sample(10, angle=(0.1, 0.2), norm=(1.0, np.nan)), sample(20, angle=(0.3, 0.4), norm=(2.0, 3.0))])
    store.append([sample(30, angle=(0.5, 0.6), norm=(4.0, 5.0))])
    store.close("finished", {"verdict": "good"})
    run = read_run(tmp_path)
    assert run.info == run_info(tmp_path)
    assert run.info.weights == WEIGHTS
    assert run.steps.tolist() == [10, 20, 30]
    assert run.times.tolist() == [1010.0, 1020.0, 1030.0]
    np.testing.assert_array_equal(run.values["angle"], [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    np.testing.assert_array_equal(run.values["norm"], [[1.0, np.nan], [2.0, 3.0], [4.0, 5.0]])
    assert (run.status, run.summary) == ("finished", {"verdict": "good"})
    steps, values = run.series("norm/layer1.conv")
    assert (steps.tolist(), values.tolist()) == ([20, 30], [3.0, 5.0])
    assert run.series("smd/theory")[1].tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(KeyError, match="norm/nowhere"):
        run.series("norm/nowhere")


def test_a_key_that_comes_and_goes_begins_one_new_file_and_leaves_gaps(tmp_path):
    store = LocalStore(run_info(tmp_path))
    for step in range(1, 21):
        store.append([sample(step, angle=(0.1, 0.2), **({} if step % 2 else {"angle_k10": (1.0, 2.0)}))])
    store.close("finished", None)
    assert sorted(path.name for path in tmp_path.glob("samples-*")) == ["samples-000.arrows", "samples-001.arrows"]
    run = read_run(tmp_path)
    assert run.steps.tolist() == list(range(1, 21))
    np.testing.assert_array_equal(run.values["angle_k10"], [[np.nan, np.nan], [1.0, 2.0]] * 10)


def test_a_write_that_fails_is_taken_back_and_can_be_repeated(tmp_path, monkeypatch):
    store = LocalStore(run_info(tmp_path))
    store.append([sample(1, angle=(0.1, 0.2))])
    whole = (tmp_path / "samples-000.arrows").read_bytes()

    class FullDisk:
        def write_batch(self, batch):
            store._file.write(b"a part of the batch")
            raise OSError(28, "No space left on device")

    store._stream = FullDisk()
    with pytest.raises(OSError, match="No space left"):
        store.append([sample(2, angle=(0.3, 0.4))])
    assert (tmp_path / "samples-000.arrows").read_bytes() == whole
    store.append([sample(2, angle=(0.3, 0.4)), sample(3, angle=(0.5, 0.6))])
    store.close("finished", None)
    run = read_run(tmp_path)
    assert (run.steps.tolist(), run.damage) == ([1, 2, 3], ())


def test_writing_imports_no_pandas(tmp_path):
    script = """
import sys
from pathlib import Path
from smdtrack.record import LocalStore, read_run
before = set(sys.modules)
from tests.record.runs import run_info, sample
store = LocalStore(run_info(Path(sys.argv[1])))
store.append([sample(1, angle=(0.1, 0.2))])
store.close("finished", None)
assert len(read_run(sys.argv[1]).steps) == 1
print(sorted(name for name in set(sys.modules) - before if not name.startswith("tests")))
"""
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]", "nothing at all is imported while a training runs"


def test_a_resumed_runs_repeated_steps_count_once_with_the_later_values(tmp_path):
    first = LocalStore(run_info(tmp_path))
    first.append([sample(step, angle=(step, step)) for step in (10, 20, 30)])
    first.close("failed", None)
    second = LocalStore(run_info(tmp_path))
    second.append([sample(step, angle=(-step, -step)) for step in (20, 30, 40)])
    second.close("finished", None)
    run = read_run(tmp_path)
    assert run.steps.tolist() == [10, 20, 30, 40]
    assert run.values["angle"][:, 0].tolist() == [10, -20, -30, -40]


@pytest.mark.parametrize("torn", [1, 7, 100])
def test_a_torn_end_costs_only_the_last_batch(tmp_path, torn):
    store = LocalStore(run_info(tmp_path))
    store.append([sample(1, angle=(0.1, 0.2))])
    whole = (tmp_path / "samples-000.arrows").stat().st_size
    store.append([sample(2, angle=(0.3, 0.4))])
    part = tmp_path / "samples-000.arrows"
    part.write_bytes(part.read_bytes()[: max(whole, part.stat().st_size - torn)])
    run = read_run(tmp_path)
    assert run.steps.tolist() == [1]
    assert run.status == "running"


def test_kill_9_loses_nothing_that_was_flushed(tmp_path):
    script = """
import sys, time
from pathlib import Path
from smdtrack.record import LocalStore
from tests.record.runs import run_info, sample
store = LocalStore(run_info(Path(sys.argv[1])))
for step in range(1, 10**6):
    store.append([sample(step, angle=(step, 2 * step))])
    print(step, flush=True)
    time.sleep(.001)
"""
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    flushed = 0
    while flushed < 200:
        flushed = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    flushed = max([flushed, *map(int, process.stdout.read().split())])
    process.wait()
    run = read_run(tmp_path)
    assert run.steps.tolist()[:flushed] == list(range(1, flushed + 1))
    np.testing.assert_array_equal(run.values["angle"][:, 1], 2 * run.steps)


def test_no_pickle_and_no_absolute_path_in_the_record(tmp_path):
    store = LocalStore(run_info(tmp_path))
    store.append([sample(1, angle=(0.1, 0.2))])
    store.close("finished", None)
    head = json.loads((tmp_path / "run.json").read_text())
    assert "folder" not in head
    moved = tmp_path.parent / "moved"
    tmp_path.rename(moved)
    assert read_run(moved).info.folder == moved


def test_a_folder_without_a_head_is_no_run(tmp_path):
    with pytest.raises(SmdtrackError, match=r"is not a run's folder: no readable run\.json in it$"):
        read_run(tmp_path)


def test_a_folder_that_cannot_be_made_is_one_line_that_says_what_to_do(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SmdtrackError, match=r"cannot write the local record in .*/file \(.+\): choose another folder$"):
        new_run_folder(tmp_path / "file", "net")


def test_a_run_that_has_measured_nothing_can_be_read(tmp_path):
    LocalStore(run_info(tmp_path))
    run = read_run(tmp_path)
    assert len(run.steps) == 0
    assert run.info.created == 1000.0
