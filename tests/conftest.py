from collections.abc import Iterator

import pytest

from tests.said import no_unexpected_notices


@pytest.fixture(autouse=True)
def unexpected_notices_fail() -> Iterator[None]:
    """Fails a test in which smdtrack gives a notice that the test does not expect."""
    with no_unexpected_notices():
        yield
