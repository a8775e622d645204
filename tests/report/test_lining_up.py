import pytest

from smdtrack import SmdtrackError
from smdtrack.record.sources import open_run
from smdtrack.report.lining_up import last_common_steps, positions
from tests.report.synthetic_runs import make_record


def opened(tmp_path, name, **options):
    return open_run(str(make_record(tmp_path / name, **options)))


def test_the_shortest_run_decides(tmp_path):
    runs = [opened(tmp_path, "a"), opened(tmp_path, "b", steps=600)]
    assert last_common_steps(runs, "steps") == [600, 600]


def test_epochs(tmp_path):
    runs = [
        opened(tmp_path, "a", params={"steps_per_epoch": 30}),
        opened(tmp_path, "b", steps=600, params={"steps_per_epoch": 60}),
    ]
    assert positions(runs[0], "epochs")[-1] == 30
    assert last_common_steps(runs, "epochs") == [300, 600]


def test_time_constants_follow_a_schedule(tmp_path):
    run = opened(tmp_path, "a", every=1, schedule=lambda step: 1.0 if step <= 500 else 0.1)
    passed = positions(run, "time-constants")
    assert passed[499] == pytest.approx(10, rel=0.01)
    assert passed[-1] == pytest.approx(10.8, rel=0.01)


def test_what_a_run_does_not_say(tmp_path):
    run = opened(tmp_path, "a", status="running")
    with pytest.raises(SmdtrackError, match=r"^run a does not say how many steps an epoch has: compare over steps$"):
        positions(run, "epochs")
    empty = opened(tmp_path, "b", steps=1, status="running")
    with pytest.raises(SmdtrackError, match=r"^a run without samples cannot be lined up with others$"):
        last_common_steps([run, empty], "steps")
