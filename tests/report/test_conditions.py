import pytest

from smdtrack import SmdtrackError
from smdtrack.report.comparison import compare
from smdtrack.report.conditions import findings, parse_condition


@pytest.mark.parametrize("text", ["", "angle_ratio", "angle_ratio<", "<.9", "angle_ratio<nine", "a<b<1", "x<nan"])
def test_what_is_no_condition_is_refused(text):
    with pytest.raises(SmdtrackError, match=r"is no condition: write one such as angle_ratio<\.9"):
        parse_condition(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("angle_ratio<.9", False),
        ("angle_ratio < 1.2", True),
        ("angle_change>1.9", True),
        ("angle_change>=2.3", False),
        ("median(angle_change)<2.05", True),
        ("median ( angle_change ) > 2.05", False),
        ("angle_eq_change!=1", True),
        ("time_constant<12.6", True),
    ],
)
def test_conditions_hold_or_not(facts, text, found):
    comparison = compare([facts("a", noise=0.01), facts("b", lr=0.4, noise=0.01)])
    assert bool(findings(comparison, [parse_condition(text)])) == found


def test_the_baseline_is_not_judged(facts):
    late = facts("a", start=30.0, steps=200)
    assert min(row.angle_ratio for row in late.rows) < 0.5
    assert findings(compare([late, facts("b")]), [parse_condition("angle_ratio<.5")]) == []


def test_the_weights_are_named(facts):
    comparison = compare([facts("a"), facts("b", start=[1, 1, 1, 1, 200])])
    (line,) = findings(comparison, [parse_condition("angle_ratio<.8")])
    assert line.startswith("angle_ratio<.8: 1 of 5 weights of B (layer2.0.conv2 0.")


def test_an_unknown_quantity_is_refused_with_near_names(facts):
    comparison = compare([facts("a"), facts("b")])
    with pytest.raises(SmdtrackError, match=r"^no quantity 'angel_ratio' in 'angel_ratio<1'; did you mean angle_ratio"):
        findings(comparison, [parse_condition("angel_ratio<1")])
