"""How a schedule is divided into stages, and what is said of each."""

import math

import pytest

from smdtrack.planning.lr_schedule import LrSegment, line_at_peak
from smdtrack.planning.recipe import Recipe
from smdtrack.planning.relaxation import LineSegment, WeightState
from smdtrack.planning.stages import split_into_stages, summarize_stage, time_constants

LINE = line_at_peak(Recipe(opt="momentum", lr=0.1, weight_decay=1e-3), (4, 4))


def segments(*rates):
    return [LrSegment(float(epoch), 10, rate) for epoch, rate in enumerate(rates)]


@pytest.mark.parametrize(
    ("rates", "warmup_epochs", "expected"),
    [
        ([1.0] * 10, 0, [("constant", 0, 10)]),
        ([0.1, 0.5, *[1.0] * 8], 2, [("warm-up", 0, 2), ("constant", 2, 10)]),
        ([1.0] * 10, 3, [("constant", 0, 10)]),
        ([1.0] * 5 + [0.1] * 5, 0, [("constant", 0, 5), ("constant", 5, 10)]),
        (
            [1 - epoch / 12 for epoch in range(12)],
            0,
            [("decay 1/4", 0, 3), ("decay 2/4", 3, 6), ("decay 3/4", 6, 9), ("decay 4/4", 9, 12)],
        ),
        ([1.0, *[1.0] * 7, 0.5, 0.4, 0.3], 0, [("constant", 0, 8), ("decay", 8, 11)]),
        (
            [1 - epoch / 6 for epoch in range(6)] * 2,
            0,
            [("cycle 1", 0, 6), ("cycle 2", 6, 12)],
        ),
        ([], 0, []),
    ],
)
def test_stages_of_a_schedule(rates, warmup_epochs, expected):
    assert split_into_stages(segments(*rates), warmup_epochs) == expected


def test_a_drop_at_every_other_epoch_is_a_decay_and_not_fifty_stages():
    rates = [0.97 ** (epoch // 2) for epoch in range(100)]
    names = [name for name, _, _ in split_into_stages(segments(*rates), 0)]
    assert names == [f"decay {quarter}/4" for quarter in (1, 2, 3, 4)]


def test_a_length_in_time_constants_adds_up():
    assert time_constants([LineSegment(25, LINE), LineSegment(75, LINE)]) == pytest.approx(100 / LINE.time_constant)
    without = line_at_peak(Recipe(opt="momentum", lr=0.1, weight_decay=0.0), (4, 4))
    assert time_constants([LineSegment(25, without)]) is None


def path(angle):
    return [WeightState(1.0, LINE.angular_update), WeightState(2.0, angle * LINE.angular_update)]


@pytest.mark.parametrize(
    ("angles", "reached"),
    [((1.04,), True), ((0.9,), False), ((0.97, 1.0, 1.03), True), ((0.5, 1.0, 2.0), None), ((0.5, 0.6, 0.7), False)],
)
def test_a_line_counts_as_reached_only_from_every_initial_norm(angles, reached):
    schedule = segments(0.1, 0.1)
    lines = [LineSegment(10, LINE), LineSegment(10, LINE)]
    stage = summarize_stage("constant", schedule, lines, [path(angle) for angle in angles], 0, 2)
    assert stage.reached is reached
    assert stage.predicted_range == pytest.approx(
        (min(angles) * LINE.angular_update, max(angles) * LINE.angular_update)
    )
    assert stage.lag == pytest.approx(angles[len(angles) // 2])
    assert (stage.steps, stage.first_epoch, stage.last_epoch) == (20, 0.0, 2.0)
    assert stage.time_constants == pytest.approx(20 / LINE.time_constant)


def test_without_a_path_nothing_is_predicted():
    stage = summarize_stage("constant", segments(0.1), [LineSegment(10, LINE)], [], 0, 1)
    assert (stage.predicted_angle, stage.predicted_range, stage.lag, stage.reached) == (None, None, None, None)
    unknown = [[WeightState(math.nan, LINE.angular_update)]]
    stage = summarize_stage("constant", segments(0.1), [LineSegment(10, LINE)], unknown, 0, 1)
    assert stage.predicted_norm is None


@pytest.mark.parametrize(("first", "last", "text"), [(0.0, 5.0, "0-5"), (2.25, 9.5, "2.2-9.5"), (26.2, 47.5, "26-48")])
def test_epochs_as_text(first, last, text):
    stage = summarize_stage("constant", segments(0.1), [LineSegment(10, LINE)], [], 0, 1)
    assert type(stage)(**{**vars(stage), "first_epoch": first, "last_epoch": last}).epochs == text
