"""A lock in a record's folder: of all processes that deliver the record to trackers, one at a time does."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smdtrack.notices import SmdtrackError

LOCK_FILE = "delivery.lock"
_held: set[Path] = set()


@contextmanager
def delivery_lock(folder: Path) -> Iterator[None]:
    """Holds the lock of a record's folder. The system frees it when the process ends, however it ends.

    Raises:
        SmdtrackError: If another process, or this one, holds it already.
    """
    path = (folder / LOCK_FILE).absolute()
    busy = SmdtrackError(f"{folder} is being delivered by another process: wait until it has ended, or end it")
    if path in _held:  # the system's lock is the process's, it does not keep its threads apart
        raise busy
    with path.open("a") as file:
        if not _lock(file.fileno()):
            raise busy
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)


def _lock(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: two deliveries at the same time are not prevented there
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return True
