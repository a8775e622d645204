import math

import pytest

from smdtrack import SmdtrackError
from smdtrack.report.comparison import COLUMNS, compare, quantities
from smdtrack.report.comparison_verdict import sentences


def said(*runs):
    comparison = compare(runs)
    return sentences(comparison, comparison.changes[0])


def test_four_times_the_rate_doubles_the_angle(facts):
    lines = said(facts("base"), facts("lr4", lr=0.4))
    assert (
        lines[0]
        == "B turns 2.00x as far per step as A (median of 5 weights), as lr x 4 predicts (2.00x at equilibrium)."
    )
    (norm,) = lines[1:]
    assert norm.startswith("Its weights are 1.41x as long")


def test_numbers_against_the_formulas(facts):
    comparison = compare([facts("base", noise=0), facts("other", noise=0, lr=0.2, decay=1e-2, momentum=0.8)])
    for change in comparison.changes[0].weights:
        assert change.angle_eq_change == pytest.approx(math.sqrt(4 * 1.9 / 1.8), rel=1e-12)
        assert change.angle_change == pytest.approx(change.angle_eq_change, rel=5e-3)
        # ||w||^4 = (lr H C)^2 / (2 gamma), gamma = lr wd H: proportional to lr H / wd
        assert change.norm_eq_change == pytest.approx((2 / 2 * 5 / 10) ** 0.25, rel=1e-12)
        assert change.time_constant_change == pytest.approx((0.2 / 4) / 0.1, rel=1e-12)
        assert change.effective_grad_change == pytest.approx(1, rel=1e-9)
        assert change.decay_change == pytest.approx((0.2 * 1e-2 / 0.2) / (0.1 * 5e-3 / 0.1), rel=1e-9)
        assert change.growth_change == pytest.approx(change.decay_change, rel=0.01)
        assert change.memory_change == 1
        assert change.settled == (True, True)


def test_a_lag_of_the_baseline_is_not_taken_for_the_runs_excess(facts):
    late = [1, 1, 1, 7, 7]
    lines = said(facts("base", start=late, steps=400), facts("lr4", lr=0.4, steps=400))
    assert lines[0].startswith("B turns 2.0")
    lag = next(line for line in lines if "lag" in line)
    assert lag.startswith("layer2.0.conv1 and layer2.0.conv2 of A were still losing norm (at ")
    assert lag.endswith(": A's lag, not B's excess.")


def test_a_lag_of_the_run_is_told_as_its_own(facts):
    lines = said(facts("base", steps=400), facts("wd4", decay=2e-2, steps=400, start=2000.0))
    assert "wd x 4 predicts 2.00x at equilibrium; with the norms as they still move it is" in lines[0]
    assert any(
        "All 5 weights of B were still losing norm" in line and "not reached its new line" in line for line in lines
    )


def test_the_same_run_twice_is_no_difference(facts):
    assert said(facts("a"), facts("b")) == ["No difference: B has the settings and the angles of A."]


def test_another_seed_is_told_as_what_it_is(facts):
    first, *_ = said(facts("a", params={"seed": 1}), facts("b", seed=5, params={"seed": 2}))
    assert first.endswith("(median of 5 weights): no setting that moves the line differs, and the line is the same.")


def test_an_interrupted_run_is_compared_over_its_own_end(facts):
    lines = said(facts("a"), facts("b", steps=300, status="interrupted"))
    assert "B was interrupted at step 300; it is compared over its own steps 201 to 300." in lines


def test_a_diverged_run_is_compared_before_it_diverged(facts):
    lines = said(facts("a"), facts("b", nan_from=601, status="failed"))
    assert lines[0] == "B diverged at step 603: only the steps before it are compared."
    assert lines[1].startswith("B turns 1.00x as far per step as A")
    assert len(lines) == 2


def test_a_run_that_diverged_at_once_is_refused(facts):
    with pytest.raises(SmdtrackError, match=r"^run b has nothing to compare: it diverged at step 3$"):
        compare([facts("a"), facts("b", nan_from=1)])


def test_no_weight_in_common(facts):
    with pytest.raises(
        SmdtrackError, match=r"have no weight in common: conv1, layer1.0.conv1, .* against stem, head of"
    ):
        compare([facts("a"), facts("b", names=["stem", "head"])])


def test_weights_of_one_run_only_are_named(facts):
    comparison = compare([facts("a"), facts("b", names=["conv1", "layer1.0.conv1", "extra"])])
    assert comparison.changes[0].incomparable == (
        "3 weights are only in A (layer1.0.conv2, layer2.0.conv1, layer2.0.conv2)",
        "1 weights are only in B (extra)",
    )
    assert len(comparison.changes[0].weights) == 2


def test_one_run_only(facts):
    with pytest.raises(SmdtrackError, match=r"^one run only: a comparison takes two or more$"):
        compare([facts("a")])


def test_all_quantities_have_a_name(facts):
    comparison = compare([facts("a"), facts("b", lr=0.4)])
    row = quantities(comparison.changes[0], comparison.changes[0].weights[0])
    assert set(COLUMNS) == set(row) - {"run", "weight"}


def test_an_epoch_of_a_larger_batch_has_fewer_steps(facts):
    small = facts("a", params={"steps_per_epoch": 20, "batch_size": 64})
    large = facts("b", lr=0.4, steps=300, params={"steps_per_epoch": 5, "batch_size": 256})
    assert "An epoch of B has 0.25x the steps, so over an epoch the angles of all steps add up to 0.50x." in said(
        small, large
    )


def test_settings_that_do_not_explain_the_line_are_not_named_as_its_cause(facts):
    """A record whose rate is that of a warm-up's start, beside one with the recipe's rate."""
    first, *_ = said(facts("a"), facts("b", seed=1, params={"lr": 0.01}))
    assert (
        "as the line predicts (1.00x at equilibrium). The recorded settings differ by lr x 0.1, which is not" in first
    )
