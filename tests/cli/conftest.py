import pytest
from click.testing import CliRunner


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """Runs commands in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return CliRunner()
