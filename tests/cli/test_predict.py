"""`smdtrack predict` as a person and as a machine uses it."""

import json
import math

import pytest
from click.testing import CliRunner

from smdtrack.cli import main

RECIPE = ["--lr", "0.1", "--weight-decay", "1e-4", "--steps-per-epoch", "5004"]
EXAMPLE = ["--opt", "sgd", *RECIPE, "--momentum", "0.9", "--sched", "cosine", "--epochs", "100", "--warmup-epochs", "5"]


def predict(*arguments):
    return CliRunner().invoke(main, ["predict", *arguments], catch_exceptions=False)


def document(*arguments):
    result = predict(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_documents_keys_and_numbers():
    found = document(*EXAMPLE)
    assert list(found) == ["optimizer", "kind", "angular_update", "memory", "decay_rate", "time_constant", "source",
                           "assumptions", "stages"]
    assert found["optimizer"] == "sgd"
    assert found["kind"] == "closed form"
    lr = max(stage["lr_start"] for stage in found["stages"])
    assert found["angular_update"] == pytest.approx(math.sqrt(2 * lr * 1e-4 * 0.7063), rel=1e-4)
    assert found["decay_rate"] == pytest.approx(lr * 1e-4 / 0.1)
    assert found["time_constant"] == pytest.approx(0.1 / (4 * lr * 1e-4))
    assert found["memory"] == pytest.approx(14.16, rel=1e-3)
    assert sum(stage["steps"] for stage in found["stages"]) == 100 * 5004
    assert found["stages"][0]["name"] == "warm-up"


def test_a_step_schedule_lags_where_it_should():
    found = document("--opt", "momentum", *RECIPE, "--sched", "multistep", "--decay-milestones", "30", "60", "80",
                     "--epochs", "90", "--warmup-epochs", "0")
    stages = found["stages"]
    assert [stage["lr_start"] for stage in stages] == pytest.approx([0.1, 0.01, 0.001, 0.0001])
    assert [stage["reached"] for stage in stages] == [True, True, False, False]
    assert stages[2]["lag"] < 0.5


def test_for_people_it_plots_warns_and_advises():
    result = predict("--opt", "momentum", *RECIPE, "--sched", "step", "--decay-epochs", "30", "--epochs", "90",
                     "--warmup-epochs", "0", "--angle", "0.01")
    assert result.exit_code == 0
    assert "time constant" in result.output
    assert "rescale_weight_norms(optimizer, 0.5623)" in result.output
    assert "--weight-decay 0.00095" in result.output
    assert result.output.count("o") > 20
    assert "450,360 steps" in result.output


@pytest.mark.parametrize(("arguments", "warning"), [
    (["--opt", "momentum", "--lr", "0.1", "--weight-decay", "1e-6", "--epochs", "10"], "too weak to matter"),
    (["--opt", "momentum", "--lr", "0.5", "--weight-decay", "0.1", "--epochs", "10"], "more than 0.1"),
    (["--opt", "sgd", "--lr", "0.1", "--weight-decay", "0"], "no equilibrium"),
    (["--opt", "adam", "--lr", "0.1", "--weight-decay", "1e-4"], "state"),
    (["--opt", "madgrad", "--lr", "0.1", "--weight-decay", "1e-4"], "dual averaging"),
])
def test_warnings(arguments, warning):
    arguments = [*arguments, "--steps-per-epoch", "100", "--sched", "none"]
    assert warning in " ".join(predict(*arguments).output.split())
    assert warning in predict(*arguments, "--json").stderr


def test_no_equilibrium_is_null():
    found = document("--opt", "sgd", "--lr", "0.1", "--weight-decay", "0", "--steps-per-epoch", "10", "--epochs", "2")
    assert found["angular_update"] is None
    assert found["time_constant"] is None


def test_betas_and_further_arguments_reach_the_optimizer():
    found = document("--opt", "adamw", *RECIPE, "--opt-betas", "0.8", "0.99", "--opt-kwargs", "amsgrad=True",
                     "--opt-eps", "1e-6", "--epochs", "2", "--warmup-epochs", "0")
    assert found["memory"] == pytest.approx(9.0)


def test_every_update_may_have_its_own_learning_rate():
    found = document("--opt", "momentum", *RECIPE, "--sched-on-updates", "--epochs", "10", "--warmup-epochs", "1")
    assert found["stages"][-1]["lr_end"] < 1e-5
    assert sum(stage["steps"] for stage in found["stages"]) == 10 * 5004


@pytest.mark.parametrize("sched", ["cosine", "tanh", "step", "multistep", "plateau", "poly", "wsd", "constant", "none"])
def test_all_of_timms_schedules(sched):
    found = document("--opt", "momentum", *RECIPE, "--sched", sched, "--epochs", "20", "--warmup-epochs", "2",
                     "--cooldown-epochs", "3", "--min-lr", "1e-3")
    assert found["stages"]


def test_timms_args_file(tmp_path):
    path = tmp_path / "args.yaml"
    path.write_text(
        "opt: momentum\nlr: null\nlr_base: 0.1\nlr_base_size: 256\nlr_base_scale: ''\nbatch_size: 512\n"
        "grad_accum_steps: 1\nweight_decay: 0.0001\nmomentum: 0.8\nepochs: 4\nsched: none\nopt_betas: null\nmodel: x\n")
    found = document("--args", str(path), "--steps-per-epoch", "10")
    assert found["angular_update"] == pytest.approx(math.sqrt(2 * 0.2 * 1e-4 / 1.8))
    over = document("--args", str(path), "--steps-per-epoch", "10", "--lr", "0.05")
    assert over["angular_update"] == pytest.approx(found["angular_update"] / 2)


@pytest.mark.parametrize(("arguments", "says"), [
    (["--opt", "sgdd", *RECIPE], "did you mean sgd"),
    (["--opt", "sgd", "--weight-decay", "1e-4", "--steps-per-epoch", "10"], "--lr is missing"),
    (["--opt", "sgd", "--lr", "0.1", "--steps-per-epoch", "10"], "--weight-decay is missing"),
    (["--opt", "sgd", "--lr", "-0.1", "--weight-decay", "1e-4", "--steps-per-epoch", "10"], "--lr"),
    (["--opt", "sgd", "--lr", "0.1", "--weight-decay", "-1", "--steps-per-epoch", "10"], "--weight-decay"),
    (["--opt", "sgd", "--lr", "nan", "--weight-decay", "1", "--steps-per-epoch", "10"], "--lr"),
    (["--opt", "sgd", "--lr", "0.1", "--weight-decay", "1e-4"], "--steps-per-epoch"),
    (["--opt", "bnbadam", *RECIPE], "needs the package bitsandbytes"),
    (["--opt", "sgd", *RECIPE, "--sched", "cosin"], "cosine"),
    (["--opt", "sgd", *RECIPE, "--opt-kwargs", "foo=1"], "foo"),
    (["--opt", "sgd", *RECIPE, "--opt-kwargs", "foo"], "key=value"),
    (["--opt", "sgd", *RECIPE, "--epochs", "0"], "--epochs"),
    (["--opt", "adamw", *RECIPE, "--opt-betas", "1.5", "0.9"], "beta"),
    (["--args", "/nowhere/args.yaml"], "/nowhere/args.yaml"),
    (["--opt", "sgd", *RECIPE, "--momentum", "1.5"], "momentum"),
    (["--opt", "sgd", *RECIPE, "--weight-shape", "3"], "--weight-shape"),
])
def test_bad_input_is_one_line_and_exit_code_2(arguments, says):
    result = predict(*arguments)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


def test_a_file_that_is_no_mapping(tmp_path):
    path = tmp_path / "args.yaml"
    path.write_text("- a\n- b\n")
    assert predict("--args", str(path)).exit_code == 2
    path.write_text("opt: sgd\nlr: 0.1\nweight_decay: 0\nepochs: many\n")
    result = predict("--args", str(path), "--steps-per-epoch", "3")
    assert result.exit_code == 2
    assert "'many' is not a number" in result.stderr


def test_help_has_an_example():
    result = predict("--help")
    assert result.exit_code == 0
    assert "smdtrack predict --opt sgd" in result.output


def test_the_list_knows_all_of_timms_optimizers():
    import timm.optim

    result = predict("--list", "--json")
    found = {entry["name"]: entry for entry in json.loads(result.stdout)}
    assert set(found) == {str(name) for name in timm.optim.list_optimizers()}
    assert found["sgd"]["kind"] == "closed form"
    assert found["madgrad"]["reason"]
    assert predict("--list").exit_code == 0
