import subprocess
import sys

import pytest

import smdtrack
from smdtrack.cli import main


def test_help_names_every_command(runner):
    result = runner.invoke(main, ["--help"])
    assert result.exit_code == 0
    for name in main.list_commands(None):
        line = next(line for line in result.output.splitlines() if line.strip().startswith(name + " "))
        assert len(line.split()) > 3, "every command has its sentence"


@pytest.mark.parametrize("name", main.list_commands(None))
def test_every_command_has_help_with_an_example(runner, name):
    result = runner.invoke(main, [name, "--help"])
    assert result.exit_code == 0
    assert f"smdtrack {name}" in result.output.split("Example", 1)[1]


def test_an_unknown_command_is_one_line_with_the_near_name(runner):
    result = runner.invoke(main, ["runn"])
    assert result.exit_code == 2
    assert "Did you mean run?" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_help_and_import_pull_in_nothing_heavy():
    script = """
import sys
import smdtrack, smdtrack.cli
from click.testing import CliRunner
assert CliRunner().invoke(smdtrack.cli.main, ["--help"]).exit_code == 0
print(sorted({"torch", "timm", "mlflow", "wandb", "pyarrow", "plotly"} & set(sys.modules)))
"""
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_public_names_are_all_there_and_no_more():
    for name in smdtrack.__all__:
        assert getattr(smdtrack, name) is not None
    assert set(dir(smdtrack)) == set(smdtrack.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = smdtrack.nothing
