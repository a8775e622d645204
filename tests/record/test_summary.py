import numpy as np
import pytest

from smdtrack.record import summarize
from tests.record.runs import make_run


def test_drift_corrected_line_of_a_window_is_that_of_a_simulated_run():
    """Float64 simulation of w <- (1 - gamma) w - u with u orthogonal to w: R is 1, and the angle is |u| / ||w||."""
    generator = np.random.default_rng(0)
    gamma, steps = 2e-4, 3000
    weight = generator.standard_normal(4096)
    weight *= 3 / np.linalg.norm(weight)
    angles, norms = np.empty(steps), np.empty(steps)
    for step in range(steps):
        update = generator.standard_normal(4096)
        update -= weight * (update @ weight) / (weight @ weight)
        update *= 0.02 / np.linalg.norm(update)
        new = (1 - gamma) * weight - update
        angles[step] = np.arccos(weight @ new / np.linalg.norm(weight) / np.linalg.norm(new))
        norms[step] = np.linalg.norm(new)
        weight = new
    sampled = np.arange(9, steps, 10)
    run = make_run(
        (sampled + 1).tolist(),
        memory=1.0,
        angle=angles[sampled],
        norm=norms[sampled],
        angle_eq=np.full(len(sampled), np.sqrt(2 * gamma)),
    )
    row = summarize(run).weights[0]
    assert abs(row.angle_ratio - 1) > 0.2, (
        "out of equilibrium: the plain line must be off for this test to mean anything"
    )
    assert row.pred_ratio == pytest.approx(1, abs=0.01)
    assert row.equilibrium_step is None


def test_window_is_the_last_third_and_angles_are_rms():
    steps = list(range(10, 310, 10))
    angle = np.concatenate([np.full(20, 9.0), np.tile([0.01, 0.03], 5)])
    summary = summarize(make_run(steps, memory=19.0, angle=angle, angle_eq=np.full(30, 0.02)))
    assert (summary.first_step, summary.last_step) == (210, 300)
    row = summary.weights[0]
    assert row.samples == 10
    assert row.angle == pytest.approx(np.sqrt((0.01**2 + 0.03**2) / 2))
    assert row.angle_ratio == pytest.approx(row.angle / 0.02)
    assert row.pred_ratio == pytest.approx(row.angle_ratio), "the norm stood still"


def test_window_begins_after_the_last_jump_of_the_line():
    steps = list(range(1, 61))
    line = np.where(np.arange(60) < 50, 0.02, 0.002)
    summary = summarize(make_run(steps, memory=19.0, angle=line, angle_eq=line))
    assert summary.first_step == 51
    assert summary.weights[0].angle_ratio == pytest.approx(1)


def test_verdict_counts_weights_or_says_that_there_is_no_line():
    steps = list(range(1, 31))
    settled = summarize(make_run(steps, memory=1.0, angle=np.full(30, 0.01), angle_eq=np.full(30, 0.01)))
    assert settled.verdict.startswith("2 of 2 weights turn as theory predicts")
    assert settled.verdict.endswith("all are in equilibrium")
    without = summarize(make_run(steps, angle=np.full(30, 0.01)))
    assert "no line to compare with" in without.verdict
    assert without.weights[0].angle_ratio is None


def test_nothing_measured_is_no_summary():
    assert summarize(make_run([], angle=np.empty(0))) is None


def test_ratios_have_a_sampling_error_and_a_changing_learning_rate_adds_none():
    generator = np.random.default_rng(0)
    line = 0.02 * np.cos(np.linspace(0, 1.5, 600))
    angle = line * (1 + 0.1 * generator.standard_normal(600))
    summary = summarize(make_run(list(range(10, 6010, 10)), memory=1.0, angle=angle, angle_eq=line))
    assert summary.weights[0].ratio_error == pytest.approx(0.1 * np.sqrt(0.9 / 200), rel=0.2)
    assert f", give or take {summary.weights[0].ratio_error:.3f})" in summary.verdict
    without_line = summarize(make_run(list(range(10, 6010, 10)), angle=angle / line))
    assert without_line.weights[0].ratio_error == pytest.approx(summary.weights[0].ratio_error, rel=0.01)
    whole = summarize(make_run(list(range(1, 601)), memory=1.0, angle=angle, angle_eq=line))
    assert whole.weights[0].ratio_error == 0
    short = summarize(make_run(list(range(10, 310, 10)), memory=1.0, angle=angle[:30], angle_eq=line[:30]))
    assert short.weights[0].ratio_error is None
    assert "give or take" not in whole.verdict + short.verdict
