"""The studies: trainings are run once, and the tables are computed from their records."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import yaml

from recipes.studies.__main__ import BEGIN, END, main, write_table
from recipes.studies.measures import measured_memory, rms, spread, table, uncorrelated_memory
from recipes.studies.trials import RECIPES, Result, Trial, read_trials, run_trials
from smdtrack.record import Run, RunInfo

STUDIES = sorted(path.parent.name for path in (RECIPES / "studies").glob("*/study.yaml"))
TINY = {
    "model": "test_resnet",
    "img_size": 16,
    "batch_size": 512,
    "workers": 0,
    "opt": "momentum",
    "lr": 0.05,
    "weight_decay": 5e-3,
    "epochs": 2,
    "sched": "none",
    "warmup_epochs": 0,
}


def run_of(**values: np.ndarray) -> Run:
    steps = len(next(iter(values.values())))
    info = RunInfo(id="it", name="it", folder=Path(), created=0.0, weights=())
    return Run(info, np.arange(1, steps + 1), np.zeros(steps), values, {})


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_trials_a_question_and_marks_for_its_table(name: str) -> None:
    trials = read_trials(RECIPES / "studies" / name / "study.yaml")
    assert len({trial.key for trial in trials}) == len(trials) > 2
    readme = (RECIPES / "studies" / name / "README.md").read_text(encoding="utf-8")
    assert readme.index("## Question") < readme.index("## Expectation") < readme.index(BEGIN) < readme.index(END)


def test_settings_of_a_trial_are_base_then_study_then_trial(tmp_path: Path) -> None:
    study = {
        "base": "digits_momentum.yaml",
        "settings": {"epochs": 7, "lr": 1.0},
        "trials": {"one": None, "two": {"lr": 2.0, "lags": [4], "initial_norm": 3}},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    one, two = read_trials(tmp_path / "study.yaml")
    base = yaml.safe_load((RECIPES / "digits_momentum.yaml").read_text())
    assert one.settings == {**base, "epochs": 7, "lr": 1.0}
    assert two.settings == {**base, "epochs": 7, "lr": 2.0}
    assert (one.lags, one.initial_norm, two.lags, two.initial_norm) == ((), 1.0, (4,), 3.0)


def test_a_training_is_run_once_and_one_that_was_interrupted_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    trial = Trial("tiny", TINY, 3.0, (2,))
    (tmp_path / trial.key).mkdir()
    (tmp_path / trial.key / "left.over").write_text("from a training that was interrupted")
    plain = Trial("plain", TINY, 1.0, (2,))
    results = run_trials([trial, plain], tmp_path)
    assert not (tmp_path / trial.key / "left.over").exists()
    run = results["tiny"].run
    assert run.steps.tolist() == [1, 2, 3, 4]
    assert "angle_k2" in run.values
    np.testing.assert_allclose(run.values["norm"][0] / results["plain"].run.values["norm"][0], 3.0, rtol=0.02)
    assert 0 <= results["tiny"].accuracy <= 100
    capsys.readouterr()
    again = run_trials([trial], tmp_path)["tiny"]
    assert capsys.readouterr().out == f"[1/1] tiny: read from {tmp_path / trial.key}\n"
    np.testing.assert_array_equal(again.run.values["angle"], run.values["angle"])


def test_a_training_that_fails_is_told_with_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"the training bad ended with code 2: .*unknown model 'resnet5O'"):
        run_trials([Trial("bad", {**TINY, "model": "resnet5O"}, 1.0, ())], tmp_path)


@pytest.mark.parametrize(("momentum", "steps", "root"), [(0.9, 4, 1.88), (0.9, 16, 3.14), (0.9, 64, 4.02), (0.0, 9, 1)])
def test_memory_of_heavy_ball(momentum: float, steps: int, root: float) -> None:
    assert uncorrelated_memory(momentum, steps) ** 0.5 == pytest.approx(root, abs=0.005)


def test_measured_memory_is_that_of_a_simulated_walk() -> None:
    """Heavy-ball updates in many dimensions, without weight decay, on a weight so large that it does not grow."""
    generator = np.random.default_rng(0)
    steps, size, a = 2000, 400, 0.9
    buffer, weight = np.zeros(size), np.zeros(size)
    weight[0] = 1e4
    places = [weight.copy()]
    for _ in range(steps + 4):
        buffer = a * buffer + generator.standard_normal(size)
        weight = weight - buffer
        places.append(weight.copy())
    path = np.stack(places)
    path /= np.linalg.norm(path, axis=1, keepdims=True)
    angle = 2 * np.arcsin(np.linalg.norm(path[1:] - path[:-1], axis=1) / 2)[200:steps, None]
    over_four = 2 * np.arcsin(np.linalg.norm(path[4:] - path[:-4], axis=1) / 2)[200:steps, None]
    found = measured_memory(run_of(angle=angle, angle_k4=over_four), 4, 0, 1)
    np.testing.assert_allclose(found, uncorrelated_memory(a, 4), rtol=0.03)


def test_rms_takes_the_named_part_of_the_run() -> None:
    run = run_of(angle=np.array([[9.0], [9.0], [3.0], [4.0], [9.0], [9.0]]))
    assert rms(run, "angle", 1 / 3, 2 / 3) == pytest.approx(np.sqrt(12.5))


def test_tables_and_spread() -> None:
    assert spread(np.array([3.0, 1.0, 2.0])) == "2.00 (1.00 to 3.00)"
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_the_table_replaces_only_what_stands_between_the_marks(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_table(readme, "new\n")
    write_table(readme, "newer\n")
    assert readme.read_text() == f"before\n{BEGIN}\n\nnewer\n\n![Measured curves](figure.png)\n\n{END}\nafter\n"


def test_an_unknown_study_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["linear"]) == 2
    assert capsys.readouterr().err == (
        f"error: no study 'linear' (did you mean linear_scaling?); there are {', '.join(STUDIES)}\n"
    )


def test_without_a_name_the_studies_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == STUDIES


def made_up(trial: Trial) -> Result:
    """A run exactly on its lines: angles sqrt(2 lr wd), k steps uncorrelated, norms (lr / wd)^(1/4)."""
    settings, shape = trial.settings, (60, 3)
    angle = np.full(shape, (2 * float(settings["lr"]) * float(settings["weight_decay"])) ** 0.5)
    values = {"angle": angle, "angle_eq": angle, "effective_grad": np.ones(shape)}
    values["norm"] = np.full(shape, (float(settings["lr"]) / float(settings["weight_decay"])) ** 0.25)
    for lag in trial.lags:
        values[f"angle_k{lag}"] = np.arccos(np.exp(-(angle**2) * lag / 2))
    return Result(trial, run_of(**values), 97.5)


@pytest.mark.parametrize("name", STUDIES)
def test_table_and_figure_of_runs_that_are_exactly_on_their_lines(name: str, tmp_path: Path) -> None:
    trials = read_trials(RECIPES / "studies" / name / "study.yaml")
    results = {trial.name: made_up(trial) for trial in trials}
    analysis = importlib.import_module(f"recipes.studies.{name}.analysis")
    text = analysis.tables(results)
    first = text.split("\n\n")[0].splitlines()
    headings = [heading.strip() for heading in first[0].strip("|").split("|")]
    rows = [dict(zip(headings, map(str.strip, row.strip("|").split("|")), strict=True)) for row in first[2:] if row]
    assert [row["training"] for row in rows] == [trial.name for trial in trials]
    assert {row["measured / line"] for row in rows} == {"1.00 (1.00 to 1.00)"}
    if name == "lr_times_wd":
        assert {row["that / predicted"] for row in rows} == {"1.00 (1.00 to 1.00)"}
    if name == "linear_scaling":
        last = text.split("\n\n")[1].splitlines()[2:]
        assert [row.split("|")[4].strip() for row in last if row] == ["2.00", "2.00", "4.00"] * 2
        assert {row.split("|")[-2].strip() for row in last if row} == {"1.00 (1.00 to 1.00)"}
    analysis.figure(results).savefig(tmp_path / "figure.png", dpi=40)
    assert (tmp_path / "figure.png").stat().st_size > 5000
