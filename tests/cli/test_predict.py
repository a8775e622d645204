"""`smdtrack predict` as a person and as a machine uses it."""

import json
import math
from itertools import pairwise

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
    assert list(found) == [
        "optimizer",
        "kind",
        "angular_update",
        "memory",
        "decay_rate",
        "time_constant",
        "source",
        "assumptions",
        "stages",
    ]
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
    found = document(
        "--opt",
        "momentum",
        *RECIPE,
        "--sched",
        "multistep",
        "--decay-milestones",
        "30",
        "60",
        "80",
        "--epochs",
        "90",
        "--warmup-epochs",
        "0",
    )
    stages = found["stages"]
    assert [stage["lr_start"] for stage in stages] == pytest.approx([0.1, 0.01, 0.001, 0.0001])
    assert [stage["reached"] for stage in stages] == [True, True, False, False]
    assert stages[2]["lag"] < 0.5


def test_for_people_it_plots_warns_and_advises():
    result = predict(
        "--opt",
        "momentum",
        *RECIPE,
        "--sched",
        "step",
        "--decay-epochs",
        "30",
        "--epochs",
        "90",
        "--warmup-epochs",
        "0",
        "--target-angle",
        "0.01",
    )
    assert result.exit_code == 0
    assert "time constant" in result.output
    assert "rescale_weight_norms(optimizer, 0.5623)" in result.output
    assert "weight decay 0.00095" in result.output
    assert result.output.count("o") > 20
    assert "450,360 steps" in result.output


@pytest.mark.parametrize(
    ("arguments", "warning"),
    [
        (["--opt", "momentum", "--lr", "0.1", "--weight-decay", "1e-6", "--epochs", "10"], "too weak to matter"),
        (["--opt", "momentum", "--lr", "0.5", "--weight-decay", "0.1", "--epochs", "10"], "more than 0.1"),
        (["--opt", "sgd", "--lr", "0.1", "--weight-decay", "0"], "no equilibrium"),
        (["--opt", "adam", "--lr", "0.1", "--weight-decay", "1e-4"], "state"),
        (["--opt", "madgrad", "--lr", "0.1", "--weight-decay", "1e-4"], "dual averaging"),
    ],
)
def test_warnings(arguments, warning):
    arguments = [*arguments, "--steps-per-epoch", "100", "--sched", "none"]
    assert warning in " ".join(predict(*arguments).output.split())
    assert warning in predict(*arguments, "--json").stderr


def test_no_equilibrium_is_null():
    found = document("--opt", "sgd", "--lr", "0.1", "--weight-decay", "0", "--steps-per-epoch", "10", "--epochs", "2")
    assert found["angular_update"] is None
    assert found["time_constant"] is None


def test_where_the_line_is_known_only_in_training_it_says_so_and_shows_the_schedule():
    result = predict("--opt", "adam", *RECIPE, "--sched", "step", "--decay-epochs", "30", "--epochs", "90")
    assert result.exit_code == 0
    assert "known only in training, from the optimizer's state" in " ".join(result.output.split())
    (header,) = [line.split() for line in result.output.splitlines() if line.startswith("stage")]
    assert header == ["stage", "epochs", "lr"]
    assert not any(line.rstrip().endswith(" -") for line in result.output.splitlines())


def test_betas_and_further_arguments_reach_the_optimizer():
    found = document(
        "--opt",
        "adamw",
        *RECIPE,
        "--opt-betas",
        "0.8",
        "0.99",
        "--opt-kwargs",
        "amsgrad=True",
        "--opt-eps",
        "1e-6",
        "--epochs",
        "2",
        "--warmup-epochs",
        "0",
    )
    assert found["memory"] == pytest.approx(9.0)


def test_every_update_may_have_its_own_learning_rate():
    found = document("--opt", "momentum", *RECIPE, "--sched-on-updates", "--epochs", "10", "--warmup-epochs", "1")
    assert found["stages"][-1]["lr_end"] < 1e-5
    assert sum(stage["steps"] for stage in found["stages"]) == 10 * 5004


@pytest.mark.parametrize("sched", ["cosine", "tanh", "step", "multistep", "plateau", "poly", "wsd", "constant", "none"])
def test_all_of_timms_schedules(sched):
    found = document(
        "--opt",
        "momentum",
        *RECIPE,
        "--sched",
        sched,
        "--epochs",
        "20",
        "--warmup-epochs",
        "2",
        "--cooldown-epochs",
        "3",
        "--min-lr",
        "1e-3",
    )
    assert found["stages"]


def test_timms_args_file(tmp_path):
    path = tmp_path / "args.yaml"
    path.write_text(
        "opt: momentum\nlr: null\nlr_base: 0.1\nlr_base_size: 256\nlr_base_scale: ''\nbatch_size: 512\n"
        "grad_accum_steps: 1\nweight_decay: 0.0001\nmomentum: 0.8\nepochs: 4\nsched: none\nopt_betas: null\nmodel: x\n"
    )
    found = document("--config", str(path), "--steps-per-epoch", "10")
    assert found["angular_update"] == pytest.approx(math.sqrt(2 * 0.2 * 1e-4 / 1.8))
    over = document("--config", str(path), "--steps-per-epoch", "10", "--lr", "0.05")
    assert over["angular_update"] == pytest.approx(found["angular_update"] / 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
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
        (["--config", "/nowhere/args.yaml"], "/nowhere/args.yaml"),
        (["--opt", "sgd", *RECIPE, "--momentum", "1.5"], "momentum"),
        (["--opt", "sgd", *RECIPE, "--weight-shape", "3"], "--weight-shape"),
        (["--opt", "fusedlamb", *RECIPE], "needs the package apex"),
        (["--opt", "lookahead_bnblion", *RECIPE], "needs the package bitsandbytes"),
        (["--opt", "adam-w", *RECIPE], "did you mean adamw"),
        (["--opt", "adamw", *RECIPE, "--opt-betas", "0.9"], "2 betas, not 1"),
        (["--opt", "adamw", *RECIPE, "--opt-betas", "0.9", "0.99", "0.999"], "2 betas, not 3"),
        (["--opt", "adamw", *RECIPE, "--opt-eps", "nan"], "--opt-eps"),
        (["--opt", "sgd", *RECIPE, "--opt-kwargs", "lr=5"], "opt_kwargs sets 'lr', which lr already sets"),
        (
            ["--opt", "adamw", *RECIPE, "--opt-betas", "0.9", "0.9", "--opt-kwargs", "betas=(.9,.9)"],
            "which opt_betas already sets",
        ),
        (["--opt", "sgd", "--lr", "0.1", "--weight-decay", "inf", "--steps-per-epoch", "10"], "--weight-decay"),
        (["--opt", "sgd", *RECIPE, "--sched", "step", "--decay-epochs", "0"], "--decay-epochs"),
        (["--opt", "sgd", *RECIPE, "--sched", "step", "--decay-rate", "nan"], "--decay-rate"),
        (["--opt", "sgd", *RECIPE, "--sched", "step", "--decay-rate", "2"], "decay_rate 2.0 would raise"),
        (
            ["--opt", "sgd", *RECIPE, "--sched", "multistep", "--decay-milestones", "30", "20"],
            "the milestones 30, 20 are not in order",
        ),
        (["--opt", "sgd", *RECIPE, "--min-lr", "5"], "above the learning rate"),
        (["--opt", "sgd", *RECIPE, "--warmup-epochs", "-1"], "--warmup-epochs"),
        (["--opt", "sgd", *RECIPE, "--warmup-lr", "nan"], "--warmup-lr"),
        (["--opt", "sgd", *RECIPE, "--lr-cycle-mul", "0"], "--lr-cycle-mul"),
        (["--opt", "sgd", *RECIPE, "--epochs", "1000000000"], "--epochs"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, says):
    result = predict(*arguments)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a\n- b\n", "holds no options"),
        ("opt: [sgd\nlr: 0.1\n", "line 2, is not YAML"),
        ("opt: sgd\nlr: 0.1\nweight_deacy: 0.1\n", "did you mean weight_decay?"),
        ("opt: sgd\nlr: 0.1\nweight_decay: 0\nepochs: many\n", "'many' is not a number"),
        ("opt: sgd\nlr: 0.1\nweight_decay: 0\nepochs: 2.5\n", "2.5 is not a whole number"),
        ("opt: 5\nlr: 0.1\nweight_decay: 0\n", "5 is not a name"),
        ("opt: sgd\nlr: true\nweight_decay: 0\n", "True is not a number"),
        ("opt: sgd\nlr: 0.1\nweight_decay: 0\nopt_kwargs: foo\n", "'foo' is not of the form key=value"),
        ("opt: adamw\nlr: 0.1\nweight_decay: 0\nopt_betas: 0.9\n", "2 betas, not 1"),
        ("opt: sgd\nlr: 0.1\nweight_decay: 0\nsched_on_updates: 3\n", "neither true nor false"),
        ("opt: sgd\nlr_base: 0.1\nbatch_size: many\nweight_decay: 0\n", "'many' is not a number"),
    ],
)
def test_a_broken_file_is_one_line_and_exit_code_2(tmp_path, text, says):
    path = tmp_path / "args.yaml"
    path.write_text(text)
    result = predict("--config", str(path), "--steps-per-epoch", "3")
    assert result.exit_code == 2
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_numbers_that_yaml_takes_for_text(tmp_path):
    """YAML 1.1 wants a dot in 1e-3; timm's train.py reads such a file, since argparse converts it."""
    path = tmp_path / "args.yaml"
    path.write_text("opt: adamw\nlr: 1e-3\nweight_decay: 5e-2\nepochs: 2\nsched: none\n")
    found = document("--config", str(path), "--steps-per-epoch", "3")
    assert found["decay_rate"] == pytest.approx(5e-5)


def test_the_rate_scaled_by_the_batch_says_for_how_many_processes(tmp_path):
    path = tmp_path / "args.yaml"
    path.write_text("opt: sgd\nlr: null\nlr_base: 0.1\nlr_base_size: 256\nbatch_size: 512\nweight_decay: 0.0001\n")
    assert "one process" in " ".join(predict("--config", str(path), "--steps-per-epoch", "9").output.split())


@pytest.mark.parametrize("columns", ["40", "80", "120"])
def test_it_fits_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    arguments = (
        "--opt",
        "adamw",
        "--lr",
        "1e-3",
        "--weight-decay",
        "0.05",
        "--epochs",
        "90",
        "--sched-on-updates",
        "--steps-per-epoch",
        "1251",
        "--warmup-epochs",
        "5",
        "--target-angle",
        "0.001",
    )
    lines = predict(*arguments).output.splitlines()
    assert max(map(len, lines)) <= max(80, int(columns))
    assert not any("…" in line for line in lines)
    step = predict("--opt", "momentum", *RECIPE, "--sched", "step", "--decay-epochs", "30", "--epochs", "90").output
    assert any("rescale_weight_norms(optimizer, 0.5623)" in line for line in step.splitlines()), "whole, to be copied"


def test_advice_names_all_drops_of_one_size_once():
    output = predict("--opt", "momentum", *RECIPE, "--sched", "step", "--decay-epochs", "30", "--epochs", "90").output
    assert output.count("rescale_weight_norms") == 1
    assert "at epochs 30 and 60 (lr / 10)" in " ".join(output.split())


def test_a_wanted_angle_without_decay_or_under_a_trust_ratio():
    arguments = ("--steps-per-epoch", "10", "--epochs", "2", "--sched", "none", "--target-angle", "0.01")
    advised = predict("--opt", "momentum", "--lr", "0.1", "--weight-decay", "0", *arguments).output
    assert "weight decay 0.00095" in advised
    assert (
        "learning rate times 0.1" in predict("--opt", "lamb", "--lr", "0.1", "--weight-decay", "0.1", *arguments).output
    )


def test_a_decay_that_takes_all_at_once_has_no_line_and_says_so():
    result = predict("--opt", "sgd", "--lr", "1e200", "--weight-decay", "1e200", "--steps-per-epoch", "9", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["angular_update"] is None
    assert "whole weight in one step" in result.stderr


QUARTERS = [f"decay {quarter}/4" for quarter in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--sched", "cosine"], ["warm-up", *QUARTERS]),
        (["--sched", "step", "--decay-epochs", "20"], ["warm-up", "constant", "constant", "constant"]),
        (
            ["--sched", "step", "--decay-epochs", "2.4", "--decay-rate", ".97", "--cooldown-epochs", "0"],
            ["warm-up", *QUARTERS],
        ),
        (["--sched", "wsd", "--warmup-prefix"], ["warm-up", "constant", *QUARTERS]),
        (["--sched", "cosine", "--lr-cycle-limit", "2"], ["warm-up", "cycle 1", "cycle 2"]),
        (
            ["--sched", "cosine", "--cooldown-epochs", "5"],
            ["warm-up", *(f"decay {quarter}/4" for quarter in (1, 2, 3, 4)), "constant"],
        ),
    ],
)
def test_stages(arguments, names):
    found = document("--opt", "momentum", *RECIPE, "--epochs", "60", "--warmup-epochs", "5", *arguments)
    assert [stage["name"] for stage in found["stages"]] == names
    edges = [(stage["first_epoch"], stage["last_epoch"]) for stage in found["stages"]]
    assert all(one[1] == other[0] for one, other in pairwise(edges))


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
