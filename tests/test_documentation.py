"""The documentation names files and links that exist, and the commands that the program has."""

import re
from pathlib import Path

import pytest

from smdtrack.cli import main

ROOT = Path(__file__).parents[1]
PAGES = sorted({ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")})
A_PATH = re.compile(r"(?<![\w/.-])(?:smdtrack|tests|recipes|docs)/[\w./-]*[\w/]")
A_LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
NOT_YET = ("recipes/studies/NAME", "study-runs")


def relative(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_files_that_a_page_names_exist(page):
    without_addresses = re.sub(r"https?://\S+", "", page.read_text(encoding="utf-8"))
    named = set(A_PATH.findall(without_addresses))
    missing = {path for path in named if not (ROOT / path).exists() and not path.startswith(NOT_YET)}
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_of_a_page_lead_to_files(page):
    missing = {link for link in A_LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()}
    assert not missing


@pytest.mark.parametrize("name", main.list_commands(None))
def test_every_command_is_in_the_list_of_commands(name):
    assert f"smdtrack {name}" in (ROOT / "docs/commands/index.md").read_text(encoding="utf-8")
