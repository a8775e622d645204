import pytest

from smdtrack.cli import main
from tests.report.synthetic_runs import make_record


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "smdtrack-runs"
    make_record(folder / "20261101-100000-base-11111111")
    make_record(folder / "20261102-100000-lr4-22222222", lr=0.4)
    return folder


def test_one_run(runner, runs, tmp_path):
    result = runner.invoke(main, ["report", "base"])
    assert (result.exit_code, result.stdout) == (0, "smdtrack-report.html\n")
    assert "Weights at the end" in (tmp_path / "smdtrack-report.html").read_text()


def test_several_runs_and_chosen_weights(runner, runs, tmp_path):
    result = runner.invoke(main, ["report", "base", "lr4", "-o", "two.html", "--weights", "layer1*"])
    assert (result.exit_code, result.stdout) == (0, "two.html\n")
    page = (tmp_path / "two.html").read_text()
    assert "Change of each weight" in page
    assert "layer1.0.conv2" in page
    assert "layer2.0.conv1" not in page


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nothing"], "no run 'nothing' in smdtrack-runs; the newest is 20261102-100000-lr4-22222222"),
        (["base", "-o", "no/such/page.html"], "cannot write no/such/page.html: No such file or directory"),
        (
            ["base", "--x", "epochs"],
            "run 20261101-100000-base-11111111 does not say how many steps an epoch has: compare over steps",
        ),
        (["base", "--weights", "zzz*"], "no weight matches 'zzz*'; the stages are conv1, layer1, layer2"),
    ],
)
def test_wrong_usage_is_one_line(runner, runs, arguments, line):
    result = runner.invoke(main, ["report", *arguments])
    assert (result.exit_code, result.stderr) == (2, f"Error: {line}\n")


def test_no_run_is_given(runner):
    result = runner.invoke(main, ["report"])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: Missing argument 'RUNS...'.")


def test_the_page_is_logged_to_the_run_s_mlflow_run(runner, runs, tmp_path):
    from mlflow import MlflowClient

    from tests.report.synthetic_runs import change_head

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    run = client.create_run(client.create_experiment("e", artifact_location=str(tmp_path / "artifacts")))
    place = {"run_id": run.info.run_id, "tracking_uri": uri}
    change_head(runs / "20261101-100000-base-11111111", sinks={"mlflow": place})
    result = runner.invoke(main, ["report", "base", "--log"])
    assert (result.exit_code, result.stdout) == (0, "smdtrack-report.html\n")
    assert [file.path for file in client.list_artifacts(run.info.run_id, "smdtrack")] == [
        "smdtrack/smdtrack-report.html"
    ]
    result = runner.invoke(main, ["report", "lr4", "--log"])
    assert result.exit_code == 2
    assert result.stderr == "Error: run 20261102-100000-lr4-22222222 has no MLflow run to log the page to\n"
