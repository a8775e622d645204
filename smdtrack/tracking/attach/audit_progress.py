"""Tells the user that an audit takes long: the training waits for it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from smdtrack.notices import show

#: Seconds after which the audit is mentioned, and from one line to the next.
_FIRST_LINE = 1.0
_NEXT_LINES = 15.0


@contextmanager
def progress_of_audit(model: str) -> Iterator[None]:
    """Prints a line if the block takes longer than a second, and one every 15 seconds from then on."""
    done = threading.Event()
    started = time.monotonic()

    def tell() -> None:
        wait = _FIRST_LINE
        while not done.wait(wait):
            seconds = time.monotonic() - started
            show(f"finding the scale-invariant weights of {model}: {seconds:.0f} s so far; training waits for it")
            wait = _NEXT_LINES

    thread = threading.Thread(target=tell, name="smdtrack-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
