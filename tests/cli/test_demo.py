"""`smdtrack demo`: the recipes that come with the package."""

import os
import subprocess
import sys
from pathlib import Path

from smdtrack.cli import main
from smdtrack.record import read_run

RECIPES = Path(__file__).parents[2] / "recipes"


def test_demo_trains_the_named_recipe_and_ends_as_run_does(tmp_path):
    command = [sys.executable, "-m", "smdtrack", "demo", "--sink", "local", "--every", "1", "adamw"]
    done = subprocess.run(
        [*command, "--epochs", "1", "--experiment", "it"],
        cwd=tmp_path,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("best top1")
    (record,) = (tmp_path / "smdtrack-runs").iterdir()
    run = read_run(record)
    assert len(run.info.weights) == 15
    assert run.info.params["optimizer"] == "AdamW"
    assert run.summary is not None
    assert run.summary["verdict"] in done.stderr
    assert (tmp_path / "output/train/it/summary.csv").is_file()


def test_an_unknown_recipe_is_one_line_with_the_names(runner):
    result = runner.invoke(main, ["demo", "momentun"])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: no recipe 'momentun' (did you mean momentum?); there are adamw, ")
    assert result.stderr.count("\n") == 1


def test_copy_writes_the_recipes_to_a_new_folder_and_trains_nothing(runner, tmp_path):
    result = runner.invoke(main, ["demo", "--copy", "mine"])
    assert result.exit_code == 0, result.stderr
    copied = {path.relative_to(tmp_path / "mine") for path in (tmp_path / "mine").rglob("*.*")}
    originals = {path.relative_to(RECIPES) for path in RECIPES.rglob("*.*") if "__pycache__" not in path.parts}
    assert copied == originals
    assert result.stdout == "copied to mine; run: smdtrack run mine/train.py --config mine/digits_momentum.yaml\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_copy_never_writes_into_a_folder_that_exists(runner, tmp_path):
    (tmp_path / "mine").mkdir()
    result = runner.invoke(main, ["demo", "--copy", "mine"])
    assert result.exit_code == 2
    assert result.stderr == "Error: mine exists already: name a new folder to copy the recipes to\n"
    assert list((tmp_path / "mine").iterdir()) == []
