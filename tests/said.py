"""Collects the notices that smdtrack prints to stderr while a test runs."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from smdtrack import notices

_expected: set[int] = set()


@contextmanager
def collected_notices(match: str | None = None) -> Iterator[list[str]]:
    """Fills a list with the notices given inside the block. They count as expected.

    Args:
        match: A regular expression that one of them must match.
    """
    start, messages = notices.count(), []
    try:
        yield messages
    finally:
        messages[:] = notices.given_since(start)
        _expected.update(range(start, start + len(messages)))
    if match is not None:
        assert any(re.search(match, message) for message in messages), messages


@contextmanager
def no_unexpected_notices() -> Iterator[None]:
    """Fails if a notice is given inside the block but outside of `collected_notices`."""
    start = notices.count()
    yield
    messages = notices.given_since(start)
    assert [message for index, message in enumerate(messages, start) if index not in _expected] == []
