import csv
import io
import json

import pytest

from smdtrack.cli import main
from tests.report.synthetic_runs import make_record


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "smdtrack-runs"
    make_record(folder / "20261101-100000-base-11111111", lags=(4,), params={"batch_size": 64, "seed": 1})
    make_record(folder / "20261102-100000-lr4-22222222", lr=0.4, params={"batch_size": 256, "seed": 1})
    return folder


def compare(runner, *arguments):
    return runner.invoke(main, ["compare", *arguments])


def test_settings_table_and_verdict(runner, runs):
    result = compare(runner, "base", "lr4")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split() for line in lines if line.startswith(("lr ", "batch_size "))] == [
        ["lr", "0.1", "0.4"],
        ["batch_size", "64", "256"],
    ]
    assert "5 other settings are the same." in lines
    row = next(line.split() for line in lines if line.startswith("layer1.0.conv2"))
    assert float(row[1]) == pytest.approx(2, rel=0.05)
    assert float(row[4]) == pytest.approx(2, rel=1e-3)
    assert lines[-2].startswith("B turns ")
    assert lines[-2].endswith("as lr x 4 predicts (2.00x at equilibrium).")


def test_json_and_csv_hold_the_same_numbers(runner, runs):
    document = json.loads(compare(runner, "base", "lr4", "--json").stdout)
    rows = list(csv.DictReader(io.StringIO(compare(runner, "base", "lr4", "--csv").stdout)))
    (change,) = document["changes"]
    assert [row["weight"] for row in rows] == [weight["weight"] for weight in change["weights"]]
    for row, weight in zip(rows, change["weights"], strict=True):
        assert float(row["angle_change"]) == weight["angle_change"]
    assert document["settings_that_differ"] == {"lr": [0.1, 0.4], "batch_size": [64, 256]}


def test_sorted_chosen_and_cut(runner, runs):
    result = compare(runner, "base", "lr4", "--weights", "layer*", "--sort=-angle_change", "--columns", "angle_change")
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith("layer")]
    values = [float(row[1]) for row in rows]
    assert len(rows) == 4
    assert values == sorted(values, reverse=True)
    assert all(len(row) == 4 for row in rows)


def test_fail_on(runner, runs):
    good = compare(runner, "base", "lr4", "--fail-on", "angle_ratio<.5")
    assert (good.exit_code, good.stderr) == (0, "")
    bad = compare(
        runner, "base", "lr4", "--fail-on", "median(angle_change)>1.5", "--fail-on", "angle_ratio<.5", "--json"
    )
    assert bad.exit_code == 1
    assert bad.stderr.startswith("failed: median(angle_change)>1.5: B has 1.9")
    assert bad.stderr.count("\n") == 1
    assert json.loads(bad.stdout)["failed"] == [bad.stderr.removeprefix("failed: ").rstrip("\n")]


def test_linear_scaling(runner, runs):
    result = compare(runner, "lr4", "base", "--linear-scaling", "--json")
    scaling = json.loads(result.stdout)["linear_scaling"]
    assert (scaling["small"], scaling["large"], scaling["factor"], scaling["bound"]) == ("B", "A", 4, 2.0)
    assert scaling["white"] == pytest.approx(1.8766, abs=1e-3)
    assert scaling["overall"]["ratio"] == pytest.approx(scaling["white"], rel=0.02)
    assert scaling["overall"]["measured"] == pytest.approx(scaling["white"], rel=0.02)
    assert "4 steps of A turn a weight 1." in compare(runner, "base", "lr4", "--linear-scaling").stdout


def test_over_the_same_stretch_of_an_axis(runner, runs):
    document = json.loads(compare(runner, "base", "lr4", "--x", "time-constants", "--json").stdout)
    base, fast = document["runs"]
    assert base["last_step"] == 900
    assert fast["last_step"] == pytest.approx(225, abs=4)  # its time constant is a quarter
    document = json.loads(compare(runner, "base", "lr4", "--x", "steps", "--json").stdout)
    assert [run["last_step"] for run in document["runs"]] == [900, 900]


def test_html_is_the_page(runner, runs, tmp_path):
    result = compare(runner, "base", "lr4", "--html", "out.html")
    assert result.stderr == "written: out.html\n"
    assert "How to read this" in (tmp_path / "out.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["base"], "one run only: a comparison takes two or more"),
        (["base", "lr4", "--csv", "--json"], "--csv and --json are both given; choose one. (see main compare --help)"),
        (["base", "lr4", "--fail-on", "angle"], "'angle' is no condition: write one such as angle_ratio<.9"),
        (["base", "lr4", "--fail-on", "angel<1"], "no quantity 'angel' in 'angel<1'; did you mean angle"),
        (["base", "lr4", "--columns", "angl_change"], "no quantity 'angl_change'; did you mean angle_change"),
        (["base", "lr4", "--sort", "nothing"], "no quantity 'nothing'; there are angle_change, error"),
        (["base", "lr4", "--weights", "zzz*"], "no weight matches 'zzz*'; the stages are conv1, layer1, layer2"),
        (["base", "lr5"], "no run 'lr5' in smdtrack-runs; did you mean lr4?"),
        (["base", "lr4", "--x", "epochs"], "does not say how many steps an epoch has: compare over steps"),
        (["base", "base", "--linear-scaling"], "linear scaling takes runs whose batch and learning rate differ by one"),
    ],
)
def test_wrong_usage_is_one_line(runner, runs, arguments, line):
    result = compare(runner, *arguments)
    assert result.exit_code == 2
    assert line in result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_help_has_examples(runner):
    said = compare(runner, "--help").output
    assert "smdtrack compare last~1 last" in said
    assert "mlflow:RUN_ID" in said


def test_json_has_no_nan(runner, runs):
    make_record(runs / "20261103-100000-boom-33333333", nan_from=601, params={"metric": float("nan")})
    result = compare(runner, "base", "boom", "--json")

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    document = json.loads(result.stdout, parse_constant=refuse)
    assert document["runs"][1]["settings"]["metric"] is None
