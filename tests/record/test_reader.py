"""The reader: names of version 1, damaged files, and what does not describe a run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from smdtrack import SmdtrackError
from smdtrack.record import LocalStore, read_run
from smdtrack.record.reader import read_sinks
from smdtrack.record.run import Sample
from tests.record.runs import run_info, sample
from tests.said import collected_notices

#: The head of a record of version 1, as that version wrote it.
HEAD_1 = {
    "schema": 1,
    "id": "abc123",
    "name": "net-abc123",
    "created": 1000.0,
    "weights": [
        {
            "name": "conv1.weight",
            "key": "conv1",
            "shape": [8, 3, 3, 3],
            "group": 0,
            "scope": "tensor",
            "filter_dim": None,
            "norm": None,
            "line_kind": "closed form",
            "line_formula": "",
            "line_source": "",
            "line_reason": None,
        }
    ],
    "params": {"lr": 0.1},
    "status": "finished",
    "sinks": {"mlflow": {"run_id": "1f", "owned": True}},
    "ended": 1100.0,
    "summary": {
        "first_step": 1,
        "last_step": 2,
        "weights": [{"key": "conv1", "samples": 2, "angle": 0.02, "angle_eq": 0.02, "eq_ratio": 1.5}],
        "verdict": "good",
    },
}


def list_column(*rows: float) -> Any:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows), 1)


def write_stream(path: Path, *batches: Any) -> None:
    with pa.ipc.new_stream(path, batches[0].schema) as stream:
        for batch in batches:
            stream.write_batch(batch)


def test_the_names_of_version_1_are_translated(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(HEAD_1))
    batch = {
        "step": pa.array([1, 2]),
        "time": pa.array([1001.0, 1002.0]),
        "smd/orthogonality": pa.array([1e-7, 2e-7]),
        "angle": list_column(0.02, 0.03),
        "grad": list_column(1.0, 2.0),
        "memory": list_column(19.0, 19.0),
        "orthogonality": list_column(3e-7, 4e-7),
    }
    write_stream(tmp_path / "samples-000.arrows", pa.record_batch(batch))
    run = read_run(tmp_path)
    assert set(run.values) == {"angle", "effective_grad", "line_memory", "orthogonality_residual"}
    assert run.values["effective_grad"][:, 0].tolist() == [1.0, 2.0]
    assert run.values["line_memory"][:, 0].tolist() == [19.0, 19.0]
    assert run.values["orthogonality_residual"][:, 0].tolist() == [3e-7, 4e-7]
    assert run.overview["smd/orthogonality_residual"].tolist() == [1e-7, 2e-7]
    assert run.summary is not None
    assert run.summary["weights"] == [
        {"key": "conv1", "samples": 2, "angle": 0.02, "angle_eq": 0.02, "angle_ratio": 1.5}
    ]
    assert run.status == "finished"
    assert read_sinks(tmp_path) == HEAD_1["sinks"]


def test_a_record_of_version_1_is_continued_in_version_2(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(HEAD_1))
    store = LocalStore(read_run(tmp_path).info)
    store.close("finished", None)
    head = json.loads((tmp_path / "run.json").read_text())
    assert (head["schema"], head["sinks"]) == (2, HEAD_1["sinks"])


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record with two sample files."""
    folder = tmp_path_factory.mktemp("good")
    store = LocalStore(run_info(folder))
    store.append([sample(1, angle=(0.1, 0.2)), sample(2, angle=(0.3, 0.4))])
    store.append([sample(3, angle=(0.1, 0.2), norm=(1.0, 2.0))])
    store.close("finished", None)
    return folder


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda head: head.update(schema=99), "was written by a newer smdtrack (schema version 99, this one reads up"),
        (lambda head: head.update(schema="1"), "run.json has the schema version '1'"),
        (lambda head: head.update(schema=float("nan")), "run.json has the schema version nan"),
        (lambda head: head.update(schema=0), "run.json has the schema version 0"),
        (lambda head: head.pop("weights"), "run.json is damaged (no 'weights')"),
        (lambda head: head.pop("status"), "run.json is damaged (no 'status')"),
        (lambda head: head.pop("id"), "run.json is damaged (no 'id')"),
        (lambda head: head.update(weights="abc"), "run.json is damaged (weights is not a list)"),
        (lambda head: head.update(created=float("nan")), "run.json is damaged (created is nan, not a time)"),
        (lambda head: head.update(summary="<script>"), "run.json is damaged (summary is not a table"),
        (lambda head: head["weights"][0].update(shape=3), "run.json is damaged (a weight is not described"),
        (lambda head: head["weights"][0].pop("key"), "run.json is damaged ("),
    ],
)
def test_a_damaged_head_is_refused_in_one_line(copy: Path, change: Callable[[Any], Any], message: str) -> None:
    head = json.loads((copy / "run.json").read_text())
    change(head)
    (copy / "run.json").write_text(json.dumps(head))
    with pytest.raises(SmdtrackError) as raised:
        read_run(copy)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00{}", b"[1]", b'{"a":' + b"[" * 100_000, b"5"])
def test_a_head_that_describes_no_run_is_refused(copy: Path, content: bytes) -> None:
    (copy / "run.json").write_bytes(content)
    with pytest.raises(SmdtrackError, match=r"is not a run's folder: .*run\.json"):
        read_run(copy)


@pytest.mark.parametrize("path", [None, 3, b"run"])
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(SmdtrackError, match="a run's folder is a path, not "):
        read_run(path)


def test_fields_of_a_head_that_are_not_known_are_ignored(copy: Path) -> None:
    head = json.loads((copy / "run.json").read_text())
    head["new"] = head["weights"][0]["new"] = 1
    (copy / "run.json").write_text(json.dumps(head))
    assert read_run(copy).steps.tolist() == [1, 2, 3]


def not_a_file(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "steps"),
    [
        (lambda path: path.write_bytes(b"PAR1 garbage" * 50), [1, 2]),
        (lambda path: path.write_bytes(np.random.default_rng(0).bytes(10_000)), [1, 2]),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), [1, 2]),
        (not_a_file, [1, 2]),
        (lambda path: write_stream(path, pa.record_batch({"foo": pa.array([1])})), [1, 2]),
        (lambda path: write_stream(path, pa.record_batch({"step": pa.array(["x"]), "time": pa.array([1.0])})), [1, 2]),
        (lambda path: write_stream(path, pa.record_batch({"step": pa.array([9]), "time": pa.array(["x"])})), [1, 2]),
        (
            lambda path: write_stream(path, pa.record_batch({"step": pa.array([None, 9]), "time": pa.array([1.0, 2])})),
            [1, 2],
        ),
        (
            lambda path: write_stream(
                path, pa.record_batch({"step": pa.array([9]), "time": pa.array([1.0]), "list": pa.array([[1, 2]])})
            ),
            [1, 2, 9],
        ),
        (
            lambda path: write_stream(
                path, pa.record_batch({"step": pa.array([9]), "time": pa.array([1.0]), "angle": list_column(1.0)})
            ),
            [1, 2, 9],
        ),
        (
            lambda path: write_stream(
                path, pa.record_batch({"step": pa.array([9]), "time": pa.array([1.0]), "angle": pa.array([1.0])})
            ),
            [1, 2, 9],
        ),
    ],
)
def test_a_damaged_file_is_read_as_far_as_it_goes_and_said(
    copy: Path, damage: Callable[[Path], Any], steps: list[int]
) -> None:
    damage(copy / "samples-001.arrows")
    with collected_notices() as notices:
        run = read_run(copy)
    assert run.steps.tolist() == steps
    assert run.values["angle"][:2].tolist() == [[0.1, 0.2], [0.3, 0.4]]
    assert len(run.damage) == 1
    assert notices == [f"{copy}: {run.damage[0]}"]


def test_flipped_bits_and_cuts_raise_nothing(copy: Path) -> None:
    path = copy / "samples-000.arrows"
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    damaged = [content[:length] for length in range(0, len(content), 7)]
    for _ in range(300):
        flipped = bytearray(content)
        for position in generator.integers(0, len(content), 3):
            flipped[position] ^= 1 << int(generator.integers(8))
        damaged.append(bytes(flipped))
    for changed in damaged:
        path.write_bytes(changed)
        with collected_notices():
            run = read_run(copy)
        assert 3 in run.steps, "the other file was read"


def test_sample_files_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    LocalStore(run_info(tmp_path)).close("finished", None)
    for number in (1000, 0, 999):
        columns = {
            "step": pa.array([7]),
            "time": pa.array([1.0]),
            "angle": pa.FixedSizeListArray.from_arrays(pa.array([float(number)] * 2), 2),
        }
        write_stream(tmp_path / f"samples-{number:03d}.arrows", pa.record_batch(columns))
    assert read_run(tmp_path).values["angle"].tolist() == [[1000.0, 1000.0]]


def test_a_joined_run_is_that_of_a_plain_loop_over_samples(tmp_path: Path) -> None:
    """Keys that come and go, steps that are written twice, several files: compared with a dictionary of samples."""
    generator = np.random.default_rng(0)
    expected: dict[int, Sample] = {}
    for _ in range(4):
        store = LocalStore(run_info(tmp_path))
        for _ in range(20):
            batch = []
            for step in generator.integers(1, 60, 3).tolist():
                families = [name for name in ("angle", "norm", "angle_k10") if generator.random() < 0.7]
                values = {name: generator.random(2) for name in families}
                overview = {"smd/clipped": float(generator.random())} if generator.random() < 0.5 else {}
                batch.append(Sample(step, float(step), values, overview))
                expected[step] = batch[-1]
            store.append(batch)
        store.close("finished", None)
    run = read_run(tmp_path)
    assert run.steps.tolist() == sorted(expected)
    for row, step in enumerate(run.steps.tolist()):
        for family in ("angle", "norm", "angle_k10"):
            values = expected[step].values.get(family, np.full(2, np.nan))
            np.testing.assert_array_equal(run.values[family][row], values)
        np.testing.assert_array_equal(
            run.overview["smd/clipped"][row], expected[step].overview.get("smd/clipped", np.nan)
        )
