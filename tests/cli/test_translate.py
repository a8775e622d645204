"""`smdtrack translate` as a person and as a machine uses it."""

import json
import math
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from smdtrack.cli import main

RECIPES = Path(__file__).parents[2] / "recipes"
MOMENTUM = str(RECIPES / "digits_momentum.yaml")
ADAMW = str(RECIPES / "digits_adamw.yaml")


def run(command, *arguments):
    return CliRunner().invoke(main, [command, *arguments], catch_exceptions=False)


def document(*arguments):
    result = run("translate", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def changed_lines(output):
    """The YAML between the heading and the next blank line."""
    return yaml.safe_load(output.split("that change:\n\n", 1)[1].split("\n\n", 1)[0])


@pytest.mark.parametrize(
    ("config", "name"),
    [
        *((MOMENTUM, name) for name in ("sgd", "adamw", "nadamw", "lion", "lamb")),
        *((ADAMW, name) for name in ("sgd", "momentum", "lion")),
    ],
    ids=lambda value: Path(value).stem,
)
def test_the_printed_lines_put_into_the_config_predict_the_angle_of_the_source(tmp_path, config, name):
    output = run("translate", config, "--to", name).stdout
    path = tmp_path / "translated.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(Path(config).read_text()), **changed_lines(output)}))
    angles = [
        json.loads(run("predict", "--config", file, "--json").stdout)["angular_update"] for file in (config, str(path))
    ]
    assert angles[1] == pytest.approx(angles[0], rel=1e-3)


def test_the_document_holds_both_sides_and_the_changes():
    found = document(MOMENTUM, "--to", "adamw", "--opt-betas", "0.9", "0.99")
    assert list(found) == [
        "before",
        "after",
        "changes",
        "old_steps_per_new_step",
        "kept",
        "not_kept",
        "alternatives",
    ]
    assert found["changes"]["opt"] == "adamw"
    assert found["changes"]["opt_betas"] == [0.9, 0.99]
    assert found["before"]["angular_update"] == pytest.approx(math.sqrt(2 * 0.1 * 5e-3 / 1.9), rel=1e-3)
    assert found["after"]["angular_update"] == pytest.approx(found["before"]["angular_update"], rel=1e-3)
    assert found["after"]["lr"] * found["after"]["weight_decay"] == pytest.approx(found["after"]["decay_rate"])
    assert found["alternatives"] == {}


def test_a_batch_is_scaled_by_each_of_the_three_rules():
    found = document(MOMENTUM, "--batch-size", "256")
    assert found["changes"] == {"lr": 0.4, "warmup_lr": 0.04, "model_ema_decay": 0.9606, "batch_size": 256}
    one_step = document(MOMENTUM, "--batch-size", "256", "--match", "step")
    assert one_step["changes"]["lr"] == pytest.approx(0.2)
    assert one_step["changes"]["weight_decay"] == pytest.approx(2.5e-3)
    assert {match: other["lr"] for match, other in found["alternatives"].items()} == pytest.approx(
        {"epoch": 0.4, "step": 0.2, "k-steps": 0.7505}, rel=1e-3
    )
    assert found["alternatives"] == one_step["alternatives"]


def record_with_angles(folder, ratio):
    """A record of two weights whose angle over 4 steps is `ratio` times that of one step."""
    from smdtrack.record import LocalStore
    from tests.record.runs import run_info, sample

    (folder / "run").mkdir()
    store = LocalStore(run_info(folder / "run"))
    for step in range(1, 41):
        straight = 0.01 * ratio
        over_four = math.acos(math.exp(-(straight**2) / 2))
        store.append([sample(step, norm=(1.0, 1.0), angle=(0.01, 0.01), angle_k4=(over_four, over_four))])
    store.close("finished", None)
    return str(folder / "run")


def test_the_angle_over_k_steps_is_taken_from_a_run_where_one_is_given(tmp_path):
    arguments = (MOMENTUM, "--batch-size", "256", "--match", "k-steps")
    found = document(*arguments, "--from", record_with_angles(tmp_path, 1.6))
    before, after = (found[side]["angular_update"] for side in ("before", "after"))
    assert after == pytest.approx(1.6 * before, rel=1e-3)
    assert "the angle of 4 old steps, now turned by one step, by the measured ratio of 1.6 to one step" in found["kept"]
    assert not any("uncorrelated in time" in sentence for sentence in found["not_kept"])
    white = document(*arguments)["after"]["angular_update"]
    assert white == pytest.approx(math.sqrt(4 * 3.527) * before, rel=2e-3)


def test_a_run_without_the_angle_over_k_steps_says_how_to_record_one(tmp_path):
    folder = record_with_angles(tmp_path, 1.6)
    result = run("translate", MOMENTUM, "--batch-size", "512", "--match", "k-steps", "--from", folder)
    assert result.exit_code == 2
    assert "the run run has no angle over 8 steps; record one with --lags 8" in result.stderr


def test_more_epochs_stretch_the_schedule(tmp_path):
    path = tmp_path / "args.yaml"
    path.write_text("opt: momentum\nlr: 0.1\nweight_decay: 0.0001\nepochs: 90\nsched: step\ndecay_epochs: 30\n")
    assert document(str(path), "--epochs", "180")["changes"] == {
        "epochs": 180,
        "warmup_epochs": 10,
        "decay_epochs": 60,
    }


def test_fewer_steps_per_epoch_keep_the_decay_per_epoch():
    found = document(ADAMW, "--steps-per-epoch", "100", "--from-steps-per-epoch", "400")
    assert found["after"]["decay_rate"] == pytest.approx(4 * found["before"]["decay_rate"], rel=1e-3)
    same = document(ADAMW, "--steps-per-epoch", "100", "--from-steps-per-epoch", "400", "--match", "step")
    assert same["after"]["angular_update"] == same["before"]["angular_update"]


def test_a_rate_that_timm_scales_by_the_batch_is_written_out(tmp_path):
    """With `lr` in the file timm takes it as it is; `lr_base` would be scaled by the new batch a second time."""
    path = tmp_path / "args.yaml"
    path.write_text("opt: adamw\nlr_base: 0.001\nlr_base_size: 256\nbatch_size: 256\nweight_decay: 0.05\n")
    found = document(str(path), "--batch-size", "1024", "--match", "step")
    assert found["changes"] == {"lr": 0.001, "batch_size": 1024}


def test_for_people_it_compares_and_says_what_does_not_carry_over():
    output = run("translate", MOMENTUM, "--to", "lion").output
    text = " ".join(output.split())
    assert "angle per step (rad) 0.02294 0.02294" in text
    assert "kept: the angle of one step at the largest learning rate" in text
    assert "not kept: biases, norm layers' gains and the classifier" in text
    assert max(map(len, output.splitlines())) <= 80


def test_nothing_changes_if_it_is_what_it_is():
    result = run("translate", MOMENTUM, "--to", "momentum")
    assert "Nothing in digits_momentum.yaml changes." in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([MOMENTUM], "nothing to translate to"),
        ([MOMENTUM, "--to", "adamm"], "timm has no optimizer 'adamm'; did you mean"),
        ([MOMENTUM, "--to", "madgrad"], "madgrad has no equilibrium angle"),
        ([MOMENTUM, "--to", "adam"], "adam has no equilibrium angle"),
        ([MOMENTUM, "--to", "bnblion"], "needs the package bitsandbytes"),
        ([MOMENTUM, "--to", "adamw", "--lr", "nan"], "nan is not a finite number"),
        ([MOMENTUM, "--to", "adamw", "--lr", "-1"], "--lr"),
        ([MOMENTUM, "--to", "lamb", "--lr", "0.5"], "lamb has this angle only at a learning rate of"),
        ([MOMENTUM, "--to", "adamw", "--opt-betas", "0.9"], "adamw takes 2 betas, not 1"),
        ([MOMENTUM, "--lr", "0.1", "--epochs", "3"], "--lr belongs to a new optimizer"),
        ([MOMENTUM, "--opt-betas", "0.9", "0.99", "--epochs", "3"], "--opt-betas belongs to a new optimizer"),
        ([MOMENTUM, "--batch-size", "0"], "--batch-size"),
        ([MOMENTUM, "--batch-size", "2.5"], "not a whole number"),
        ([MOMENTUM, "--batch-size", "9", "--steps-per-epoch", "9"], "not both"),
        ([MOMENTUM, "--steps-per-epoch", "9"], "--from-steps-per-epoch go together"),
        ([MOMENTUM, "--steps-per-epoch", "9", "--from-steps-per-epoch", "5", "--match", "k-steps"], "k-steps"),
        ([MOMENTUM, "--batch-size", "256", "--from", "x"], "--from needs --match k-steps"),
        (
            [MOMENTUM, "--batch-size", "96", "--match", "k-steps", "--from", "x"],
            "and a whole multiple of the batch",
        ),
        ([MOMENTUM, "--batch-size", "256", "--match", "k-steps", "--from", "/nowhere"], "/nowhere"),
        ([MOMENTUM, "--to", "adamw", "--match", "step"], "--match applies only if"),
        ([MOMENTUM, "--batch-size", "256", "--match", "angle"], "is not one of"),
        (["/nowhere/args.yaml", "--to", "adamw"], "/nowhere/args.yaml: No such file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, says):
    result = run("translate", *arguments)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("text", "arguments", "says"),
    [
        ("- a\n- b\n", ("--to", "adamw"), "holds no options"),
        ("opt: [sgd\n", ("--to", "adamw"), "is not YAML"),
        (
            "opt: sgd\nlr: 0.1\nweight_decay: 0.1\nsched: cosin\n",
            ("--to", "adamw"),
            "timm has no schedule 'cosin'; did you mean cosine?",
        ),
        ("hello: world\n", ("--to", "adamw"), "--lr is missing"),
        ("opt: sgd\nlr: .inf\nweight_decay: 0.1\n", ("--to", "adamw"), "inf is not a finite number (lr in"),
        ("opt: sgd\nlr: 0.1\nweight_decay: 0\n", ("--to", "adamw"), "the recipe has no equilibrium angle to keep"),
        ("opt: sgd\nlr: 0.1\nweight_decay: 0.1\n", ("--batch-size", "64"), "the config has no batch_size"),
    ],
)
def test_a_config_that_is_no_recipe_is_one_line_and_exit_code_2(tmp_path, text, arguments, says):
    path = tmp_path / "args.yaml"
    path.write_text(text)
    result = run("translate", str(path), *arguments)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
