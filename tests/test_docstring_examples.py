"""The examples in the package's docstrings run and print what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

import smdtrack

PACKAGE = Path(smdtrack.__file__).parent
WITH_EXAMPLES = sorted(
    ".".join(("smdtrack", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0


def test_there_are_examples():
    assert len(WITH_EXAMPLES) >= 3
