import re
import subprocess
import sys

import pytest

from smdtrack.cli import main


def test_help_names_every_command(runner):
    result = runner.invoke(main, ["--help"])
    assert result.exit_code == 0
    for name in main.list_commands(None):
        # A sentence that needs several lines goes on with deeper indentation.
        sentence = " ".join(re.split(r"\n  (?! )", result.output.split(f"  {name} ", 1)[1])[0].split())
        assert sentence.endswith("."), "every command has its sentence"


@pytest.mark.parametrize("name", main.list_commands(None))
def test_every_command_has_help_with_an_example(runner, name):
    result = runner.invoke(main, [name, "--help"])
    assert result.exit_code == 0
    assert f"smdtrack {name}" in result.output.split("Example", 1)[1]


def test_an_unknown_command_is_one_line_with_the_near_name(runner):
    result = runner.invoke(main, ["runn"], prog_name="smdtrack")
    assert result.exit_code == 2
    commands = ", ".join(main.list_commands(None))
    said = f"Error: no command 'runn' (did you mean run?); there are {commands} (see smdtrack --help)\n"
    assert result.stderr == said


def test_help_imports_no_heavy_library():
    script = """
import sys
import smdtrack, smdtrack.cli
from click.testing import CliRunner
assert CliRunner().invoke(smdtrack.cli.main, ["--help"]).exit_code == 0
print(sorted({"torch", "timm", "mlflow", "wandb", "pyarrow", "plotly"} & set(sys.modules)))
"""
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
