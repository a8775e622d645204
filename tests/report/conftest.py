from collections.abc import Callable
from pathlib import Path

import pytest

from smdtrack.record.sources import open_run
from smdtrack.report.facts import RunFacts, facts_of
from tests.report.synthetic_runs import make_record


@pytest.fixture
def facts(tmp_path: Path) -> Callable[..., RunFacts]:
    """Makes a record and returns its facts."""
    letters = iter("ABCDEFGH")

    def make(name: str, **options: object) -> RunFacts:
        folder = make_record(tmp_path / "runs" / name, **options)  # type: ignore[arg-type]
        return facts_of(open_run(str(folder)), next(letters))

    return make
