import numpy as np
import pytest

from smdtrack.record import read_run
from smdtrack.record.sources import open_run
from smdtrack.record.summary import diverged_at
from smdtrack.report.facts import facts_of, is_settled, only, step_weights, time_constants, until_step
from tests.report.synthetic_runs import NAMES, make_record


def test_travel_adds_up_the_angles_of_all_steps(tmp_path):
    every_step = facts_of(open_run(str(make_record(tmp_path / "a", every=1, noise=0, start=2.0))))
    sampled = facts_of(open_run(str(make_record(tmp_path / "b", every=7, noise=0, start=2.0))))
    run = read_run(tmp_path / "a")
    for index, name in enumerate(NAMES):
        total = run.values["angle"][:, index].sum()
        assert every_step.travel[name].turned == pytest.approx(total, rel=1e-12)
        assert sampled.travel[name].turned == pytest.approx(total, rel=0.01)


def test_time_constants_follow_the_schedule(tmp_path):
    folder = make_record(tmp_path / "a", every=1, schedule=lambda step: 1.0 if step <= 450 else 0.1)
    passed = facts_of(open_run(str(folder))).travel["conv1"].time_constants
    assert passed == pytest.approx(450 / 50 + 450 / 500, rel=0.01)


def test_a_tracker_without_time_constants_gets_them_from_the_line(tmp_path):
    run = read_run(make_record(tmp_path / "a", every=1, schedule=lambda step: min(1.0, step / 100)))
    known = time_constants(run)
    lacking = {family: table for family, table in run.values.items() if family != "time_constant"}
    guessed = time_constants(type(run)(**{**run.__dict__, "values": lacking}))
    np.testing.assert_allclose(guessed, known, rtol=1e-9)


def test_every_step_is_counted_once():
    class Run:
        steps = np.array([3, 5, 9, 10])

    # The first and the last sample stand for as many steps outside as inside.
    assert step_weights(Run).tolist() == [2, 3, 2.5, 1]


def test_weights_are_chosen_by_glob(tmp_path):
    run = only(read_run(make_record(tmp_path / "a")), ["layer1.*"])
    assert [weight.key for weight in run.info.weights] == ["layer1.0.conv1", "layer1.0.conv2"]
    assert run.values["norm"].shape[1] == 2
    assert len(run.summary["weights"]) == 2


def test_a_run_is_cut_behind_a_step(tmp_path):
    run = until_step(read_run(make_record(tmp_path / "a")), 300)
    assert run.steps[-1] == 300
    assert len(run.times) == len(run.steps) == len(run.values["angle"]) == len(run.overview["smd/theory"])


def test_divergence_is_found_and_left_out(tmp_path):
    opened = open_run(str(make_record(tmp_path / "a", nan_from=601)))
    assert diverged_at(opened.run) == 603
    facts = facts_of(opened)
    assert (facts.status, facts.diverged_at, facts.last_step) == ("diverged", 603, 600)
    assert all(is_settled(row) for row in facts.rows)


def test_settled_is_not_known_without_a_line(tmp_path):
    facts = facts_of(open_run(str(make_record(tmp_path / "a"))))
    assert is_settled(facts.rows[0]) is True
    assert is_settled(type(facts.rows[0])(**{**facts.rows[0].__dict__, "angle_ratio": None})) is None
