from dataclasses import replace

from smdtrack.report.diagnosis import diagnose


def whys(run):
    return [cause.why for cause in diagnose(run).causes]


def test_a_run_in_equilibrium_needs_no_reason(facts):
    run = facts("a")
    assert diagnose(run).verdict.endswith("all are in equilibrium")
    assert whys(run) == []


def test_too_short_a_run(facts):
    run = facts("a", steps=100, start=3.0)
    first, second = diagnose(run).causes
    assert first.why == "the run has lasted 2 time constants; equilibrium takes about 3"
    assert "more steps at the present settings" in first.action
    assert second.action == "", "the same is not said twice"


def test_norms_that_grow(facts):
    (why,) = whys(facts("a", start=0.05, steps=150, lr=0.01))[1:]
    assert "turn more than the equilibrium line" in why
    assert "their norms are below equilibrium and still growing" in why


def test_off_the_drift_corrected_line(facts):
    run = facts("a")
    rows = tuple(replace(row, pred_ratio=0.8) for row in run.summary.weights)
    run = replace(run, summary=replace(run.summary, weights=rows))
    assert whys(run) == [
        "5 weights (conv1, layer1, layer2): 0.80 of the drift-corrected line,"
        " which takes gradients as uncorrelated in time"
    ]


def test_influences_from_outside(facts):
    run = facts("a")
    flags = {"smd/not_invariant": 0.4, "smd/below_floor": 0.2, "smd/clipped": 2.0}
    assert whys(replace(run, overview=flags)) == [
        "40% of the weights stopped being scale-invariant (frozen batch norm, or a penalty on the weights)",
        "20% of the weights turn less per step than their storage can resolve",
        "gradients are clipped adaptively (AGC): the lines are approximate",
    ]


def test_no_line(facts):
    run = facts("a")
    rows = tuple(
        replace(row, angle_ratio=None, pred_ratio=None, angle_eq=None, line_reason="weight decay is 0")
        for row in run.summary.weights
    )
    run = replace(run, summary=replace(run.summary, weights=rows))
    assert whys(run) == ["all 5 weights have no line to compare with: weight decay is 0"]


def test_nothing_was_measured(facts):
    diagnosis = diagnose(facts("a", steps=2, status="running"))
    assert diagnosis.verdict == "nothing was measured"
    assert diagnosis.causes[0].why == "no step was sampled"
    diverged = diagnose(facts("b", nan_from=1, status="failed"))
    assert diverged.verdict == "the training diverged at step 3, before a step was measured"


def test_a_run_that_diverged_has_one_reason(facts):
    run = facts("a", nan_from=61, start=3.0)
    assert whys(run) == ["the weights stopped being finite at step 63: the training diverged"]
