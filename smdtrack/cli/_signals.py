"""Signals around a tracked script: it ends by them as it would alone, and its record says so."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from smdtrack.notices import show

_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def noting_the_end(end_trackers: Callable[[], object]) -> Iterator[None]:
    """While the block runs, SIGTERM and SIGHUP first end the trackers and then the process, by the same signal.

    A signal that is ignored (`nohup`) or has a handler is left as it is. A script that sets a handler of its own
    replaces ours. Forked children end at once, as without smdtrack.

    Args:
        end_trackers: Writes the run's status; must not take longer than a few seconds.
    """
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() == owner:
            end_trackers()
        os.kill(os.getpid(), number)

    replaced = []
    if threading.current_thread() is threading.main_thread():
        replaced = [number for number in _ENDING if signal.getsignal(number) is signal.SIG_DFL]
        for number in replaced:
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number in replaced:
            if signal.getsignal(number) is handle:
                signal.signal(number, signal.SIG_DFL)


@contextmanager
def finishing_despite_ctrl_c() -> Iterator[None]:
    """While the block runs, the first Ctrl-C prints a line and the second raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = 0

    def handle(number: int, frame: Any) -> None:
        nonlocal pressed
        pressed += 1
        if pressed > 1:
            raise KeyboardInterrupt
        show("the record is being completed; press Ctrl-C again to leave it as it is")

    earlier = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier if earlier is not None else signal.SIG_DFL)
